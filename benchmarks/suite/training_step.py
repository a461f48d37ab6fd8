"""The memory of one training step, measured in a process of its own.

    python training_step.py '{"side": "ours", "T": 10, ...}'

A step of two time steps comes first: it loads libraries and kernels, which stay whatever the
length of a sequence.
"""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path


def peak_bytes() -> int:
    """The most memory that this process has had in RAM.

    ru_maxrss is the same figure, but a child inherits its parent's; Linux has the process's own.
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else 1024 * most
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def forget_peak() -> None:
    """Let the peak begin again at what is in use now, on Linux."""
    if sys.platform == "linux":
        Path("/proc/self/clear_refs").write_text("5")


def main() -> None:
    import torch

    import cellwright as cw

    task = json.loads(sys.argv[1])
    torch.set_num_threads(task["threads"])
    torch.manual_seed(0)
    steps, rows, inputs, units = (task[name] for name in "TBIH")
    forget_peak()
    started = peak_bytes()
    if task["side"] == "ours":
        layer = cw.nn.Recurrent("lstm", inputs, units, save=task["save"])
    else:
        layer = torch.nn.LSTM(inputs, units)

    def train(length: int) -> None:
        layer.zero_grad(set_to_none=True)
        x = torch.randn(length, rows, inputs)
        layer(x)[0].sum().backward()

    train(2)
    layer.zero_grad(set_to_none=True)
    forget_peak()
    before = peak_bytes()
    train(steps)
    after = peak_bytes()
    print(json.dumps({"step": after - before, "above_start": after - started, "all": after}))


if __name__ == "__main__":
    main()
