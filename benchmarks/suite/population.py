"""A population of LSTMs in one call against as many calls of torch.nn.LSTM."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import functional_call, grad, stack_module_state, vmap

import cellwright as cw
from cellwright.apps.bench_measure import interleave
from cellwright.apps.bench_sides import AGREE
from suite.part import Part, Settings, milliseconds

LEAST = 10.0
MODES = {
    "infer": "inference",
    "train": "training, autograd outside of vmap",
    "inside": "training, vmap(grad(loss))",
}


def population(settings: Settings) -> Part:
    count, units, steps = settings.pick((64, 32, 200), (3, 4, 5))
    part = Part("population")
    part.say(
        f"## {count} LSTMs, H = {units}, B = 1, T = {steps}: one call under torch.func.vmap, "
        f"against {count} calls of torch.nn.LSTM"
    )
    part.table("I", "mode", "ours, ms", "torch.nn.LSTM, ms", "ratio", "rounds")
    for width in (units, 1):
        _at(part, settings, count, width, units, steps)
    return part


def _at(part: Part, settings: Settings, count: int, width: int, units: int, steps: int) -> None:
    """The rows for one size of the input."""
    torch.manual_seed(0)
    theirs = [torch.nn.LSTM(width, units) for _ in range(count)]
    ours = [cw.nn.LSTM(width, units) for _ in range(count)]
    for own, peer in zip(ours, theirs, strict=True):
        own.load_state_dict(peer.state_dict())
    x = torch.randn(count, steps, 1, width)
    gradient = torch.randn(count, steps, 1, units)
    stacked, _ = stack_module_state(ours)
    numbers = {name: each.detach() for name, each in stacked.items()}

    def one(weights: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(ours[0], weights, (x,))[0]

    def loss(weights: dict[str, Tensor], x: Tensor, gradient: Tensor) -> Tensor:
        return (one(weights, x) * gradient).sum()

    together, gradients = vmap(one), vmap(grad(loss))

    def single(x: Tensor) -> Tensor:
        return torch.stack([layer(each)[0] for layer, each in zip(theirs, x, strict=True)])

    def inside() -> dict[str, Tensor]:
        return gradients(numbers, x, gradient)

    own_leaves = list(stacked.values())
    peer_leaves = [each for layer in theirs for each in layer.parameters()]
    peer_train = _side(lambda: single(x), peer_leaves, gradient, "train")
    own_train = _side(lambda: together(stacked, x), own_leaves, gradient, "train")
    _check("outputs", together(numbers, x), single(x))
    peer_train()
    own_train()
    for name, found in inside().items():
        expected = torch.stack([getattr(layer, name).grad for layer in theirs])
        _check(f"gradients of {name}", found, expected)
        _check(f"gradients of {name}", stacked[name].grad, expected)
    for mode, words in MODES.items():
        if mode == "infer":
            own = _side(lambda: together(stacked, x), own_leaves, gradient, mode)
            peer = _side(lambda: single(x), peer_leaves, gradient, mode)
        else:
            own, peer = (own_train if mode == "train" else inside), peer_train
        times = interleave({"ours": own, "peer": peer}, settings.seconds)
        ratio = times["peer"].median / times["ours"].median
        part.row(
            width, words, milliseconds(times["ours"]), milliseconds(times["peer"]),
            f"{ratio:.2f}", times["ours"].rounds,
        )  # fmt: skip
        timings = {name: each.as_dict() for name, each in times.items()}
        part.data.append({"input": width, "mode": mode, "ratio": ratio, **timings})
        part.bar(
            f"Population of 64 LSTMs, I = {width}, {words}: at least {LEAST:g} times as fast as "
            f"64 calls",
            f"{ratio:.2f}",
            None if settings.small else ratio >= LEAST,
        )


def _check(what: str, found: Tensor | None, expected: Tensor) -> None:
    assert found is not None
    scale = max(float(expected.abs().max().item()), 1.0)
    apart = float((found - expected).abs().max().item()) / scale
    if not apart <= AGREE:
        raise AssertionError(f"{what}: the two sides differ by {apart:.2g}")


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
