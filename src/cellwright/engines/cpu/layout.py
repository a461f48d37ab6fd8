"""Places of the leaves that all programs of a layer share."""

from __future__ import annotations

from collections.abc import Iterable

from cellwright.engines.cpu.arrays import Array, Index, Kind, Sources
from cellwright.engines.cpu.contraction import contracted
from cellwright.engines.signature import Signature
from cellwright.ir import ONE, Node, is_leaf, topological
from cellwright.plan import Plan

PAGE, LINE = 1024, 16
"""Elements of a page of memory, and of a line, in float32."""


class Layout:
    """Places of the leaves that all programs of a layer share.

    Args:
        signature: of the layer.
        output_is_state: the state that is the output lies where the output does.
        saved_in_place: hoisted values that are saved as they are lie where they are saved.
        spread_rows: the gradients of hoisted values, which products read down their columns, do
            not lie whole pages apart, where they would drive each other out of caches.
    """

    def __init__(
        self, signature: Signature, *, output_is_state: bool = False, saved_in_place: bool = False,
        spread_rows: bool = False,
    ):  # fmt: skip
        self.signature = signature
        self.output_is_state = output_is_state
        self.plan: Plan = contracted(signature.plan)
        self.sizes = signature.size
        inputs = self.plan.forward.inputs
        saved = self.plan.forward.saved.items() if saved_in_place else ()
        leaves = {str(each.attribute("name")): name for name, each in saved if each.op == "value"}
        self.in_place = {name: slot for name, slot in leaves.items() if name in inputs}
        self.columns: dict[str, int] = {}
        self.width = 0
        for name, node in inputs.items():
            if name not in self.in_place:
                self.columns[name] = self.width
                self.width += self.sizes[node.size]
        if spread_rows and self.width and self.width % PAGE == 0:
            self.width += LINE

    def state_slot(self, name: str) -> str:
        """Where a state lies; the one that is the output may do without a place of its own."""
        plan = self.plan.forward
        first = name == self.plan.graph.states[0].name
        if self.output_is_state and first and plan.next[name] is plan.output:
            return "output"
        return f"state.{name}"

    def array(self, slot: str, size: str, index: Index, *, boolean: bool = False) -> Array:
        """An array of its own for a value of that size."""
        units = self.sizes[size]
        kind = Kind.ROW if size == ONE else Kind.ROWS
        return Array(slot, kind, index, stride=units, boolean=boolean)

    def hoisted(self, slot: str, name: str, index: Index) -> Array:
        """The columns of a hoisted value in the array that holds all of them, or its own array."""
        size = self.plan.forward.inputs[name].size
        if name in self.in_place:
            return self.array(self.in_place[name], size, index)
        kind = Kind.ROW if size == ONE else Kind.ROWS
        return Array(slot, kind, index, stride=self.width, offset=self.columns[name])

    def leaves(self, roots: Iterable[Node], *, looped: bool) -> Sources:
        """Places of the leaves that occur under ``roots``."""
        found: Sources = {}
        for each in topological(roots):
            if is_leaf(each) and each.op not in ("constant", "reciprocal_size"):
                array = self.leaf(each, looped=looped)
                if array is not None:
                    found[each] = array
        return found

    def leaf(self, each: Node, *, looped: bool) -> Array | None:
        """Where a leaf lies; None for a matrix, which is packed apart."""
        name = str(each.attribute("name"))
        step = Index.TIME if looped else Index.NONE
        if each.op == "parameter":
            if not hasattr(each.type, "size"):
                return None
            return Array(f"parameter.{name}", Kind.UNITS)
        if each.op == "input":
            return self.array("x", each.size, step)
        if each.op == "stream":
            per_step = bool(each.attribute("per_step"))
            index = step if per_step else Index.NONE
            slot = f"stream.{name}" if per_step or looped else f"stream_rows.{name}"
            return self.array(slot, each.size, index, boolean=each.vector.boolean)
        if each.op == "state":
            units = self.sizes[each.size]
            slot = self.state_slot(name)
            return Array(slot, Kind.ROWS, Index.BEFORE, stride=units, initial=f"initial.{name}")
        if each.op == "cotangent":
            return self._cotangent(name, each, looped=looped)
        return self._value(name, each, looped=looped)

    def _cotangent(self, name: str, each: Node, *, looped: bool) -> Array:
        if name.startswith("next."):
            slot = f"carry.{name.removeprefix('next.')}"
            return self.array(slot, each.size, Index.EVEN)
        if name.startswith("input."):
            return self.hoisted("d_inputs", name, Index.TIME if looped else Index.NONE)
        return self.array(f"d_{name}", each.size, Index.TIME)

    def _value(self, name: str, each: Node, *, looped: bool) -> Array:
        if name.startswith("once."):
            kind = Kind.UNIT if each.size == ONE else Kind.UNITS
            return Array(f"value.{name}", kind, boolean=each.vector.boolean)
        if name.startswith("input."):
            return self.hoisted("inputs", name, Index.TIME)
        if name.startswith("next."):
            return self.array(f"state.{name.removeprefix('next.')}", each.size, Index.TIME)
        return self.array(name, each.size, Index.TIME, boolean=each.vector.boolean)
