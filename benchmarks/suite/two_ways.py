"""A layer whose loops run at the same time, against the same loops one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from cellwright.apps.bench_measure import interleave
from suite.part import Part, Settings, milliseconds

COLUMNS = ("mode", "same time, ms", "in turn, ms", "ratio", "taken", "rounds")


def both_modes(
    part: Part, settings: Settings, layer: nn.Module, x: Tensor, rule: ModuleType, *, asked: Any,
    cells: Sequence[object], data: Mapping[str, Any],
) -> None:  # fmt: skip
    """Two rows of a table: training and inference.

    Args:
        part: whose table it is.
        settings: of the benchmark.
        layer: with what is compared.
        x: its input.
        rule: the module whose `are_faster` says what is taken.
        asked: what it is asked about.
        cells: the first columns.
        data: the same for the file.
    """
    for mode in ("train", "infer"):

        def run(mode: str = mode) -> list[Tensor]:
            if mode == "infer":
                with torch.no_grad():
                    return [layer(x)[0]]
            layer.zero_grad()
            y = layer(x)[0]
            y.sum().backward()
            return [y, *(each.grad for each in layer.parameters() if each.grad is not None)]

        ways = {"beside": _way(rule, True, run), "in turn": _way(rule, False, run)}
        for found, expected in zip(ways["beside"](), ways["in turn"](), strict=True):
            if not torch.equal(found, expected):
                raise AssertionError(f"{cells}, {mode}: the two ways differ")
        times = interleave(ways, settings.seconds, settle=True)
        ratio = times["in turn"].median / times["beside"].median
        word = "same time" if rule.are_faster(asked, x, keep=mode == "train") else "in turn"
        part.row(
            *cells, mode, milliseconds(times["beside"]), milliseconds(times["in turn"]),
            f"{ratio:.2f}", word, times["beside"].rounds,
        )  # fmt: skip
        timings = {name: each.as_dict() for name, each in times.items()}
        part.data.append({**data, "mode": mode, "ratio": ratio, "taken": word, **timings})


def _way(
    rule: ModuleType, beside: bool, run: Callable[[], list[Tensor]]
) -> Callable[[], list[Tensor]]:
    def side() -> list[Tensor]:
        with _always(rule, beside):
            return run()

    return side


@contextmanager
def _always(rule: Any, beside: bool) -> Iterator[None]:
    """One way, whatever the shapes."""
    original = rule.are_faster
    rule.are_faster = lambda *_, **how: beside
    try:
        yield
    finally:
        rule.are_faster = original
