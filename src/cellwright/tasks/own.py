"""Errors in a user's own task as one message with the line, in the place of a long traceback."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cellwright import tasks
from cellwright.errors import CellwrightError, UsageError


@contextmanager
def errors_named(reference: str | None) -> Iterator[None]:
    """Inside the block, what code of the task's file raises becomes a `UsageError`.

    Errors in which the file has no part stay what they are.

    Args:
        reference: of the task; None, or a name, where there is no file of the user's.

    Raises:
        UsageError: the file's code raised an error that is not one of ours.
    """
    try:
        yield
    except CellwrightError:
        raise
    except Exception as error:
        if reference is None or not tasks.is_reference(reference):
            raise
        path = Path(reference.rpartition(".py")[0] + ".py").expanduser().resolve()
        lines = [
            frame.lineno
            for frame in traceback.extract_tb(error.__traceback__)
            if frame.filename == str(path)
        ]
        if not lines:
            raise
        raise UsageError(f"{path}:{lines[-1]}: {type(error).__name__}: {error}") from error
