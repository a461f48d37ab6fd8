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
    "fma": lambda a, b, c: a * b + c,
    "square": torch.square,
    "sqrt": torch.sqrt,
    "rsqrt": torch.rsqrt,
    "abs": torch.abs,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "relu": torch.relu,
    "exp": torch.exp,
    "log": torch.log,
    "sin": torch.sin,
    "cos": torch.cos,
    "log_sigmoid": functional.logsigmoid,
    "softplus": lambda v: -functional.logsigmoid(-v),
    "less": torch.lt,
    "less_equal": torch.le,
    "greater": torch.gt,
    "greater_equal": torch.ge,
    "equal": torch.eq,
    "where": torch.where,
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
        like: the input, whose dtype, device and space values have.
    """

    def __init__(self, algebra: Algebra, sizes: Mapping[str, int], like: Tensor):
        self.algebra = algebra
        self._sizes = sizes
        self._like = like
        self._space = tuple(like.shape[3:])
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
            environment[i] if i in environment else self._value(i, environment) for i in each.inputs
        ]
        if each.op in ("matvec", "matvec_transposed"):
            precision = dict(each.attributes).get("precision", "fp32")
            weight = self.round(operands[0], precision)
            v = self.round(self.whole(operands[1], each.inputs[1].size), precision)
            kind = each.inputs[0].matrix
            if each.op == "matvec":
                return self.algebra.product(weight, v, kind)
            return self.algebra.transposed(weight, v, kind)
        if each.op in ("sum", "mean"):
            size = each.inputs[0].size
            total = self.algebra.total(self.whole(operands[0], size))
            return total if each.op == "sum" else total * (1.0 / self._sizes[size])
        if each.op == "expand":
            return self.whole(operands[0], each.attribute("size"))
        if each.op == "clip_gradient":
            return _ClipGradient.apply(operands[0], each.attribute("limit"))
        if each.op == "stop_gradient":
            return operands[0].detach()
        return FUNCTIONS[each.op](*operands)

    def whole(self, v: Tensor, size: str, rows: int | None = None) -> Tensor:
        """``v`` with all of its units and positions: what was left to broadcasting, written out.

        Args:
            v: a value.
            size: the name of its size.
            rows: how many rows it is to have; by default as many as it has, or none.
        """
        own = v.shape[:2] if v.dim() > 1 else (1, v.shape[-1] if v.dim() else 1)
        units = self._sizes[size] if own[1] == 1 else own[1]
        if rows is None and v.dim() < 2 and not self._space:
            return v.expand(units)
        shape = (own[0] if rows is None else rows, units, *self._space)
        return v if v.shape == shape else v.expand(shape)

    def _constant(self, value: float) -> Tensor:
        if value not in self._constants:
            like = self._like
            # Filled in where it is: a copy to a GPU would wait for it, and break a graph of CUDA's.
            self._constants[value] = torch.full((), value, dtype=like.dtype, device=like.device)
        return self._constants[value]

    def round(self, v: Tensor, precision: str) -> Tensor:
        """``v`` as a product's operand of that precision (sums are in the tensor's own)."""
        return _RoundToBfloat16.apply(v) if precision == "bf16" else v
