"""Two poles on a cart, balanced without seeing velocities, by neuroevolution."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cellwright.errors import UsageError
from cellwright.tasks.poles import evaluation
from cellwright.tasks.poles.motion import Cart
from cellwright.tasks.task import Case, Experiment, Published
from cellwright.train.evolution import evolve
from cellwright.train.search import EvolutionSettings
from cellwright.train.settings import check_number, check_whole

if TYPE_CHECKING:
    from rich.console import Console

STEPS = 1000
"""Of an evaluation, and of each start of the second test of success."""
LONG = 100_000
"""Of the first test of success."""
ENOUGH = 200
"""Starts of 625 from which the second test asks a controller to balance."""


@dataclass(frozen=True)
class DoublePoleSettings:
    """Settings of a run.

    Attributes:
        cell: the controller: "constant_gates" (see `cellwright.tasks.poles.controllers`), a name
            of the catalogue, or "path/to/file.py:cell_name".
        hidden_size: units of it.
        sigma, population, evaluations, patience, growth, seed, ray_workers: of the search, see
            `cellwright.train.search.EvolutionSettings`.
        start_angle: degrees from upright at which the long pole begins.
        threads: torch's threads.

    Raises:
        UsageError: a value is out of range.
    """

    cell: str = "constant_gates"
    hidden_size: int = 3
    sigma: float = 0.5
    population: int | None = None
    evaluations: int = 100_000
    patience: int | None = 2_000
    growth: float = 1.0
    start_angle: float = 4.5
    seed: int = 0
    threads: int = 1
    ray_workers: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.cell, str) or not self.cell:
            raise UsageError(f"--cell: expected a name or path.py:cell, got {self.cell!r}")
        check_whole("hidden_size", self.hidden_size, 1)
        check_whole("threads", self.threads, 1)
        check_number("start_angle", self.start_angle, 0.0, math.degrees(Cart().fallen), "high")
        _ = self.search

    @property
    def search(self) -> EvolutionSettings:
        """The settings of the search."""
        own = {each.name for each in fields(EvolutionSettings)}
        return EvolutionSettings(**{k: v for k, v in asdict(self).items() if k in own})


class Balancing:
    """The problem: weights of a controller, the damping fitness, both tests of success.

    Args:
        cell, hidden_size, start_angle: as in the settings.
    """

    def __init__(self, cell: str, hidden_size: int, start_angle: float):
        self._made_of = (cell, hidden_size, start_angle)
        self._start = evaluation.standard_start(start_angle)

    def __reduce__(self) -> tuple[Any, ...]:
        return Balancing, self._made_of

    @cached_property
    def trials(self) -> evaluation.Trials:
        """What runs the controllers; made where it is first used."""
        cell, hidden_size, _ = self._made_of
        return evaluation.Trials(evaluation.controller(cell), hidden_size, Cart())

    @property
    def parameters(self) -> int:
        """Weights of a controller."""
        return self.trials.flat.count

    def fitness(self, population: Tensor) -> Tensor:
        """The damping fitness over 1,000 steps from the standard start."""
        sways = self.trials.sways(population, self._start, (100, STEPS - 100))
        return evaluation.damping_fitness(sways[..., 0])

    def solved(self, best: Tensor, fitness: float) -> Mapping[str, Any] | None:
        """100,000 steps from the standard start, then 1,000 from at least 200 of 625 starts."""
        if fitness < 0.1:  # it has not even balanced for the evaluation's steps
            return None
        if int(self.trials.balanced(best, self._start, LONG)[0]) < LONG:
            return None
        balanced = self.trials.balanced(best, evaluation.general_starts(), STEPS)
        generalisation = int((balanced == STEPS).sum())
        return {"generalisation": generalisation} if generalisation >= ENOUGH else None


def run(
    settings: DoublePoleSettings, folder: Path, console: Console | None = None
) -> dict[str, Any]:
    """One search until a controller passes both tests; goes on where it was killed.

    The evaluations counted are those of the fitness, as in the literature: runs of the tests of
    success do not count.
    """
    started = time.perf_counter()
    before = torch.get_num_threads()
    torch.set_num_threads(settings.threads)
    try:
        problem = Balancing(settings.cell, settings.hidden_size, settings.start_angle)
        found = evolve(problem, settings.search, folder, console)
    finally:
        torch.set_num_threads(before)
    return {
        "evaluations": found.evaluations,
        "solved": found.reason == "solved",
        "generalisation": found.tests.get("generalisation", 0),
        "fitness": found.fitness,
        "generations": found.generations,
        "starts": found.starts,
        "parameters": problem.parameters,
        "seconds": time.perf_counter() - started,
    }


_GOMEZ = (
    "Gomez, Schmidhuber & Miikkulainen 2008, Accelerated neural evolution through cooperatively "
    "coevolved synapses"
)
_NOTE = "fully recurrent networks; mean evaluations"

double_pole = Experiment(
    name="double-pole",
    title="Balance two poles on a cart without seeing any velocity",
    source=(
        "Wieland 1991, Evolving neural network controllers for unstable systems; fitness and "
        "tests: Gruau, Whitley & Pyeatt 1996, A comparison between cellular encoding and direct "
        "encoding for genetic neural networks"
    ),
    settings_type=DoublePoleSettings,
    run=run,
    metric="evaluations",
    report=("evaluations", "generalisation", "solved"),
    cases=(Case("damping", seeds=20),),
    published=(
        Published("CoSyNE", 3416, _GOMEZ, _NOTE),
        Published("CMA-ES", 6061, _GOMEZ, _NOTE),
        Published("NEAT", 6929, _GOMEZ, _NOTE),
        Published("ESP", 26342, _GOMEZ, _NOTE),
        Published("random weights", 1232296, _GOMEZ, _NOTE),
    ),
)
