"""How the commands speak: one console for results, one for errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shlex import quote
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

out = Console(highlight=False)


def say(text: str = "") -> None:
    """Print a line as it is: no markup is read into a user's paths."""
    out.print(Text(text), soft_wrap=True)


def plural(count: int, what: str) -> str:
    """A number of things, as "1 layer" or "2,000 layers"."""
    return f"{count:,} {what}{'s' * (count != 1)}"


def warn(text: str) -> None:
    """Print a warning as it is, on stderr."""
    Console(stderr=True, highlight=False).print(Text(f"Warning: {text}"), soft_wrap=True)


def complain(text: str) -> None:
    """Print an error as it is, on stderr."""
    Console(stderr=True, highlight=False).print(Text(f"Error: {text}"), soft_wrap=True)


@contextmanager
def on_interrupt(advice: str) -> Iterator[None]:
    """End the process with 130 where the block is interrupted, and say how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        complain(f"interrupted; {advice}")
        raise SystemExit(130) from None


def to_resume(folder: Path) -> str:
    """How a run of ``cellwright train`` is gone on with."""
    return f"to go on: cellwright train --resume --output {quote(str(folder))}"


def table(columns: dict[str, str], rows: list[list[str]], title: str | None = None) -> None:
    """Print rows under their columns' names.

    Args:
        columns: name -> "left" or "right".
        rows: cells as text.
        title: a line above.
    """
    shown = Table(title=title, title_justify="left", title_style="", header_style="bold", box=None)
    for index, (name, side) in enumerate(columns.items()):
        justify: Any = side
        shown.add_column(name, justify=justify, overflow="fold", no_wrap=index == 0)
    for row in rows:
        shown.add_row(*map(Text, row))
    out.print(shown)
