"""Gradients of parameters: sums over all rows and steps, gathered span by span."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from cellwright.engines.cpu import once
from cellwright.engines.cpu.jobs import fill
from cellwright.engines.cpu.matrices import Product, add_products, turns
from cellwright.engines.cpu.slots import Slots


class ParameterGradients:
    """The sums so far. They begin at zero, and spans are added from the last to the first.

    Args:
        slots: of the call; gradients of vectors get slots there.
        once_values: values of parameters alone, by name.
        need_x: whether the programs yield the gradient of x.
    """

    def __init__(self, slots: Slots, once_values: Mapping[str, Tensor], *, need_x: bool):
        self._slots, self._once = slots, once_values
        made = slots.kernels
        how = need_x, made.joins(slots.rows)
        self._jobs = made.jobs(*how)
        self._sums, self._totals = made.sums(*how), made.total_sums(*how)
        shapes = [each.shape[len(slots.lead) :] for each in slots.weights]
        # What products alone make up need not be zero before them.
        none = slots.rows * slots.steps == 0
        self._beginning = set() if none else fill(self._jobs, shapes)
        self._of_turn = [
            [
                (slots.empty if (turn, number) in self._beginning else slots.zeros)(each.shape)
                for number, each in enumerate(slots.weights)
            ]
            for turn in range(turns(self._jobs))
        ]
        self._apart: list[tuple[Tensor, str]] = []
        self._place_sums(made.direct_sums(*how))

    def _place_sums(self, direct: set[str]) -> None:
        """Gradients of vectors in place, where they are one sum; sums of several apart."""
        slots = self._slots
        for each in (*self._sums, *self._totals):
            for slot, name in each.results.items():
                if slot in direct:
                    place = slots.kernels.weights[name]
                    gradient = self._of_turn[0][place.tensor]
                    slots.point(slot, gradient, place.start * slots.width)
                else:
                    zeros = slots.zeros((*slots.lead, each.units))
                    self._apart.append((slots.put(slot, zeros), name))

    def add(self, steps: int) -> None:
        """Add so many steps, those of the span that was entered last."""
        slots = self._slots
        rows = steps * slots.rows
        product = Product(slots.double, slots.kernels.bf16)
        add_products(product, self._jobs, slots, self._of_turn, rows, self._beginning)
        slots.start_product(product)
        self._beginning = set()
        for each in self._sums:
            slots.start_sums(each.compiled, steps, slots.rows)

    def add_totals(self) -> None:
        """Add the rows' totals, when all steps are done."""
        for each in self._totals:
            self._slots.start_sums(each.compiled, 1, self._slots.rows)

    def finished(self) -> list[Tensor]:
        """The gradients, laid out as the weights are."""
        slots = self._slots
        gradients, *others = self._of_turn
        for other in others:
            for into, each in zip(gradients, other, strict=True):
                into += each
        totals: dict[str, Tensor] = {}
        for value, name in self._apart:
            totals[name] = totals[name] + value if name in totals else value
        if self._once:
            self._differentiate_once(totals)
        for part in slots.call.signature.slices if totals else ():
            if part.parameter in totals:
                rows = (part.start, part.stop - part.start)
                gradients[part.tensor].narrow(len(slots.lead), *rows).add_(totals[part.parameter])
        return gradients

    def _differentiate_once(self, totals: dict[str, Tensor]) -> None:
        """Carry the gradients of values of parameters alone on to the parameters behind them."""
        slots = self._slots
        signature = slots.kernels.signature
        names = once.arriving(signature)
        given = [totals.get(name, torch.zeros_like(self._once[name])) for name in names]
        members = zip(slots.by_member(slots.weights), slots.by_member(given), strict=True)
        found = [
            once.gradients(signature, weights, dict(zip(names, own, strict=True)))
            for weights, own in members
        ]
        shapes = {p.name: p.shape(slots.sizes) for p in slots.plan.parameters}
        for number, name in enumerate(once.parameters(signature)):
            value = slots.joined([each[number] for each in found], shapes[name])
            totals[name] = totals[name] + value if name in totals else value
