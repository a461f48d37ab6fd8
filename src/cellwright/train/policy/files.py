"""A learnt policy as one file."""

from __future__ import annotations

from pathlib import Path

from cellwright import cells
from cellwright.errors import CheckpointError, UsageError
from cellwright.train import storage
from cellwright.train.policy.environments import Environments
from cellwright.train.policy.network import ActorCritic, network_for
from cellwright.train.policy.settings import PolicySettings

KIND = "cellwright-policy"


def save_policy(path: Path, network: ActorCritic, settings: PolicySettings) -> None:
    """Write weights and settings as one safetensors file, whole or not at all.

    Raises:
        UsageError: the file cannot be written.
    """
    content = {
        "network": dict(network.state_dict()),
        "settings": settings.as_dict(),
        "equations": cells.load(settings.cell).equations(),
    }
    storage.save(path, KIND, content)


def load_policy(path: Path, environments: Environments) -> ActorCritic:
    """Read a policy that `save_policy` wrote.

    Args:
        path: the file.
        environments: of the kind that it was learnt in.

    Raises:
        CheckpointError: the file is missing or damaged, of other equations, or of environments
            with other observations or actions.
    """
    content = storage.load(path, KIND)
    try:
        settings = PolicySettings.from_dict(content["settings"])
        equations, weights = content["equations"], content["network"]
    except (KeyError, TypeError, UsageError) as error:
        raise CheckpointError(f"{path}: its content is damaged: {error}") from error
    if cells.load(settings.cell).equations() != equations:
        raise CheckpointError(
            f"{path}: the equations of {settings.cell} are not those of the policy, which "
            f"were:\n{equations}"
        )
    network = network_for(environments, settings)
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(f"{path}: it does not fit these environments: {error}") from None
    return network
