"""What is hoisted out of the loops, and its gradients: torch operations on all steps at once."""

from __future__ import annotations

import torch
from torch import Tensor

from cellwright.engines.cpu.arrays import Array, Sources
from cellwright.engines.cpu.program import Program
from cellwright.engines.gpu.outside import Outside
from cellwright.ir import Node, topological

Affine = tuple[str, str | None]
"""Names of a matrix and of a bias: W @ x + b."""


def fill(outside: Outside, program: Program | None, *, keep: bool) -> None:
    """Compute every hoisted value, and what is saved on the way to them."""
    plan = outside.plan.forward
    if program is None:
        return
    outside.empty("inputs", outside.width)
    if keep:
        for name, node in plan.saved_inputs.items():
            dtype = torch.bool if node.vector.boolean else None
            outside.empty(name, outside.sizes[node.size], dtype)
    affine = [_affine(node) for node in plan.inputs.values()]
    simple = [each for each in affine if each is not None]
    if len(simple) == len(affine) and not (keep and plan.saved_inputs):
        _fill_affine(outside, simple)
    else:
        run(outside, program)


def _affine(node: Node) -> Affine | None:
    """The parts of ``W @ x`` or ``W @ x + b``; None for anything else."""
    for product, bias in [(node, None)] if node.op != "add" else [node.inputs, node.inputs[::-1]]:
        is_product = product.op == "matvec" and product.inputs[1].op == "input"
        if is_product and (bias is None or bias.op == "parameter"):
            name = None if bias is None else str(bias.attribute("name"))
            return str(product.inputs[0].attribute("name")), name
    return None


def _fill_affine(outside: Outside, parts: list[Affine]) -> None:
    inputs = outside.arrays["inputs"].flatten(-3, -2)
    x = outside.arrays["x"].flatten(-3, -2)
    column, columns = 0, []
    for matrix, bias in parts:
        place = outside.places[matrix]
        columns.append((matrix, column))
        part = inputs.narrow(-1, column, place.stop - place.start)
        if bias is None:
            part.zero_()
        else:
            part.copy_(outside.arrays[f"parameter.{bias}"].unsqueeze(-2))
        column += part.shape[-1]
    for each in outside.join(columns):
        into = inputs.narrow(-1, each.column, each.rows)
        outside.multiply(x, outside.weight(each).mT, into)


def run(outside: Outside, program: Program) -> None:
    """Compute a program that has no loop."""
    environment = outside.environment(program.sources)
    for each in topological(program.stores):
        if each.op == "parameter" and each not in environment:
            matrix = outside.arrays[f"parameter.{each.attribute('name')}"]
            environment[each] = matrix.to(outside.arithmetic)
    for node, arrays in program.stores.items():
        value = _transposed(outside, node, program.sources)
        if value is None:
            value = outside.value(node, environment)
        for array in arrays:
            outside.view(array, outside.sizes[node.size]).copy_(value)


def _terms(node: Node) -> list[Node]:
    return [t for each in node.inputs for t in _terms(each)] if node.op == "add" else [node]


def _transposed(outside: Outside, node: Node, sources: Sources) -> Tensor | None:
    """A sum of transposed products with gradients in memory, joined; None for anything else."""
    found: list[tuple[str, Array]] = []
    for each in _terms(node):
        array = sources.get(each.inputs[1]) if each.op == "matvec_transposed" else None
        if array is None or array.slot != "d_inputs" or each.inputs[0].matrix.blocks > 1:
            return None
        found.append((str(each.inputs[0].attribute("name")), array))
    total: Tensor | None = None
    gradients = outside.arrays["d_inputs"].flatten(-3, -2)
    found.sort(key=lambda each: each[1].offset)
    for part in outside.join([(name, array.offset) for name, array in found]):
        left = gradients.narrow(-1, part.column, part.rows)
        total = outside.multiply(left, outside.weight(part), total)
    return total
