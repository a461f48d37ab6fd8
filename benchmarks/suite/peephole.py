"""A peephole LSTM, training: against a Python loop, torch.compile of it, and jax.lax.scan."""

from __future__ import annotations

from time import perf_counter

import numpy as np
import torch
from peers.peephole_loop import PeepholeLSTM

import cellwright as cw
from cellwright.apps.bench_measure import Side, interleave
from cellwright.apps.bench_shapes import Shape
from cellwright.apps.bench_sides import PythonLoop, Work, recurrent, side
from suite.part import Part, Settings, milliseconds

LOOP, GENERIC = "a Python loop", "a loop made from the equations"
COMPILED, SCAN = "torch.compile of the Python loop", "jax.lax.scan"
LEAST = {LOOP: 40.0, COMPILED: 4.0, SCAN: 3.0}


def peephole(settings: Settings) -> Part:
    shape = settings.pick(Shape(100, 16, 128, 128), Shape(5, 2, 8, 8))
    part = Part("peephole")
    part.say(f"## The peephole LSTM at ({shape}), training")
    part.say()
    torch.manual_seed(0)
    spec = cw.cells.get("peephole_lstm")
    ours = recurrent(spec, shape.I, shape.H)
    x = torch.randn(shape.T, shape.B, shape.I)
    gradient = torch.randn(shape.T, shape.B, shape.H)

    def pair(peer: torch.nn.Module, name: str) -> Work:
        work = Work(ours, peer, name, x, gradient).with_equal_weights()
        work.difference(training=True)
        return work

    loop = PeepholeLSTM(shape.I, shape.H)
    generic = PythonLoop(recurrent(spec, shape.I, shape.H))
    sides: dict[str, Side] = {
        "ours": side(ours, x, gradient, True),
        LOOP: side(pair(loop, LOOP).peer, x, gradient, True),
        GENERIC: side(pair(generic, GENERIC).peer, x, gradient, True),
    }
    compiled = torch.compile(loop)
    begun = perf_counter()
    try:
        pair(compiled, COMPILED)
        sides[COMPILED] = side(compiled, x, gradient, True)
        part.say(f"torch.compile took {perf_counter() - begun:.0f} s to compile the loop.")
    except torch._inductor.exc.InductorError as error:
        part.say(f"torch.compile is left out: {str(error).splitlines()[0]}")
    scan = _scan(part, ours, x, gradient)
    if scan is not None:
        sides[SCAN] = scan
    # jax has threads of its own, and torch's go on spinning for a while after a call.
    times = interleave(sides, 5 * settings.seconds, settle=scan is not None)
    part.table("what", "ms", "ratio", "rounds")
    for name, timing in times.items():
        ratio = timing.median / times["ours"].median
        part.row(name, milliseconds(timing), f"{ratio:.2f}", timing.rounds)
        part.data.append({"name": name, "ratio": ratio, **timing.as_dict()})
    for name, least in LEAST.items():
        text = f"Peephole LSTM, training: at least {least:g} times as fast as {name}"
        if name not in times:
            part.bar(text, "not measured", None)
            continue
        ratio = times[name].median / times["ours"].median
        part.bar(text, f"{ratio:.2f}", None if settings.small else ratio >= least)
    return part


def _scan(
    part: Part, ours: torch.nn.Module, x: torch.Tensor, gradient: torch.Tensor
) -> Side | None:
    """The same layer in jax, where it is installed and agrees."""
    try:
        from peers import peephole_scan
    except ModuleNotFoundError as error:
        part.say(f"{SCAN} is left out: {error.name} is not installed.")
        return None
    names = [name.removesuffix("_l0") for name, _ in ours.named_parameters()]
    weights = {
        name: each.detach().numpy() for name, each in zip(names, ours.parameters(), strict=True)
    }
    call = peephole_scan.training(weights, x.numpy(), gradient.numpy())
    y, found = call()
    own = ours(x)[0]
    wanted = torch.autograd.grad(own, tuple(ours.parameters()), gradient)
    pairs = [(own, y), *zip(wanted, (found[name] for name in names), strict=True)]
    for mine, theirs in pairs:
        expected = mine.detach().numpy()
        np.testing.assert_allclose(
            np.asarray(theirs), expected, rtol=0, atol=1e-3 * np.abs(expected).max()
        )
    return call
