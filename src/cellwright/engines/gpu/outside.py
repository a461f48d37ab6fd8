"""What surrounds the loops, over all steps at once: torch's products and sums.

Matrices that adjoin in one weight tensor are multiplied together, where what they are multiplied
with adjoins too. All sums have a fixed order. In a population every tensor has the members' axis
in front, products are torch's for many matrices at once, and whatever goes value by value is
written for one member and mapped over all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from cellwright.engines.cpu import once
from cellwright.engines.cpu.arrays import Array, Index, Kind, Sources
from cellwright.engines.gpu.frame import ARITHMETIC
from cellwright.engines.protocol import Call
from cellwright.engines.reference.algebra import algebra
from cellwright.engines.reference.evaluate import Evaluator
from cellwright.engines.signature import Slice
from cellwright.ir import Matrix, Node, topological
from cellwright.plan import Outer

Outers = Iterable[tuple[Outer, Array, Array]]


@dataclass
class Product:
    """Matrices that adjoin, and the columns of an array that belong to their rows.

    Attributes:
        tensor, row, rows: where they lie among the weights.
        column: the first column.
    """

    tensor: int
    row: int
    rows: int
    column: int


class Outside:
    """A call's tensors by the names of slots, and what is computed on all of them at once.

    Args:
        call: the call.
        width: columns of all hoisted values together.
    """

    def __init__(self, call: Call, width: int):
        self.call, self.width, self.lead = call, width, call.lead
        self.plan, self.sizes = call.signature.plan, call.signature.size
        self.steps, self.batch = call.x.shape[self.lead :][:2]
        self.every = self.steps * self.batch
        self.arithmetic = ARITHMETIC[call.x.dtype]
        self.kinds = {p.name: p.type for p in self.plan.parameters}
        self.places = {each.parameter: each for each in call.signature.slices}
        self.rounded = call.signature.options.precision == "bf16"
        self.weights = [self.ready(each.detach()) for each in call.weights]
        self.arrays: dict[str, Tensor] = {}
        self.put("x", call.x)
        for each in call.signature.slices:
            part = self.weights[each.tensor].narrow(self.lead, each.start, each.stop - each.start)
            self.arrays[f"parameter.{each.parameter}"] = part
        for state, value in zip(self.plan.graph.states, call.states, strict=True):
            self.put(f"initial.{state.name}", value)
        for spec, mask in zip(self.plan.graph.streams, call.streams, strict=True):
            rows = (self.steps, self.batch) if spec.per_step else (self.batch,)
            shape = (*mask.shape[: self.lead], *rows, self.sizes[spec.size])
            self.put(f"stream.{spec.name}", mask.expand(shape))
        if self.plan.forward.once:

            def values(weights: Sequence[Tensor]) -> list[Tensor]:
                return once.values(call.signature, weights)

            found = self.for_each(values)(self._exact_weights())
            for name, value in zip(self.plan.forward.once, found, strict=True):
                self.put(f"value.{name}", value)
        like = call.x.new_empty(0, dtype=self.arithmetic)
        self.evaluator = Evaluator(algebra(0), self.sizes, like)
        self.totals: dict[str, Tensor] = {}  # by parameter, or value of parameters alone

    def _exact_weights(self) -> list[Tensor]:
        return [each.to(self.arithmetic) for each in self.weights]

    def for_each(self, run: Callable[..., Any]) -> Callable[..., Any]:
        """A function of one member's tensors as a function of those of the call."""
        return torch.func.vmap(run) if self.lead else run

    def ready(self, value: Tensor) -> Tensor:
        """The tensor as kernels read it: in order, or a member's part in order and for all."""
        if self.lead and value.stride(0) == 0 and value[:1].is_contiguous():
            return value
        return value.contiguous()

    def put(self, slot: str, value: Tensor) -> None:
        """Let a slot be a tensor that came from outside."""
        self.arrays[slot] = self.ready(value)

    def _add(self, name: str, value: Tensor) -> None:
        self.totals[name] = self.totals[name] + value if name in self.totals else value

    def empty(self, slot: str, units: int, dtype: torch.dtype | None = None) -> Tensor:
        """Let a slot be new memory for a value of every step."""
        x = self.call.x
        found = x.new_empty((*x.shape[: self.lead], self.steps, self.batch, units), dtype=dtype)
        self.arrays[slot] = found
        return found

    # Values in memory, and what follows from them ----------------------------------------------

    def view(self, array: Array, units: int) -> Tensor:
        """All rows of all steps of an array, (..., T x B, units), or one row for all."""
        if array.kind in (Kind.UNITS, Kind.UNIT):
            return self.arrays[array.slot].narrow(-1, array.offset, units).unsqueeze(-2)
        if array.index is Index.BEFORE:
            return self._before(array).flatten(-3, -2)
        slot = array.slot.replace("stream_rows.", "stream.")
        part = self.arrays[slot].narrow(-1, array.offset, units)
        if part.dim() - self.lead == 2:  # a mask of whole sequences
            part = part.unsqueeze(-3).expand(*part.shape[:-2], self.steps, -1, -1)
        return part.flatten(-3, -2)

    def _before(self, array: Array) -> Tensor:
        """A state before each step."""
        name = f"before.{array.slot}"
        if name not in self.arrays:
            after, initial = self.arrays[array.slot], self.arrays[array.initial].unsqueeze(-3)
            later = after.narrow(-3, int(self.call.reverse), self.steps - 1)
            parts = [later, initial] if self.call.reverse else [initial, later]
            self.arrays[name] = torch.cat(parts, -3)
        return self.arrays[name]

    def environment(self, sources: Sources) -> dict[Node, Tensor]:
        """Values of leaves in the dtype of the arithmetic; matrices too."""
        found = {}
        for node, array in sources.items():
            value = self.view(array, self.sizes[node.size])
            found[node] = value if node.vector.boolean else value.to(self.arithmetic)
        return found

    def value(self, node: Node, environment: dict[Node, Tensor]) -> Tensor:
        """A value for all rows of all steps, from what the environment holds."""
        known = tuple(environment)

        def compute(values: Sequence[Tensor]) -> Tensor:
            return self._compute(node, dict(zip(known, values, strict=True)))

        found: Tensor = self.for_each(compute)([*environment.values()])
        return found

    def _compute(self, node: Node, environment: dict[Node, Tensor]) -> Tensor:
        self.evaluator.evaluate(topological([node], environment), environment)
        return self.evaluator.whole(environment[node], node.size, self.every)

    # Products with x, and with gradients ---------------------------------------------------------

    def multiply(self, left: Tensor, right: Tensor, into: Tensor | None = None) -> Tensor:
        """left @ right, added to ``into``; operands rounded first where the options ask for it."""
        if self.rounded:
            left, right = (each.to(torch.bfloat16).to(each.dtype) for each in (left, right))
        if into is None:
            return left @ right
        return into.baddbmm_(left, right) if self.lead else into.addmm_(left, right)

    def weight(self, product: Product) -> Tensor:
        """The rows of a weight tensor that a product is about."""
        return self.weights[product.tensor].narrow(self.lead, product.row, product.rows)

    def join(self, products: Sequence[tuple[str, int]]) -> list[Product]:
        """Products with (matrix, first column), joined where they adjoin."""
        joined: list[Product] = []
        for name, column in products:
            place = self.places[name]
            rows = place.stop - place.start
            last = joined[-1] if joined else None
            if (
                last is not None
                and last.tensor == place.tensor
                and last.row + last.rows == place.start
                and last.column + last.rows == column
            ):
                last.rows += rows
            else:
                joined.append(Product(place.tensor, place.start, rows, column))
        return joined

    # Gradients of parameters ---------------------------------------------------------------------

    def sum_up(self, sums: dict[str, tuple[Node, Sources]]) -> None:
        """Add sums over rows and steps to the gradients of vectors."""
        for name, (node, sources) in sums.items():
            if node in sources and not node.vector.boolean:
                value = self.view(sources[node], self.sizes[node.size])
                value = value.expand(*value.shape[:-2], self.every, -1)
            else:
                value = self.value(node, self.environment(sources))
            self._add(name, value.sum(-2, dtype=self.arithmetic))

    def gradients(self, outers: Outers) -> list[Tensor]:
        """Gradients of all weights; ``outers`` are those of matrices, with their factors' places.

        The sums of vectors have been added up before.
        """
        found = [each.new_zeros(each.shape) for each in self.weights]
        alike: dict[Array, list[tuple[Outer, Array]]] = {}
        for outer, delta, operand in outers:
            kind = self.kinds[outer.parameter]
            assert isinstance(kind, Matrix)
            if kind.blocks > 1:
                self._add_blocks(found, outer, delta, operand, kind)
            else:
                alike.setdefault(operand, []).append((outer, delta))
        for operand, members in alike.items():
            self._add_joined(found, operand, members)
        self._differentiate_once()
        for name, total in self.totals.items():
            if name in self.places:
                self._part(found, self.places[name]).add_(total)
        return found

    def _part(self, found: list[Tensor], place: Slice) -> Tensor:
        """The rows of a parameter's gradient."""
        return found[place.tensor].narrow(self.lead, place.start, place.stop - place.start)

    def _differentiate_once(self) -> None:
        """Carry the gradients of values of parameters alone on to the parameters."""
        signature = self.call.signature
        if not self.plan.forward.once:
            return
        given = {
            name: self.totals.get(name, torch.zeros_like(self.arrays[f"value.{name}"]))
            for name in once.arriving(signature)
        }

        def gradients(weights: Sequence[Tensor], given: dict[str, Tensor]) -> list[Tensor]:
            return once.gradients(signature, weights, given)

        found = self.for_each(gradients)(self._exact_weights(), given)
        for name, value in zip(once.parameters(signature), found, strict=True):
            self._add(name, value)

    def _add_joined(
        self, found: list[Tensor], operand: Array, members: list[tuple[Outer, Array]]
    ) -> None:
        columns = self.sizes[members[0][0].operand.size]
        right = self.view(operand, columns)
        by_slot: dict[tuple[str, Index, int], list[tuple[Outer, Array]]] = {}
        for outer, delta in members:
            by_slot.setdefault((delta.slot, delta.index, delta.stride), []).append((outer, delta))
        for group in by_slot.values():
            group.sort(key=lambda each: each[1].offset)
            for part in self.join([(outer.parameter, delta.offset) for outer, delta in group]):
                delta = group[0][1]
                whole = self.view(replace(delta, offset=0), delta.stride)
                left = whole.narrow(-1, part.column, part.rows)
                into = found[part.tensor].narrow(self.lead, part.row, part.rows)
                self.multiply(left.mT, right, into)

    def _add_blocks(
        self, found: list[Tensor], outer: Outer, delta: Array, operand: Array, kind: Matrix
    ) -> None:
        factors = [
            self.view(array, self.sizes[node.size])
            for array, node in ((delta, outer.delta), (operand, outer.operand))
        ]
        if self.rounded:
            factors = [each.to(torch.bfloat16).to(each.dtype) for each in factors]
        into = self._part(found, self.places[outer.parameter])

        def product(delta: Tensor, operand: Tensor, like: Tensor) -> Tensor:
            return algebra(0).outer(delta, operand, like, kind)

        into += self.for_each(product)(*factors, into)
