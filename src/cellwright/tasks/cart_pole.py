"""Cart pole without velocities: balance a pole that is seen, but not how fast it moves."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cellwright.tasks.task import Experiment, Published
from cellwright.train.policy import environments
from cellwright.train.policy.settings import PolicySettings

if TYPE_CHECKING:
    from gymnasium import Env
    from gymnasium.vector import VectorEnv
    from rich.console import Console

SEEN = [0, 2]  # the cart's position and the pole's angle; 1 and 3 are their velocities
EPISODES = 100


def without_velocities(env: Env) -> Env:
    """CartPole-v1 of which only position and angle are seen."""
    gym = environments.gymnasium()
    whole: Any = env.observation_space
    space = gym.spaces.Box(whole.low[SEEN], whole.high[SEEN], dtype=np.float32)
    wrapped: Env = gym.wrappers.TransformObservation(env, lambda seen: seen[SEEN], space)
    return wrapped


def make(num_envs: int) -> VectorEnv:
    """Cart poles without velocities, side by side.

    Raises:
        UsageError: gymnasium is not installed.
    """
    return environments.make("CartPole-v1", num_envs, [without_velocities])


def run(settings: PolicySettings, folder: Path, console: Console | None) -> dict[str, Any]:
    """Learn a policy, let its most probable actions play 100 episodes; returns the results.

    Raises:
        CellwrightError: gymnasium is not installed, the cell cannot be made, or training diverged.
    """
    from cellwright.train.policy.evaluation import evaluate
    from cellwright.train.policy.files import save_policy
    from cellwright.train.policy.learning import learn

    learnt = learn(make, settings, folder, console)
    save_policy(folder / "model.safetensors", learnt.network, settings)
    # Its own seeds: none of these episodes was trained on.
    seed = int(np.random.default_rng([settings.seed, 4]).integers(2**31))
    found = evaluate(learnt.network, make, EPISODES, seed=seed)
    return {
        "test_return": found.mean,
        "test_return_deviation": found.deviation,
        "test_return_least": min(found.returns),
        "test_episodes": len(found.returns),
        "steps": settings.updates * settings.num_envs * settings.rollout_steps,
        "parameters": sum(each.numel() for each in learnt.network.parameters()),
        "seconds": round(learnt.seconds, 3),
    }


cart_pole = Experiment(
    name="cart-pole",
    title="Balance a pole on a cart, seeing position and angle but no velocities",
    source="Barto, Sutton & Anderson 1983; CartPole-v1 of gymnasium, velocities left out",
    licence="none needed: the simulator is part of gymnasium (MIT)",
    settings_type=PolicySettings,
    options={
        "hidden_size": 64, "num_envs": 8, "rollout_steps": 32, "total_steps": 100_000,
        "epochs": 20, "minibatches": 1, "learning_rate": 0.001, "clip_range": 0.2,
        "discount": 0.98, "gae_lambda": 0.8, "checkpoint_every": 39,
    },
    run=run,
    metric="test_return",
    report=("test_return",),
    published=(
        Published(
            "recurrent PPO, LSTM-256",
            500.0,
            "SB3 RL Zoo, CartPoleNoVel-v1",
            "same roll-outs, passes, rates, γ and λ; theirs has 256 units and a perceptron above "
            "them, ours 64 units and scaled rewards",
        ),
    ),
)  # fmt: skip
