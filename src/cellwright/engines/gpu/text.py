"""Emitted source: lines with their indentation, and the elementary functions that they call."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path


class Text:
    """Lines of a kernel's body under construction."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._depth = 1
        self._names = 0

    def line(self, text: str = "") -> None:
        """Add a line at the present depth."""
        self.lines.append("    " * self._depth + text if text else "")

    def open_with(self, lines: Iterable[str]) -> None:
        """Put lines before all others."""
        self.lines[:0] = [f"    {each}" for each in lines]

    @contextmanager
    def block(self, head: str) -> Iterator[None]:
        """Lines that belong to ``head``."""
        self.line(head)
        self._depth += 1
        yield
        self._depth -= 1

    def name(self, prefix: str = "v") -> str:
        """A name that is not taken."""
        self._names += 1
        return f"{prefix}{self._names}"

    def let(self, text: str, prefix: str = "v") -> str:
        """A new name for the value of an expression."""
        name = self.name(prefix)
        self.line(f"{name} = {text}")
        return name


@lru_cache(maxsize=1)
def _elementary() -> dict[str, tuple[str, list[str]]]:
    """Name -> text and the names of other functions in it, in the order of the file."""
    text = Path(__file__).with_name("elementary.py").read_text(encoding="utf-8")
    found = {}
    for each in ast.parse(text).body:
        if isinstance(each, ast.FunctionDef):
            names = {n.id for n in ast.walk(each) if isinstance(n, ast.Name)}
            found[each.name] = (ast.get_source_segment(text, each) or "", sorted(names))
    return found


def kernel(name: str, slots: Iterable[str], numbers: Iterable[str], body: Text) -> str:
    """A kernel: its arguments are arrays, numbers that change, and what it is compiled for."""
    constants = ("BLOCK", "PRECISION")
    head = [f"    {each}," for each in (*slots, *numbers)]
    head += [f"    {each}: tl.constexpr," for each in constants]
    return "\n".join(["@kernel", f"def {name}(", *head, "):", *body.lines])


def module(kernels: Iterable[str], functions: Iterable[str], *, interpreted: bool) -> str:
    """A whole module: imports, the elementary functions that are used, the kernels."""
    known = _elementary()
    needed: set[str] = set()
    waiting = list(functions)
    while waiting:
        name = waiting.pop()
        if name not in needed:
            needed.add(name)
            waiting.extend(other for other in known[name][1] if other in known)
    how = "interpreted" if interpreted else "compiled"
    parts = [
        f"import triton.language as tl\n\n"
        f"from cellwright.engines.gpu.{how} import bf16, function, kernel"
    ]
    parts += [f"@function\n{text}" for name, (text, _) in known.items() if name in needed]
    return "\n\n\n".join([*parts, *kernels]) + "\n"
