"""A population of LSTMs in one call against as many calls of torch.nn.LSTM."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

import cellwright as cw
from cellwright.apps.bench_measure import interleave
from cellwright.apps.bench_sides import AGREE
from suite.part import Part, Settings, milliseconds

LEAST = 10.0


def population(settings: Settings) -> Part:
    count, units, steps = settings.pick((64, 32, 200), (3, 4, 5))
    part = Part("population")
    part.say(
        f"## {count} LSTMs, I = H = {units}, B = 1, T = {steps}: one call under torch.func.vmap"
    )
    torch.manual_seed(0)
    theirs = [torch.nn.LSTM(units, units) for _ in range(count)]
    ours = [cw.nn.LSTM(units, units) for _ in range(count)]
    for own, peer in zip(ours, theirs, strict=True):
        own.load_state_dict(peer.state_dict())
    x = torch.randn(count, steps, 1, units)
    gradient = torch.randn(count, steps, 1, units)
    weights, _ = torch.func.stack_module_state(ours)

    def one(weights: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(ours[0], weights, (x,))[0]

    together = torch.func.vmap(one)

    def single(x: Tensor) -> Tensor:
        return torch.stack([layer(each)[0] for layer, each in zip(theirs, x, strict=True)])

    own_leaves = list(weights.values())
    peer_leaves = [each for layer in theirs for each in layer.parameters()]
    apart = float((together(weights, x) - single(x)).abs().max().item())
    if apart > AGREE:
        raise AssertionError(f"the two sides differ by {apart:.2g}")
    part.table("mode", "ours, ms", f"{count} calls of torch.nn.LSTM, ms", "ratio", "rounds")
    for mode in ("infer", "train"):
        times = interleave(
            {
                "ours": _side(lambda: together(weights, x), own_leaves, gradient, mode),
                "peer": _side(lambda: single(x), peer_leaves, gradient, mode),
            },
            settings.seconds,
        )
        ratio = times["peer"].median / times["ours"].median
        part.row(
            mode, milliseconds(times["ours"]), milliseconds(times["peer"]), f"{ratio:.2f}",
            times["ours"].rounds,
        )  # fmt: skip
        timings = {name: each.as_dict() for name, each in times.items()}
        part.data.append({"mode": mode, "ratio": ratio, **timings})
        part.bar(
            f"Population of 64 LSTMs, {mode}: at least {LEAST:g} times as fast as 64 calls",
            f"{ratio:.2f}",
            None if settings.small else ratio >= LEAST,
        )
    return part


def _side(
    run: Callable[[], Tensor], leaves: list[Tensor], gradient: Tensor, mode: str
) -> Callable[[], None]:
    def infer() -> None:
        with torch.no_grad():
            run()

    def train() -> None:
        for each in leaves:
            each.grad = None
        run().backward(gradient)

    return train if mode == "train" else infer
