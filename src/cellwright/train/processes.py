"""Several processes on one machine that train one model, by Lightning's DDP over gloo.

The first process is the one that was called. It starts the others by a command that goes on with
the run in a folder; each reads its data anew, so nothing has to be sent to it.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import IO, Any

import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import distributed

from cellwright.errors import UsageError

READY = "ready"
"""What a process writes when it has read its data."""

_WAIT = timedelta(minutes=10)  # for a process that is late at a sum


def rank() -> int:
    """Number of this process; 0 in the one that was called."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def strategy(devices: int) -> Any:
    """Lightning's strategy for so many processes."""
    return "auto" if devices == 1 else DDPStrategy(process_group_backend="gloo", timeout=_WAIT)


@contextmanager
def beside(command: Sequence[str], devices: int) -> Iterator[None]:
    """Run the block as process 0, and ``command`` as processes 1 and up.

    Raises:
        UsageError: one of the others failed; the message has what it said last.
    """
    if devices == 1 or rank():
        yield
        return
    shared = {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "NODE_RANK": "0",
        "WORLD_SIZE": str(devices),
        # Where this is not said, Lightning changes the number of threads.
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
    }  # fmt: skip
    others: list[_Other] = []
    before = {name: os.environ.get(name) for name in (*shared, "LOCAL_RANK")}
    try:
        for number in range(1, devices):
            others.append(_Other(command, {**shared, "LOCAL_RANK": str(number)}, number))
        for other in others:
            other.wait_until_ready()
        os.environ.update(shared, LOCAL_RANK="0")
        yield
        for other in others:
            other.wait()
    except RuntimeError as error:
        # gloo says only that a peer is gone; the peer has said why.
        for other in others:
            other.raise_if_failed(error)
        raise
    finally:
        # A later training in this process has other processes beside it.
        if distributed.is_initialized():
            distributed.destroy_process_group()
        for other in others:
            other.end()
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})


class _Other:
    """One of the other processes."""

    def __init__(self, command: Sequence[str], environment: dict[str, str], number: int):
        self.number = number
        self.said: IO[str] = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed by `end`)
        self.process = subprocess.Popen(
            list(command), env={**os.environ, **environment}, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=self.said, text=True,
        )  # fmt: skip

    def wait_until_ready(self) -> None:
        """Wait for the word; `UsageError` where the process ends without it."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.strip() == READY:
                return
        self.process.wait()
        raise self._failure()

    def wait(self) -> None:
        """Wait for its end."""
        if self.process.wait():
            raise self._failure()

    def raise_if_failed(self, error: Exception) -> None:
        """`UsageError` if this is the process that failed, and not only lost the others."""
        try:
            failed = self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            return
        if failed:
            raise self._failure() from error

    def _failure(self) -> UsageError:
        self.said.seek(0)
        lines = [line.strip() for line in self.said if line.strip()]
        last = lines[-1].removeprefix("Error: ") if lines else "it said nothing"
        return UsageError(f"--devices: process {self.number} of the training ended: {last}")

    def end(self) -> None:
        """Stop it, if it still runs."""
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait()
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()
        self.said.close()


def end_with_the_first() -> None:
    """End this process when its input does: the first process, which holds it, is gone."""

    def wait() -> None:
        sys.stdin.read()
        os._exit(1)  # from whatever it waits for

    threading.Thread(target=wait, daemon=True).start()


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port
