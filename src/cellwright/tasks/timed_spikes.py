"""Precise timing: generating timed spikes (GTS), learnt until a test is passed."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from cellwright import cells
from cellwright.errors import CheckpointError, UsageError
from cellwright.nn import Recurrent
from cellwright.tasks.periodic import spike
from cellwright.tasks.task import Case, Experiment, Published
from cellwright.tasks.timing import GERS, SPIKE_TOLERANCE, until_wrong, within_tolerance
from cellwright.train import storage
from cellwright.train.batches import seed_everything
from cellwright.train.clipping import clip
from cellwright.train.measure import threads
from cellwright.train.settings import check_number, check_whole

if TYPE_CHECKING:
    from rich.console import Console

KIND = "cellwright-timed-spikes"
TEST_SPIKES = 1_000
OUTPUTS = ("linear", "logistic")
_SECONDS = 10.0  # between two records of how far training has come


@dataclass(frozen=True)
class TimedSpikesSettings:
    """Settings of a run; by default the net is the paper's, 17 weights with the 3 peepholes.

    Attributes:
        cell: a name of the catalogue, or "path/to/file.py:cell_name".
        hidden_size: units of it.
        init, gradient: of the layer, see `cellwright.nn.Recurrent`.
        output: the unit above the cells, "linear" or "logistic".
        head: its weights begin uniform in +- this.
        period: steps from spike to spike.
        cycles: after so many spikes a stream of training ends, if none was wrong.
        streams: of training; after so many it is given up.
        learning_rate, momentum: of gradient descent, once a stream.
        gradient_clip: largest norm of the gradient.
        seed: of the weights.
        threads: torch's threads.

    Raises:
        UsageError: a value is out of range.
    """

    cell: str = "peephole_lstm_unsquashed"
    hidden_size: int = 1
    init: str = "uniform:0.1+bias.i:0+bias.f:2+bias.o:-2"
    gradient: str = "truncated"
    output: str = "linear"
    head: float = 0.1
    period: int = 10
    cycles: int = 5
    streams: int = 30_000
    learning_rate: float = 0.05
    momentum: float = 0.5
    gradient_clip: float = 1.0
    seed: int = 0
    threads: int = 1

    def __post_init__(self) -> None:
        if not isinstance(self.cell, str) or not self.cell:
            raise UsageError(f"--cell: expected a name or path.py:cell, got {self.cell!r}")
        if self.output not in OUTPUTS:
            raise UsageError(f"--output: expected one of {', '.join(OUTPUTS)}, got {self.output!r}")
        for name in ("hidden_size", "cycles", "streams", "threads"):
            check_whole(name, getattr(self, name), 1)
        check_whole("period", self.period, 2)
        check_whole("seed", self.seed, 0, 2**32 - 1)
        check_number("head", self.head, 0.0, float("inf"), "high")
        check_number("learning_rate", self.learning_rate, 0.0, float("inf"), "both")
        check_number("momentum", self.momentum, 0.0, 1.0, "high")
        check_number("gradient_clip", self.gradient_clip, 0.0, float("inf"), "both")


class Generator(nn.Module):
    """A recurrent layer without any input, and one output unit.

    Args:
        settings: of the layer and the unit.

    Example:
        >>> Generator(TimedSpikesSettings())(20).shape
        torch.Size([20, 1, 1])
    """

    def __init__(self, settings: TimedSpikesSettings):
        super().__init__()
        self.recurrent = Recurrent(
            cells.load(settings.cell), 1, settings.hidden_size, init=settings.init,
            gradient=settings.gradient,
        )  # fmt: skip
        self.head = nn.Linear(settings.hidden_size, 1)
        for weight in self.head.parameters():
            nn.init.uniform_(weight, -settings.head, settings.head)
        self.logistic = settings.output == "logistic"

    def forward(self, steps: int) -> Tensor:
        """What it generates from a state of zeros, (steps, 1, 1)."""
        y: Tensor = self.head(self.recurrent(torch.zeros(steps, 1, 1))[0])
        return y.sigmoid() if self.logistic else y


class Learning:
    """A generator on its way: streams of training and tests by turns.

    Args:
        settings: of the run.

    Attributes:
        streams: trained on so far.
        most: spikes in a row that it has generated rightly at its best, from the beginning of a
            stream.
        solved: whether it has passed the test.
    """

    def __init__(self, settings: TimedSpikesSettings):
        self.settings = settings
        seed_everything(settings.seed, 0)
        self.generator = Generator(settings)
        self.optimiser = torch.optim.SGD(
            self.generator.parameters(), settings.learning_rate, settings.momentum
        )
        self.streams = self.most = 0
        self.solved = False
        wave = torch.from_numpy(spike(settings.period)).float()
        self._targets = wave.repeat(TEST_SPIKES)[:, None, None]

    def advance(self) -> None:
        """Pass the test, or learn from one more stream.

        The loss is half the square error summed over the stream, its first wrong output included,
        with which the stream ends.

        Raises:
            UsageError: training has diverged.
        """
        steps = self.settings.cycles * self.settings.period
        outputs = self.generator(steps)
        counted, right = self._judge(outputs)
        # A stream without a fault is also the beginning of the test, for nothing is drawn.
        if right == self.settings.cycles and self._test() == TEST_SPIKES:
            self.solved = True
            return
        errors = (outputs - self._targets[:steps])[counted]
        self.optimiser.zero_grad()
        (0.5 * errors.square().sum()).backward()
        if not clip(self.generator.parameters(), self.settings.gradient_clip).finite:
            raise UsageError(
                f"the gradient of stream {self.streams + 1} is not finite: training has diverged; "
                f"try a smaller --learning-rate than {self.settings.learning_rate:g}"
            )
        self.optimiser.step()
        self.streams += 1

    def _judge(self, outputs: Tensor) -> tuple[Tensor, int]:
        """Which steps come before the stream ends, and how many spikes are right by then."""
        right = within_tolerance(outputs, self._targets[: len(outputs)], SPIKE_TOLERANCE)
        count = int(right.long().cumprod(0).sum()) // self.settings.period
        self.most = max(self.most, count)
        return until_wrong(right), count

    def _test(self) -> int:
        """How many of 1,000 spikes are right before the first wrong output."""
        with torch.no_grad():
            return self._judge(self.generator(TEST_SPIKES * self.settings.period))[1]

    def state(self) -> dict[str, Any]:
        """All that is needed to go on, as `load` takes it."""
        return {
            "settings": asdict(self.settings),
            "generator": dict(self.generator.state_dict()),
            "optimiser": self.optimiser.state_dict(),
            **{name: getattr(self, name) for name in ("streams", "most", "solved")},
        }

    def load(self, path: Path) -> None:
        """Go on from a file of `state`.

        Raises:
            CheckpointError: it is damaged, or of a run with other settings.
        """
        state = storage.load(path, KIND)
        if state["settings"] != asdict(self.settings):
            raise CheckpointError(f"{path}: it belongs to a run with other settings")
        self.generator.load_state_dict(state["generator"])
        self.optimiser.load_state_dict(state["optimiser"])
        for name in ("streams", "most", "solved"):
            setattr(self, name, state[name])


def run(
    settings: TimedSpikesSettings, folder: Path, console: Console | None = None
) -> dict[str, Any]:
    """Train until the test is passed or the streams are used up; goes on where it was killed."""
    started = time.perf_counter()
    path = folder / "progress.safetensors"
    with threads(settings.threads):
        learning = Learning(settings)
        if path.exists():
            learning.load(path)
        saved = time.monotonic()
        while not learning.solved and learning.streams < settings.streams:
            learning.advance()
            if time.monotonic() - saved >= _SECONDS:
                storage.save(path, KIND, learning.state())
                saved = time.monotonic()
                if console is not None:
                    console.print(
                        f"{learning.streams} streams, at most {learning.most} spikes",
                        highlight=False,
                    )
        storage.save(path, KIND, learning.state())
    return {
        "streams": learning.streams,
        "solved": learning.solved,
        "most_spikes": learning.most,
        "parameters": sum(each.numel() for each in learning.generator.parameters()),
        "seconds": round(time.perf_counter() - started, 3),
    }


_READ = "read in a second source; logistic output, weights change at every step, rate 1e-5"

timed_spikes = Experiment(
    name="timed-spikes",
    title="Generate a spike every so many steps, without any input (GTS)",
    source=GERS,
    settings_type=TimedSpikesSettings,
    run=run,
    metric="streams",
    report=("solved", "streams", "most_spikes"),
    cases=tuple(
        Case(f"{name}, {output} output", {"output": output}, {"cell": cell})
        for output in OUTPUTS
        for name, cell in (
            ("peepholes", "peephole_lstm_unsquashed"),
            ("no peepholes", "lstm_unsquashed"),
        )
    ),
    published=(
        Published("peepholes", 1, GERS, _READ, measure="solved"),
        Published("no peepholes", 0, GERS, _READ, measure="solved"),
    ),
)
