"""Names with values on the command line: ``--size projection=32``, ``--with length=500``."""

from __future__ import annotations

from typing import Any

from cellwright.errors import UsageError


def parse_sizes(given: list[str]) -> dict[str, int]:
    """``["projection=32"]`` as ``{"projection": 32}``.

    Raises:
        UsageError: something else was given.
    """
    sizes = {}
    for each in given:
        name, separator, number = each.partition("=")
        if not separator or not name or not number.isascii() or not number.isdigit():
            raise UsageError(f"--size: expected NAME=N, as projection=32, got {each!r}")
        sizes[name.strip()] = int(number)
    return sizes


def parse_values(given: list[str], said: str) -> dict[str, Any]:
    """``["length=500", "noise=0.1", "init=orthogonal", "peephole=false"]`` as a dict.

    Raises:
        UsageError: something else was given.
    """
    values: dict[str, Any] = {}
    for each in given:
        name, separator, text = each.partition("=")
        if not separator or not name or not text:
            raise UsageError(f"{said}: expected NAME=VALUE, got {each!r}")
        values[name.strip()] = _value(text.strip())
    return values


def _value(text: str) -> Any:
    for read in (int, float):
        try:
            return read(text)
        except ValueError:
            continue
    return {"true": True, "false": False}.get(text.lower(), text)
