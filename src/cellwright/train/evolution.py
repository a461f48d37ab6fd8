"""Neuroevolution: weights sought by CMA-ES, a whole population an evaluation.

A run is resumed by going through it again: the search is deterministic, so with the fitness that
was recorded it comes to the same state, to the bit, without an evaluation.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from cellwright.errors import CheckpointError, InputError, UsageError
from cellwright.train import storage
from cellwright.train.search import EvolutionSettings, Search

if TYPE_CHECKING:
    from rich.console import Console

FILE = "evolution.safetensors"
KIND = "evolution"


class Problem(Protocol):
    """What evolves. With Ray it goes to other processes, so it has to be picklable."""

    @property
    def parameters(self) -> int:
        """The length of a member's vector."""

    def fitness(self, population: Tensor) -> Tensor:
        """The fitness of every member, the more the better: (N, parameters) -> (N,), in float64.

        A member's fitness may depend on nothing but its vector.
        """

    def solved(self, best: Tensor, fitness: float) -> Mapping[str, Any] | None:
        """What the tests of success say of a generation's best; None if it has not passed."""


@dataclass(frozen=True)
class Evolved:
    """What a search came to.

    Attributes:
        best: the member that passed the tests, or the fittest one seen: (parameters,).
        fitness: of it.
        evaluations, generations: until it ended.
        starts: how often it began.
        reason: "solved", "target" or "evaluations".
        tests: what `Problem.solved` said.
    """

    best: Tensor
    fitness: float
    evaluations: int
    generations: int
    starts: int
    reason: str
    tests: Mapping[str, Any]


def evolve(
    problem: Problem,
    settings: EvolutionSettings,
    folder: Path,
    console: Console | None = None,
) -> Evolved:
    """Search until the problem is solved, the target reached or the evaluations used up.

    Args:
        problem: what evolves.
        settings: the search's.
        folder: where the run is recorded. A run that was killed goes on from its record and ends
            with the same bits; one that has ended is read.
        console: where to say how it goes; None for silence.

    Raises:
        UsageError: pycma or Ray is missing, or the folder has a run with other settings.
        CheckpointError: the record is damaged or cannot be followed.
        InputError: the problem's fitness is not one number a member.

    Example:
        >>> import tempfile, torch
        >>> from pathlib import Path
        >>> class Bowl:
        ...     parameters = 3
        ...
        ...     def fitness(self, population):
        ...         return -(population - 1).square().sum(1)
        ...
        ...     def solved(self, best, fitness):
        ...         return None
        >>> settings = EvolutionSettings(target=-1e-6)
        >>> found = evolve(Bowl(), settings, Path(tempfile.mkdtemp()))
        >>> found.reason, [round(each, 2) for each in found.best.tolist()]
        ('target', [1.0, 1.0, 1.0])
    """
    search = Search(problem.parameters, settings)
    path = folder / FILE
    if path.exists():
        record = _read(path, problem, settings)
        if record["result"] is not None:
            return Evolved(**record["result"])
        search.replay(record["search"])
    saved = time.monotonic()
    with closing(_Evaluation(problem, settings.ray_workers)) as evaluation:
        while True:
            starts = len(search.records)
            population = search.ask()
            fitness = _checked(evaluation.fitness(population), len(population))
            search.tell(fitness)
            result = _ended(problem, search, population, fitness)
            if result is not None or time.monotonic() - saved >= settings.save_every:
                _write(path, search, result)
                saved = time.monotonic()
            if result is not None:
                return result
            if console is not None and len(search.records) > starts:
                console.print(
                    f"{search.evaluations} evaluations, best fitness {search.fitness:.4g}: "
                    f"start {len(search.records)}",
                    highlight=False,
                )


class _Evaluation:
    """Where a population is evaluated: here, or by Ray's workers."""

    def __init__(self, problem: Problem, workers: int):
        self.fitness: Callable[[Tensor], Tensor] = problem.fitness
        self.close: Callable[[], None] = lambda: None
        if workers:
            from cellwright.train.spreading import Workers

            spread = Workers(problem, workers)
            self.fitness, self.close = spread.fitness, spread.close


def _checked(fitness: Tensor, members: int) -> Tensor:
    if fitness.shape != (members,):
        raise InputError(
            f"fitness: expected one number for each of {members} members, got the shape "
            f"{tuple(fitness.shape)}"
        )
    if fitness.isnan().any():
        which = int(fitness.isnan().nonzero()[0])
        raise InputError(f"fitness: expected numbers, got NaN for member {which}")
    return fitness.detach().to("cpu", torch.float64)


def _ended(problem: Problem, search: Search, population: Tensor, fitness: Tensor) -> Evolved | None:
    """The result, if this generation was the last."""
    fittest = int(fitness.argmax())
    best, value = population[fittest].clone(), fitness[fittest].item()
    tests = problem.solved(best, value)
    settings, reason = search.settings, "solved"
    if tests is None:
        best, value, tests = search.best, search.fitness, {}
        reached = settings.target is not None and value >= settings.target
        if not reached and search.evaluations < settings.evaluations:
            return None
        reason = "target" if reached else "evaluations"
    starts = sum(1 for each in search.records if each)
    return Evolved(best, value, search.evaluations, search.generations, starts, reason, dict(tests))


def _write(path: Path, search: Search, result: Evolved | None) -> None:
    content = {
        "settings": search.settings.deciding(),
        "parameters": search.parameters,
        "search": search.state(),
        "result": None if result is None else asdict(result),
    }
    storage.save(path, KIND, content)


def _read(path: Path, problem: Problem, settings: EvolutionSettings) -> dict[str, Any]:
    """A run's record, which has to be of the same problem and settings."""
    record: dict[str, Any] = storage.load(path, KIND)
    try:
        before = {**record["settings"], "parameters": record["parameters"]}
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: its content is damaged ({error!r})") from error
    for name, value in {**settings.deciding(), "parameters": problem.parameters}.items():
        if before.get(name) != value:
            raise UsageError(
                f"{path} holds a run with {name} {before.get(name)!r}, and now it is {value!r}; "
                "choose another folder, or the same settings"
            )
    return record
