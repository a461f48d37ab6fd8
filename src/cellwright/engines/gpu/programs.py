"""The programs of a layer, as the loops of this engine carry their states.

A state goes from step to step in registers, or in two buffers that are exchanged, in the dtype in
which everything is computed. Its values at all steps are kept beside, where gradients are wanted.
"""

from __future__ import annotations

from dataclasses import replace

from cellwright.engines.cpu import programs
from cellwright.engines.cpu.arrays import Index, Sources, Stores
from cellwright.engines.cpu.contraction import contracted
from cellwright.engines.cpu.program import Program
from cellwright.engines.gpu.frame import independent_heads
from cellwright.engines.signature import Signature


def forward(signature: Signature, *, keep: bool) -> Program:
    """The forward loop; what is hoisted is computed before it."""
    plan = contracted(signature.plan)
    made = programs.forward(signature, keep=keep, apart=True).loop
    sources: Sources = {}
    for node, array in made.sources.items():
        if array.index is Index.BEFORE:
            slot = f"carry.{node.attribute('name')}"
            array = replace(array, slot=slot, index=Index.EVEN, initial="")
        sources[node] = array
    stores: Stores = {}
    for node, arrays in made.stores.items():
        stores[node] = [a for a in arrays if keep or not a.slot.startswith("state.")]
    for state in plan.graph.states:
        node = plan.forward.next[state.name]
        (array,) = (a for a in made.stores[node] if a.slot == f"state.{state.name}")
        stores[node].append(replace(array, slot=f"carry.{state.name}", index=Index.ODD))
    return replace(made, sources=sources, stores=stores)


def heads_of(signature: Signature, program: Program) -> int:
    """Heads whose units never meet in a loop."""
    return independent_heads(signature.options.heads, program.stores)
