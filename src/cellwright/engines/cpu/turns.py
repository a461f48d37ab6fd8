"""Passes in turns: what is started in a turn has run when the next begins."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import TypeVar

T = TypeVar("T")

Turns = Generator[None, None, T]
"""A pass as it goes: it starts programs, waits until they have run, and so on to its result."""


def complete(turns: Turns[T], run: Callable[[], object] | None = None) -> T:
    """The result of a pass.

    Args:
        turns: the pass.
        run: runs what has been started; None where programs run at once.
    """
    while True:
        try:
            next(turns)
        except StopIteration as ended:
            found: T = ended.value
            return found
        if run is not None:
            run()


def together(passes: Sequence[Turns[T]], run: Callable[[], object]) -> list[T]:
    """The results of passes, of which a turn of each has been started when ``run`` is called."""
    found: dict[int, T] = {}
    while len(found) < len(passes):
        for number, each in enumerate(passes):
            if number not in found:
                try:
                    next(each)
                except StopIteration as ended:
                    found[number] = ended.value
        run()
    return [found[number] for number in range(len(passes))]
