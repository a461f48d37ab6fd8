"""A batch shared out among processes, so that their averaged gradient is that of the whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from typing import Any

import torch
from torch import Tensor, distributed

from cellwright.train.examples import Batch, Loader
from cellwright.train.streams import Flow
from cellwright.train.windows import Windows


class Shards:
    """Every so-many-th sequence of each batch of a loader.

    Each process makes the whole batch and takes its part: the batches are those of one process
    alone, and a stream whose state is carried over stays with its process. Means are over targets,
    so a part weighs as much as it has of them; ``share`` makes up for processes being averaged
    alike.

    Args:
        loader: the whole batches.
        rank, processes: which part, of how many.
        count: (targets) -> how many things the loss is a mean over.
    """

    def __init__(self, loader: Loader, rank: int, processes: int, count: Callable[[Tensor], int]):
        self.loader, self.rank, self.processes, self.count = loader, rank, processes, count

    @property
    def epoch(self) -> int:
        """The epoch, which decides on the order."""
        return self.loader.epoch

    @epoch.setter
    def epoch(self, value: int) -> None:
        self.loader.epoch = value

    def state_dict(self) -> dict[str, Any]:
        """How far streams have been read; nothing where there are none."""
        return self.loader.state_dict() if isinstance(self.loader, (Flow, Windows)) else {}

    def load_state_dict(self, position: Mapping[str, Any]) -> None:
        """Go to a position that `state_dict` gave."""
        if isinstance(self.loader, (Flow, Windows)):
            self.loader.load_state_dict(position)

    def own_states(self, states: Mapping[str, Sequence[Tensor]]) -> dict[str, tuple[Tensor, ...]]:
        """This process's part of what `gather_states` gave."""
        part = slice(self.rank, None, self.processes)
        return {name: tuple(each[:, part] for each in held) for name, held in states.items()}

    def __iter__(self) -> Iterator[Batch]:
        for batch in self.loader:
            yield self._part(batch)

    def _part(self, batch: Batch) -> Batch:
        rows = torch.arange(self.rank, len(batch.lengths), self.processes)
        total = self.count(batch.targets)
        empty = not len(rows)
        if empty:
            rows = torch.zeros(1, dtype=torch.int64)  # a part of the average, but of no weight
        axis = _sequences(batch)
        targets = batch.targets.index_select(axis, rows)
        own = 0 if empty else self.count(targets)
        return Batch(
            batch.x[:, rows],
            batch.lengths[rows],
            targets,
            None if batch.reset is None else batch.reset[:, rows],
            own * self.processes / total if total else 0.0,
        )


class SizedShards(Shards):
    """Shards of a loader that knows how many batches it has."""

    def __len__(self) -> int:
        assert isinstance(self.loader, Sized)
        return len(self.loader)


def share_out(loader: Loader, rank: int, processes: int, count: Callable[[Tensor], int]) -> Loader:
    """The loader itself for one process, else its `Shards`."""
    if processes == 1:
        return loader
    kind = SizedShards if isinstance(loader, Sized) else Shards
    return kind(loader, rank, processes, count)


def _sequences(batch: Batch) -> int:
    """The axis of the targets along which the sequences lie."""
    T, B = batch.x.shape[:2]
    return 1 if batch.targets.dim() > 1 and batch.targets.shape[:2] == (T, B) else 0


def gather(begun: int, right: list[bool], *, empty: bool) -> tuple[int, list[bool]]:
    """What every process counted, together: a sum, and the sequences in their order.

    Args:
        begun: sequences of this process.
        right: whether each is right.
        empty: whether this process has none, and a stand-in was counted.
    """
    every: list[tuple[int, list[bool]]] = [(0, [])] * distributed.get_world_size()
    distributed.all_gather_object(every, (0, []) if empty else (begun, right))
    longest = max(len(part) for _, part in every)
    rows = [part[i] for i in range(longest) for _, part in every if i < len(part)]
    return sum(count for count, _ in every), rows


def add_up(values: Tensor) -> Tensor:
    """The sum over all processes."""
    total = values.clone()
    distributed.all_reduce(total)
    return total


def gather_states(states: Mapping[str, Sequence[Tensor]]) -> dict[str, tuple[Tensor, ...]]:
    """The states of all processes' streams, (layers, B, size) each, in the order of the batch."""
    every: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(every, dict(states))
    whole = {}
    for name, held in states.items():
        found = []
        for index, each in enumerate(held):
            parts = [one[name][index] for one in every]
            total = each.new_empty(len(each), sum(part.shape[1] for part in parts), *each.shape[2:])
            for number, part in enumerate(parts):
                total[:, number :: len(parts)] = part
            found.append(total)
        whole[name] = tuple(found)
    return whole
