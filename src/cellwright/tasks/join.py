"""A further process of a training: ``python -m cellwright.tasks.join FOLDER``."""

from __future__ import annotations

import sys

from cellwright.errors import CellwrightError
from cellwright.tasks import runs
from cellwright.train.processes import READY, end_with_the_first


def join(path: str) -> None:
    """Read the run in a folder, say that all is ready, and take part in its training."""
    end_with_the_first()
    run = runs.reopen(path)
    assert isinstance(run, runs.Run), "only a run that has not ended is joined"
    print(READY, flush=True)
    runs.take_part(run)


if __name__ == "__main__":
    try:
        join(sys.argv[1])
    except CellwrightError as error:
        sys.exit(f"Error: {error}")
