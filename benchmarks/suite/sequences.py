"""LSTM and GRU over whole sequences against torch.nn; bfloat16 against float32."""

from __future__ import annotations

import torch

import cellwright as cw
from cellwright.apps.bench_measure import interleave
from cellwright.apps.bench_shapes import Shape
from cellwright.apps.bench_sides import Sample, Work, measure, multiplications, side
from suite.part import Part, Settings, geometric_mean, milliseconds

STACKED = Shape(100, 32, 128, 128)
LARGE = (Shape(100, 32, 512, 512), Shape(50, 128, 1024, 1024))
MODES = ("train", "infer")
WORDS = {"train": "training", "infer": "inference"}

# cell -> mode -> least geometric mean, least ratio of any shape (None: no such bar)
LEAST = {
    "lstm": {"train": (1.6, 1.0), "infer": (1.3, 0.95)},
    "gru": {"train": (4.0, 2.0), "infer": (3.0, None)},
}
LEAST_SHARE = {"train": 0.75, "infer": 0.80}


def lstm(settings: Settings) -> Part:
    part, samples = _against_torch("lstm", settings)
    for mode, least in LEAST_SHARE.items():
        for shape in LARGE:
            found = [s for s in samples if s.shape == shape and s.mode == mode]
            part.bar(
                f"LSTM, {WORDS[mode]} at ({shape}): at least {least:.0%} of the FMA peak",
                f"{found[0].share:.1%}" if found else "not measured",
                found[0].share >= least if found else None,
            )
    return part


def gru(settings: Settings) -> Part:
    return _against_torch("gru", settings)[0]


def _against_torch(cell: str, settings: Settings) -> tuple[Part, list[Sample]]:
    part = Part(cell)
    spec = cw.cells.get(cell)
    part.say(f"## {cell.upper()} against torch.nn.{cell.upper()}")
    part.table(
        "T,B,I,H", "mode", "ours, ms", "torch.nn, ms", "ratio", "ours, GFLOP/s",
        "torch.nn, GFLOP/s", "peak, GFLOP/s", "ours of peak", "rounds",
    )  # fmt: skip
    cases = [(shape, 1, False, "") for shape in settings.shapes]
    stacked = settings.pick(STACKED, Shape(5, 2, 4, 4))
    cases.append((stacked, 3, True, "3 layers, both directions"))
    samples = []
    for shape, layers, bidirectional, note in cases:
        for mode in MODES:
            work = Work.of(spec, shape, layers=layers, bidirectional=bidirectional)
            each = measure(work, shape, mode, settings.seconds, note)
            samples.append(each)
            part.data.append(each.as_dict())
            part.row(
                f"{shape}{', ' * bool(note)}{note}", mode, milliseconds(each.ours),
                milliseconds(each.peer), f"{each.ratio:.2f}",
                f"{each.operations / each.ours.median / 1e9:.1f}",
                f"{each.operations / each.peer.median / 1e9:.1f}",
                f"{each.peak_flops / 1e9:.0f}", f"{each.share:.1%}", each.ours.rounds,
            )  # fmt: skip
    _judge(part, cell, samples, settings)
    return part, samples


def _judge(part: Part, cell: str, samples: list[Sample], settings: Settings) -> None:
    part.say()
    for mode, (least_mean, least_each) in LEAST[cell].items():
        here = [each for each in samples if each.mode == mode]
        mean = geometric_mean([each.ratio for each in here])
        worst = min(here, key=lambda each: each.ratio)
        at = f"{worst.shape}{', ' * bool(worst.note)}{worst.note}"
        part.say(
            f"{WORDS[mode].capitalize()}: geometric mean {mean:.2f}, worst {worst.ratio:.2f} "
            f"at ({at})."
        )
        name = f"{cell.upper()}, {WORDS[mode]}"
        known = settings.complete
        part.bar(
            f"{name}: geometric mean at least {least_mean}",
            f"{mean:.2f}",
            mean >= least_mean if known else None,
        )
        if least_each is not None:
            part.bar(
                f"{name}: no shape under {least_each}",
                f"{worst.ratio:.2f} at ({at})",
                worst.ratio >= least_each if known else None,
            )


def bf16(settings: Settings) -> Part:
    part = Part("bf16")
    part.say("## LSTM with products in bfloat16 against our float32")
    shapes = settings.pick(LARGE, [Shape(5, 2, 4, 4)])
    text = "LSTM: bf16 at least 1.5 times as fast as our fp32 at the two large shapes"
    x = torch.zeros(1, 1, 4)
    plain, narrow = (cw.nn.Recurrent("lstm", 4, 4, precision=p) for p in ("fp32", "bf16"))
    engine = cw.explain(narrow, x)
    if engine.engine != cw.explain(plain, x).engine:
        part.say(f"\nSkipped: bf16 runs on the {engine.engine} engine ({engine.reason}).")
        part.bar(text, "not measured", None)
        return part
    part.table("T,B,I,H", "mode", "bf16, ms", "fp32, ms", "ratio", "bf16, GFLOP/s")
    ratios = []
    for shape in shapes:
        for mode in MODES:
            torch.manual_seed(0)
            x, gradient = (
                torch.randn(shape.T, shape.B, shape.I),
                torch.randn(shape.T, shape.B, shape.H),
            )
            layers = {
                name: cw.nn.Recurrent("lstm", shape.I, shape.H, precision=name)
                for name in ("bf16", "fp32")
            }
            training = mode == "train"
            times = interleave(
                {name: side(each, x, gradient, training) for name, each in layers.items()},
                settings.seconds,
            )
            work = 2 * shape.T * shape.B * multiplications(layers["bf16"], training=training)
            ratios.append(times["fp32"].median / times["bf16"].median)
            part.row(
                shape, mode, milliseconds(times["bf16"]), milliseconds(times["fp32"]),
                f"{ratios[-1]:.2f}", f"{work / times['bf16'].median / 1e9:.1f}",
            )  # fmt: skip
            timings = {name: each.as_dict() for name, each in times.items()}
            part.data.append({"shape": shape.as_dict(), "mode": mode, **timings})
    worst = min(ratios)
    part.bar(text, f"{worst:.2f} at worst", worst >= 1.5 if not settings.small else None)
    return part
