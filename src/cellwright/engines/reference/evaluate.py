"""Evaluates an expression graph with ordinary torch operations, one node at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

from cellwright.engines.reference.algebra import Algebra
from cellwright.ir import Node, topological

FUNCTIONS: Mapping[str, Callable[..., Tensor]] = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "div": torch.div,
    "neg": torch.neg,
    "square": torch.square,
    "sqrt": torch.sqrt,
    "abs": torch.abs,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "relu": torch.relu,
    "exp": torch.exp,
    "log": torch.log,
    "log_sigmoid": functional.logsigmoid,
    "softplus": lambda v: -functional.logsigmoid(-v),
    "less": torch.lt,
    "less_equal": torch.le,
    "greater": torch.gt,
    "greater_equal": torch.ge,
    "equal": torch.eq,
    "where": torch.where,
    "expand": lambda v: v,  # broadcasting does it
}


class _ClipGradient(torch.autograd.Function):
    """Identity whose gradient is limited; the table's rule, for runs under torch's autograd."""

    generate_vmap_rule = True

    @staticmethod
    def forward(v: Tensor, limit: float) -> Tensor:
        return v.clone()

    @staticmethod
    def setup_context(ctx: torch.autograd.function.FunctionCtx, inputs, output) -> None:  # type: ignore[no-untyped-def]
        ctx.limit = inputs[1]  # type: ignore[attr-defined]

    @staticmethod
    def backward(ctx, g: Tensor):  # type: ignore[no-untyped-def]
        return g.clamp(-ctx.limit, ctx.limit), None


class _RoundToBfloat16(torch.autograd.Function):
    """Rounding of a product's operand; its gradient passes unchanged."""

    generate_vmap_rule = True

    @staticmethod
    def forward(v: Tensor) -> Tensor:
        return v.to(torch.bfloat16).to(v.dtype)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
        return None

    @staticmethod
    def backward(ctx, g: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        return g


@lru_cache(maxsize=4096)
def _order(roots: tuple[Node, ...]) -> list[Node]:
    return topological(roots)


class Evaluator:
    """Evaluates nodes into an environment that maps them to tensors.

    Args:
        algebra: the meaning of ``@``.
        sizes: numbers of units by name.
        like: a tensor whose dtype and device constants take.
    """

    def __init__(self, algebra: Algebra, sizes: Mapping[str, int], like: Tensor):
        self.algebra = algebra
        self._sizes = sizes
        self._like = like
        self._constants: dict[float, Tensor] = {}

    def evaluate(self, nodes: Iterable[Node], environment: dict[Node, Tensor]) -> None:
        """Add the value of each of ``nodes``; what they read is there or is constant."""
        for each in nodes:
            if each not in environment:
                environment[each] = self._value(each, environment)

    def complete(self, roots: Iterable[Node], environment: dict[Node, Tensor]) -> list[Tensor]:
        """Values of ``roots``, computing all that they need beyond ``environment``."""
        roots = tuple(roots)
        self.evaluate(_order(roots), environment)
        return [environment[root] for root in roots]

    def _value(self, each: Node, environment: Mapping[Node, Tensor]) -> Tensor:
        if each.op == "constant":
            return self._constant(each.attribute("value"))
        if each.op == "reciprocal_size":
            return self._constant(1.0 / self._sizes[each.attribute("size")])
        operands = [
            environment[i] if i in environment else self._value(i, environment)
            for i in each.inputs
        ]
        if each.op in ("matvec", "matvec_transposed"):
            operands = self._rounded(operands, each)
            multiply = (
                self.algebra.product if each.op == "matvec" else self.algebra.transposed
            )
            return multiply(*operands, each.inputs[0].matrix)
        if each.op == "sum":
            return self.algebra.total(*operands)
        if each.op == "mean":
            return self.algebra.total(*operands) * (1.0 / self._sizes[each.inputs[0].size])
        if each.op == "clip_gradient":
            return _ClipGradient.apply(operands[0], each.attribute("limit"))
        return FUNCTIONS[each.op](*operands)

    def _constant(self, value: float) -> Tensor:
        if value not in self._constants:
            like = self._like
            self._constants[value] = torch.tensor(value, dtype=like.dtype, device=like.device)
        return self._constants[value]

    def _rounded(self, operands: list[Tensor], each: Node) -> list[Tensor]:
        precision = dict(each.attributes).get("precision", "fp32")
        return [self.round(v, precision) for v in operands]

    def round(self, v: Tensor, precision: str) -> Tensor:
        """``v`` as a product's operand of that precision (sums are in the tensor's own)."""
        return _RoundToBfloat16.apply(v) if precision == "bf16" else v
