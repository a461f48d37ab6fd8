"""The loop of policy optimisation: roll-outs, updates, checkpoints."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from cellwright import cells
from cellwright.engines import choice
from cellwright.errors import CheckpointError, UsageError
from cellwright.train import storage
from cellwright.train.batches import seed_everything
from cellwright.train.files import sweep, write_rows
from cellwright.train.measure import threads
from cellwright.train.policy.environments import Environments
from cellwright.train.policy.network import ActorCritic, network_for
from cellwright.train.policy.objective import Losses, update
from cellwright.train.policy.rollouts import Collector
from cellwright.train.policy.scaling import RewardScale
from cellwright.train.policy.settings import PolicySettings

if TYPE_CHECKING:
    from gymnasium.vector import VectorEnv
    from rich.console import Console

KIND = "cellwright-policy-training"

Row = dict[str, float]


@dataclass(frozen=True)
class Learnt:
    """How a run went.

    Attributes:
        network: with the weights after the last update.
        rows: numbers of each section of the run, as in ``log.csv``: from checkpoint to checkpoint.
        seconds: over all parts of the run, if it was resumed.
    """

    network: ActorCritic
    rows: list[Row]
    seconds: float


def learn(
    make: Callable[[int], VectorEnv],
    settings: PolicySettings,
    folder: Path,
    console: Console | None = None,
) -> Learnt:
    """Learn a policy by recurrent proximal policy optimisation.

    Roll-outs are made step by step, the states carried over from each to the next. An update runs
    each whole sequence in one call of the layer, from the states that its roll-out began with;
    where an episode begins inside of it, the state starts afresh inside the kernel.

    **Resuming.** If the folder has a checkpoint, the run goes on from it, and ends with the same
    bits as if it had not been interrupted. What is inside of an environment cannot be stored in
    general. So at every checkpoint all environments are reset with a seed that follows from
    ``settings.seed`` and the number of the update, whether the run is interrupted or not; episodes
    under way are broken off there, and learnt from like truncated ones. All other chance follows
    from these two numbers too. That asks of the environments that ``reset(seed=...)`` determines
    them, as gymnasium wants it. One that keeps something across resets (running statistics in a
    wrapper, a curriculum) is not restored. The first observations after the reset are in the
    checkpoint, and a resumed run that sees others stops with an error.

    An episode never lasts longer than a section of ``checkpoint_every`` × ``rollout_steps`` steps:
    choose that some times the length of an episode.

    Args:
        make: gives so many environments side by side, as `environments.make` does.
        settings: of the run.
        folder: for ``log.csv`` and ``checkpoints/last.safetensors``.
        console: where progress is told; None for silence.

    Raises:
        UsageError: the environments or the cell are not supported, training diverged, or a file
            cannot be written.
        CheckpointError: the folder's checkpoint cannot be used.

    Example:
        >>> import functools, pathlib, tempfile
        >>> from cellwright.train.policy import environments, evaluation
        >>> cart_pole = functools.partial(environments.make, "CartPole-v1")
        >>> settings = PolicySettings(total_steps=2048, checkpoint_every=1, hidden_size=8)
        >>> learnt = learn(cart_pole, settings, pathlib.Path(tempfile.mkdtemp()))
        >>> len(learnt.rows)
        2
        >>> evaluation.evaluate(learnt.network, cart_pole, episodes=3).mean > 1
        True
    """
    engine = choice.engine(settings.engine) if settings.engine else nullcontext()
    environments = Environments(make(settings.num_envs))
    try:
        if environments.num_envs != settings.num_envs:
            raise UsageError(
                f"asked for {settings.num_envs} environments, got {environments.num_envs}"
            )
        with threads(settings.threads), engine:
            return _Run(environments, settings, folder).execute(console)
    finally:
        environments.close()


class _Run:
    """One run: the network, its optimiser, and where they are kept."""

    def __init__(self, environments: Environments, settings: PolicySettings, folder: Path):
        self.settings, self.folder = settings, folder
        seed_everything(settings.seed, 0)
        self.network = network_for(environments, settings)
        # Not fused: on a CPU that changes weights without counting it as a change (torch 2.13), and
        # layer.step goes on with the weights that it has packed.
        self.optimiser = torch.optim.Adam(
            self.network.parameters(), settings.learning_rate, eps=1e-5
        )
        self.collector = Collector(environments, self.network)
        self.rewards = RewardScale(settings.num_envs, settings.discount, settings.normalise_rewards)
        self.rows: list[Row] = []
        spec = cells.load(settings.cell)
        self.identity = {
            "settings": settings.as_dict(),
            "equations": spec.equations(),
            "environments": f"{environments.features} features, {environments.action_space}",
        }

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoints" / "last.safetensors"

    def execute(self, console: Console | None) -> Learnt:
        settings = self.settings
        sweep(self.checkpoint.parent)
        begin = self._resume() if self.checkpoint.exists() else self._section(0)
        with _progress(console, settings.updates, begin) as tell:
            while begin < settings.updates:
                end = min(begin + settings.checkpoint_every, settings.updates)
                began, losses = time.perf_counter(), []
                for number in range(begin, end):
                    losses.append(self._advance(number))
                    tell(number + 1, self.rows)
                self._log(end, losses, time.perf_counter() - began)
                begin = self._section(end)
        write_rows(self.folder / "log.csv", self.rows)
        return Learnt(self.network, self.rows, sum(row["seconds"] for row in self.rows))

    def _advance(self, number: int) -> Losses:
        """One roll-out and one update."""
        seed_everything(self.settings.seed, number + 1)
        rollout = self.collector.collect(self.settings.rollout_steps)
        rewards = self.rewards(rollout.rewards, rollout.ended, rollout.counts)
        rollout = replace(rollout, rewards=rewards)
        progress = number / self.settings.updates
        losses = update(self.network, self.optimiser, rollout, progress, self.settings)
        self.network.standardise.measure(rollout.observations[rollout.counts])
        return losses

    def _section(self, number: int) -> int:
        """Begin a section of the run with new episodes, and keep all that it begins with.

        Args:
            number: of updates made.
        """
        first = self._begin(number)
        storage.save(
            self.checkpoint,
            KIND,
            {
                **self.identity,
                "updates": number,
                "network": dict(self.network.state_dict()),
                "rewards": dict(self.rewards.measured.state_dict()),
                "optimiser": self.optimiser.state_dict(),
                "rows": self.rows,
                "observations": first,
            },
        )
        return number

    def _begin(self, number: int) -> torch.Tensor:
        self.rewards.restart()
        drawn = np.random.default_rng([self.settings.seed, 3, number]).integers(2**31 - 1)
        return self.collector.begin(int(drawn))

    def _resume(self) -> int:
        """Take up the run where the checkpoint left it; gives the number of updates made."""
        found = storage.load(self.checkpoint, KIND)
        for name, here in self.identity.items():
            if found.get(name) != here:
                raise CheckpointError(
                    f"{self.checkpoint}: it belongs to another run, with other {name}: "
                    f"expected {here!r}, got {found.get(name)!r}"
                )
        try:
            self.network.load_state_dict(found["network"])
            self.rewards.measured.load_state_dict(found["rewards"])
            self.optimiser.load_state_dict(found["optimiser"])
            self.rows, number = list(found["rows"]), int(found["updates"])
            expected = found["observations"]
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"{self.checkpoint}: its content is damaged: {error}") from error
        if not torch.equal(self._begin(number), expected):
            raise CheckpointError(
                f"{self.checkpoint}: the environments do not begin with the observations that "
                "they began with when it was written; has their version changed, or do they keep "
                "something across reset(seed=...)?"
            )
        return number

    def _log(self, number: int, losses: list[Losses], seconds: float) -> None:
        tally, settings = self.collector.tally, self.settings
        row: Row = {
            "update": number,
            "steps": number * settings.num_envs * settings.rollout_steps,
            "episodes": len(tally.returns),
            "return": float(np.mean(tally.returns)) if tally.returns else float("nan"),
            "length": float(np.mean(tally.lengths)) if tally.lengths else float("nan"),
        }
        for name in ("policy", "value", "entropy", "divergence", "clipped"):
            row[name] = float(np.mean([getattr(each, name).item() for each in losses]))
        row["seconds"] = seconds
        self.rows.append(row)
        tally.forget()
        write_rows(self.folder / "log.csv", self.rows)


@contextmanager
def _progress(
    console: Console | None, updates: int, done: int
) -> Iterator[Callable[[int, list[Row]], None]]:
    """A bar where there is a terminal, some lines where there is none, or nothing."""
    if console is None:
        yield lambda number, rows: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeRemainingColumn as Remaining

    every = max(1, updates // 10)

    def line(number: int, rows: list[Row]) -> None:
        if number % every == 0 or number == updates:
            text = f"update {number}/{updates}  {_describe(rows)}"
            console.print(text, highlight=False, soft_wrap=True)

    if not console.is_terminal:
        yield line
        return
    columns = (TextColumn("update"), MofNCompleteColumn(), BarColumn(bar_width=None))
    shown = TextColumn("{task.fields[shown]}")
    with Progress(*columns, shown, Remaining(compact=True), console=console, transient=True) as bar:
        task = bar.add_task("", total=updates, completed=done, shown="")
        yield lambda number, rows: bar.update(task, completed=number, shown=_describe(rows))


def _describe(rows: list[Row]) -> str:
    return f"return {rows[-1]['return']:.1f}" if rows else ""
