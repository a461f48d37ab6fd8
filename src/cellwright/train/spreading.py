"""A population's evaluation, spread over machines by Ray."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cellwright.errors import UsageError

if TYPE_CHECKING:
    from cellwright.train.evolution import Problem


class Workers:
    """Processes of Ray's that each hold the problem and evaluate a share of the population.

    A cluster is joined if ``RAY_ADDRESS`` names one, or Ray has been started in this process;
    otherwise a local one with so many processes is started, and ended by `close`.

    Args:
        problem: has to be picklable; each worker gets a copy.
        count: of workers; each takes one processor core.

    Raises:
        UsageError: Ray is not installed.
    """

    def __init__(self, problem: Problem, count: int):
        try:
            import ray
        except ImportError:
            raise UsageError(
                "--ray-workers needs Ray, which is not installed: pip install 'cellwright[ray]'"
            ) from None
        self._ray, self._began = ray, not ray.is_initialized()
        if self._began:
            import os

            local = {} if "RAY_ADDRESS" in os.environ else {"num_cpus": count}
            ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR", **local)
        worker = ray.remote(num_cpus=1)(_Worker)
        self._workers: list[Any] = [worker.remote(problem) for _ in range(count)]

    def fitness(self, population: Tensor) -> Tensor:
        """The fitness of every member, each worker's share in turn."""
        shares = population.numpy().copy()
        parts = torch.arange(len(population)).tensor_split(len(self._workers))
        waiting = [
            each.fitness.remote(shares[part.numpy()])
            for each, part in zip(self._workers, parts, strict=True)
            if len(part)
        ]
        return torch.cat([torch.from_numpy(each.copy()) for each in self._ray.get(waiting)])

    def close(self) -> None:
        """End the workers, and Ray if it was started here."""
        for each in self._workers:
            self._ray.kill(each)
        self._workers = []
        if self._began:
            self._ray.shutdown()


class _Worker:
    """In a process of its own: the problem, and one thread."""

    def __init__(self, problem: Problem):
        torch.set_num_threads(1)
        self._problem = problem

    def fitness(self, population: Any) -> Any:
        return self._problem.fitness(torch.from_numpy(population.copy())).numpy()
