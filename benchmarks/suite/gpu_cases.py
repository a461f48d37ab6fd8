"""What the GPU benchmark measures: layers, their peers, and float64 twins to check them by."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import cellwright as cw
from cellwright.apps.bench_sides import PythonLoop

RESETS = 0.03
"""Share of the steps at which an episode begins, in TorchRL's recipe."""


@dataclass(frozen=True)
class Case:
    """A layer at a shape.

    Attributes:
        title: what it is.
        cell: "lstm", "gru" or another of the catalogue.
        T, B, I, H: steps, rows of the batch, units of x and of the state.
        heads: blocks on the diagonal of the recurrent matrices.
        dtype: of all tensors.
        resets: whether states start afresh at some steps.
        space: extent of an image's sides, where @ is a convolution.
        members: of a population, layers with weights of their own and the same x; 0 for one layer.
    """

    title: str
    cell: str
    T: int
    B: int
    I: int
    H: int
    heads: int = 1
    dtype: torch.dtype = torch.float32
    resets: bool = False
    space: int = 0
    members: int = 0

    @property
    def name(self) -> str:
        """For tables."""
        sizes = f"{self.T}, {self.B}, {self.I}, {self.H}"
        heads = f", {self.heads} heads" if self.heads > 1 else ""
        space = f", {self.space} × {self.space}" if self.space else ""
        members = f", {self.members} members" if self.members else ""
        kind = str(self.dtype).removeprefix("torch.")
        return f"{self.title}: {self.cell} ({sizes}{heads}{space}{members}), {kind}"


def cases(smoke: bool) -> list[Case]:
    """Everything that is measured, the most important first."""
    if smoke:
        return [
            Case("heads", "lstm", 2, 2, 4, 4, 2, torch.bfloat16),
            Case("dense", "gru", 2, 2, 3, 5),
            Case("resets", "lstm", 3, 3, 3, 5, resets=True),
            Case("image", "peephole_lstm", 1, 1, 1, 2, space=4),
            Case("population", "lstm", 2, 1, 3, 4, members=2),
        ]
    half = torch.bfloat16
    return [
        *(Case("FlashRNN", "lstm", 1024, 16, 768, 768, n, half) for n in (1, 6, 12, 24)),
        *(Case("dense", cell, 512, 64, n, n, dtype=d)
          for n in (256, 512, 1024, 2048) for cell in ("lstm", "gru") for d in (half,)),
        Case("dense", "lstm", 512, 64, 512, 512),
        Case("pixels", "lstm", 784, 128, 1, 128),
        Case("one row", "lstm", 1000, 1, 1024, 1024),
        Case("resets", "lstm", 128, 128, 256, 256, resets=True),
        *(Case("catalogue", cell, 256, 64, 64, 64)
          for cell in ("lstm", "peephole_lstm", "gru_v1", "layer_norm_lstm", "slstm", "rhn")),
        Case("image", "peephole_lstm", 16, 8, 16, 32, space=64),
        Case("population", "lstm", 200, 1, 32, 32, members=64),
        Case("population", "lstm", 256, 16, 128, 128, members=32, dtype=half),
    ]  # fmt: skip


class CellLoop(nn.Module):
    """A Python loop over torch's own cell."""

    def __init__(self, cell: nn.Module):
        super().__init__()
        self.cell = cell
        self.step: Callable[..., Any] = cell

    def forward(self, x: Tensor) -> tuple[Tensor]:
        state: Any = None
        found = []
        for each in x:
            state = self.step(each, state)
            found.append(state[0] if isinstance(state, tuple) else state)
        return (torch.stack(found),)


class Padded(nn.Module):
    """torch.nn's layer on episodes: cut apart where they begin, padded, run, put together."""

    def __init__(self, layer: nn.Module, reset: Tensor):
        super().__init__()
        self.layer, self.reset = layer, reset

    def forward(self, x: Tensor) -> tuple[Tensor]:
        steps, batch = x.shape[:2]
        begins = self.reset.clone()
        begins[0] = True
        flat = begins.T.flatten()  # sequence after sequence
        episode = flat.cumsum(0) - 1
        place = torch.arange(len(flat), device=x.device)
        within = place - place[flat][episode]
        width, count = int(within.max()) + 1, int(episode[-1]) + 1
        padded = x.new_zeros(width, count, x.shape[2])
        padded[within, episode] = x.transpose(0, 1).flatten(0, 1)
        y = self.layer(padded)[0][within, episode]
        return (y.unflatten(0, (batch, steps)).transpose(0, 1),)


class WithReset(nn.Module):
    """Our layer, told where episodes begin."""

    def __init__(self, layer: nn.Module, reset: Tensor):
        super().__init__()
        self.layer, self.reset = layer, reset

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (self.layer(x, reset=self.reset)[0],)


class Population(nn.Module):
    """Layers with weights of their own, and the same input, as one call."""

    def __init__(self, layers: list[Any]):
        super().__init__()
        stacked, _ = torch.func.stack_module_state(layers)
        self.names = list(stacked)
        self.stacked = nn.ParameterList(each.detach() for each in stacked.values())
        self._layer = [layers[0]]  # it lends its structure, not its weights

    def over_members(self, run: Callable[[nn.Module, Tensor], Any], x: Tensor) -> Any:
        """Run something on the layer with every member's weights."""

        class Inner(nn.Module):
            def __init__(self, layer: nn.Module):
                super().__init__()
                self.layer = layer

            def forward(self, x: Tensor) -> Any:
                return run(self.layer, x)

        inner = Inner(self._layer[0])
        own = {f"layer.{name}": each for name, each in zip(self.names, self.stacked, strict=True)}
        return torch.func.vmap(lambda own: torch.func.functional_call(inner, own, (x,)))(own)

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (self.over_members(lambda layer, x: layer(x)[0], x),)


class OneByOne(nn.Module):
    """torch.nn's layers on the same input, one after the other."""

    def __init__(self, layers: list[nn.Module]):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (torch.stack([layer(x)[0] for layer in self.layers]),)


@dataclass
class Work:
    """A case with its tensors: what runs, and what it is compared with.

    Attributes:
        ours: our layer.
        layer: it, or what is in it.
        exact: the same weights in float64.
        peers: name -> module, or what makes it when it is its turn.
        x, gradient: the input, and the gradient of the output.
    """

    case: Case
    device: torch.device
    ours: nn.Module = field(init=False)
    layer: Any = field(init=False)
    exact: nn.Module = field(init=False)
    peers: dict[str, nn.Module] = field(init=False)
    x: Tensor = field(init=False)
    gradient: Tensor = field(init=False)

    def __post_init__(self) -> None:
        case, torch_kind = self.case, {"lstm": nn.LSTM, "gru": nn.GRU}.get(self.case.cell)
        torch.manual_seed(0)
        how: dict[str, Any] = {"device": self.device, "dtype": case.dtype}
        shape = (case.T, case.B, case.I, *[case.space] * (2 if case.space else 0))
        self.x = torch.randn(shape, **how)
        self.peers = {}
        if case.members:
            self._populate(how)
            return
        if case.space:
            self.layer = cw.nn.ConvRecurrent(case.cell, case.I, case.H, **how)
        elif torch_kind is not None and case.heads == 1 and not case.resets:
            self.layer = getattr(cw.nn, case.cell.upper())(case.I, case.H, **how)
        else:
            self.layer = cw.nn.Recurrent(case.cell, case.I, case.H, heads=case.heads, **how)
        self.ours, self.exact = self.layer, copy.deepcopy(self.layer).double()
        if case.resets:
            reset = torch.rand(case.T, case.B, device=self.device) < RESETS
            self.ours, self.exact = WithReset(self.layer, reset), WithReset(self.exact, reset)
            # Only its time is compared: torch.nn's layer has two biases.
            self.peers["cuDNN, padded"] = Padded(nn.LSTM(case.I, case.H, **how), reset)
        elif torch_kind is not None and case.heads == 1:
            self.peers["cuDNN"] = _alike(torch_kind(case.I, case.H, **how), self.layer)
            cell = nn.LSTMCell if case.cell == "lstm" else nn.GRUCell
            loop = CellLoop(cell(case.I, case.H, **how))
            self.peers["Python loop"] = _alike(loop, self.layer)
            compiled = CellLoop(cell(case.I, case.H, **how))
            compiled.step = torch.compile(compiled.cell)
            self.peers["loop over a compiled step"] = _alike(compiled, self.layer)
        else:
            self.peers["Python loop"] = PythonLoop(copy.deepcopy(self.layer))
        shape = (case.T, case.B, case.H, *[case.space] * (2 if case.space else 0))
        self.gradient = torch.randn(shape, **how)

    def _populate(self, how: dict[str, Any]) -> None:
        """A population, and as many layers of torch.nn."""
        case, count = self.case, range(self.case.members)
        layers = [getattr(cw.nn, case.cell.upper())(case.I, case.H, **how) for _ in count]
        self.layer, self.ours = layers[0], Population(layers)
        self.exact = copy.deepcopy(self.ours).double()
        torch_kind = {"lstm": nn.LSTM, "gru": nn.GRU}[case.cell]
        self.peers["cuDNN"] = OneByOne(
            [_alike(torch_kind(case.I, case.H, **how), each) for each in layers]
        )
        self.gradient = torch.randn((case.members, case.T, case.B, case.H), **how)

    def told(self) -> cw.nn.Explanation:
        """What runs our layer, and why."""
        if not isinstance(self.ours, Population):
            return cw.explain(self.layer, self.x)
        found = []

        def explain(layer: nn.Module, x: Tensor) -> Tensor:
            found.append(cw.explain(layer, x))
            return x

        self.ours.over_members(explain, self.x)
        return found[0]

    def call(self, module: nn.Module, training: bool) -> Callable[[], object]:
        """One call of a module: forward, and backward if training."""
        parameters = tuple(module.parameters())

        def train() -> None:
            for each in parameters:
                each.grad = None
            module(self.x)[0].backward(self.gradient)

        def infer() -> None:
            with torch.no_grad():
                module(self.x)

        return train if training else infer


def _alike(module: nn.Module, layer: nn.Module) -> nn.Module:
    with torch.no_grad():
        for theirs, own in zip(module.parameters(), layer.parameters(), strict=True):
            theirs.copy_(own)
    return module
