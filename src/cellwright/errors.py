"""The errors that cellwright raises; all of them derive from :class:`CellwrightError`."""

from __future__ import annotations


class CellwrightError(Exception):
    """Base of every error that cellwright raises on purpose."""


class CellError(CellwrightError):
    """A cell's equations are wrong; the message names the file and the line."""


class InputError(CellwrightError, ValueError, RuntimeError):
    """An argument to a layer or a function is wrong.

    It is a ``ValueError`` and a ``RuntimeError`` at once, because ``torch.nn`` raises
    one or the other for the same mistakes and code written for it catches either.
    """


class InputTypeError(InputError, TypeError):
    """An argument to a layer or a function has the wrong type."""


class DataError(CellwrightError):
    """A data file is wrong; the message names the file and the line."""


class CheckpointError(CellwrightError):
    """A run's folder or its weights cannot be used."""


class UsageError(CellwrightError):
    """A command line, a name or an option is wrong."""


class EngineError(CellwrightError):
    """An engine cannot do what was asked of it."""
