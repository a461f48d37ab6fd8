"""The search for a vector of weights: CMA-ES with restarts, asked for members, told their fitness.

The search is pycma's; for nets with many weights the separable form, which learns a variance for
each weight and no correlations. It begins at zero weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cellwright.errors import CheckpointError, UsageError
from cellwright.train.settings import check_number, check_whole, option

SEPARABLE_FROM = 500
"""From so many parameters on the search is separable, unless the settings say otherwise."""


@dataclass(frozen=True)
class EvolutionSettings:
    """Settings of a search.

    Attributes:
        sigma: standard deviation of the first generation's weights.
        population: members of a generation; None for 4 + 3 log(parameters), as CMA-ES has it.
        separable: whether to learn variances only; None to choose by the number of parameters.
        evaluations: how many there may be; the last generation is completed.
        target: fitness at which the search ends; None for no such end.
        patience: evaluations after which a start is given up; None to leave it to CMA-ES's own
            criteria, which also hold with a number. Then the search starts again.
        growth: how many times as large a population each further start has.
        save_every: least number of seconds between two records of the run.
        ray_workers: processes that Ray spreads a generation over; 0 for this process.
        seed: of the search.

    Raises:
        UsageError: a value is out of range.
    """

    sigma: float = 0.5
    population: int | None = None
    separable: bool | None = None
    evaluations: int = 100_000
    target: float | None = None
    patience: int | None = None
    growth: float = 1.0
    save_every: float = 1.0
    ray_workers: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        check_number("sigma", self.sigma, 0.0, math.inf, "both")
        check_whole("evaluations", self.evaluations, 1)
        check_number("save_every", self.save_every, 0.0, math.inf, "high")
        check_whole("ray_workers", self.ray_workers, 0)
        check_whole("seed", self.seed, 0, 2**32 - 1)
        if self.population is not None:
            check_whole("population", self.population, 4)
        if self.patience is not None:
            check_whole("patience", self.patience, 1)
        if self.target is not None:
            check_number("target", self.target, -math.inf, math.inf, "both")
        check_number("growth", self.growth, 1.0, math.inf, "high")
        if self.separable not in (None, True, False):
            raise UsageError(
                f"{option('separable')}: expected true, false or none, got {self.separable!r}"
            )

    def deciding(self) -> dict[str, Any]:
        """The settings on which the course of the search depends."""
        return {k: v for k, v in asdict(self).items() if k not in ("save_every", "ray_workers")}


class Search:
    """CMA-ES with restarts: asked for a population, told its fitness.

    Args:
        parameters: of a member.
        settings: the search's.

    Raises:
        UsageError: pycma is not installed.
    """

    def __init__(self, parameters: int, settings: EvolutionSettings):
        try:
            import cma
        except ImportError:
            raise UsageError(
                "evolution needs pycma, which is not installed: pip install 'cellwright[evolution]'"
            ) from None
        self._cma, self.parameters, self.settings = cma, parameters, settings
        self.separable = settings.separable
        if self.separable is None:
            self.separable = parameters >= SEPARABLE_FROM
        # A generator of our own: pycma would use, and seed, the one that all of NumPy shares.
        self._random = np.random.default_rng(settings.seed)
        self.evaluations = 0
        self.records: list[list[Tensor]] = []
        self.best = torch.zeros(parameters, dtype=torch.float64)
        self.fitness = -math.inf
        self._asked: list[np.ndarray] = []
        self._start()

    def _start(self) -> None:
        s = self.settings
        size = s.population or 4 + int(3 * math.log(self.parameters))
        options: dict[str, Any] = {
            "popsize": round(size * s.growth ** len(self.records)),
            "CMA_diagonal": self.separable,
            "randn": lambda *shape: self._random.standard_normal(shape),
            "seed": math.nan,  # none: see above
            "verbose": -9,
            "maxiter": math.inf,
        }
        start = np.zeros(self.parameters)
        self._strategy = self._cma.CMAEvolutionStrategy(start, s.sigma, options)
        self.records.append([])

    def ask(self) -> Tensor:
        """The next population: (N, parameters)."""
        self._asked = self._strategy.ask()
        return torch.from_numpy(np.stack(self._asked))

    def tell(self, fitness: Tensor) -> None:
        """The fitness of the population that was asked for; begins anew where a start is over."""
        self._strategy.tell(self._asked, (-fitness).tolist())
        self.records[-1].append(fitness)
        self.evaluations += len(fitness)
        fittest = int(fitness.argmax())
        if fitness[fittest] > self.fitness:
            self.fitness = fitness[fittest].item()
            self.best = torch.from_numpy(self._asked[fittest].copy())
        patience = self.settings.patience
        given_up = patience is not None and self._strategy.countevals >= patience
        if self._strategy.stop() or given_up:
            self._start()

    @property
    def generations(self) -> int:
        """Generations told of."""
        return sum(map(len, self.records))

    def state(self) -> dict[str, Any]:
        """What `replay` needs: the fitness of all generations, and where the search then stood."""
        told = [torch.stack(each) for each in self.records if each]
        return {"fitness": told, "mean": torch.from_numpy(np.asarray(self._strategy.mean))}

    def replay(self, state: Mapping[str, Any]) -> None:
        """Go through recorded generations again.

        Raises:
            CheckpointError: the search comes to another place than it did.
        """
        for fitness in (each for start in state["fitness"] for each in start):
            asked = self.ask()
            if len(asked) != len(fitness):
                break
            self.tell(fitness)
        told = sum(len(each) for each in state["fitness"])
        mean = torch.from_numpy(np.asarray(self._strategy.mean))
        if self.generations != told or not torch.equal(mean, state["mean"]):
            raise CheckpointError(
                f"the run cannot be resumed: its {told} generations come out differently here; "
                "resume it with the versions of cma and numpy, and on the kind of processor, "
                "with which it began"
            )
