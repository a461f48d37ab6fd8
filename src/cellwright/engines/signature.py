"""What a recurrence is, apart from its tensors; written as text so that it can stand in a graph.

An operator inside a compiled or exported program takes tensors and plain values only. A
:class:`Signature` names the cell, the options, the sizes and how the weights lie in their
tensors; its text is enough to build the plan again in another process.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property, lru_cache
from weakref import WeakSet

from cellwright.errors import CellError, EngineError
from cellwright.lang import CellSpec
from cellwright.lang.spec import find
from cellwright.plan import Plan, StepOptions, build

LOCAL = "local:"
# By fingerprint: of cells with the same equations, any that is left will do.
_local_cells: defaultdict[str, WeakSet[CellSpec]] = defaultdict(WeakSet)


@dataclass(frozen=True)
class Slice:
    """Where a parameter lies: rows ``start`` to ``stop`` of weight tensor number ``tensor``."""

    parameter: str
    tensor: int
    start: int
    stop: int


@dataclass(frozen=True)
class Signature:
    """A recurrence without its tensors.

    Attributes:
        spec, options: the cell and what the layer asks of it.
        sizes: (name, number) of every size, as pairs.
        slices: one for each parameter of the plan.
        spatial: 0 where ``@`` is a matrix product, else the dimensions of the convolution.
    """

    spec: CellSpec
    options: StepOptions
    sizes: tuple[tuple[str, int], ...]
    slices: tuple[Slice, ...]
    spatial: int = 0

    @cached_property
    def plan(self) -> Plan:
        """The plan that an engine carries out."""
        return build(self.spec, self.options)

    @cached_property
    def size(self) -> Mapping[str, int]:
        """Sizes by name."""
        return {**dict(self.sizes), "one": 1}

    @cached_property
    def text(self) -> str:
        """The signature as text; :func:`parse` is the inverse."""
        return json.dumps(
            {
                "cell": _reference(self.spec),
                "fingerprint": self.spec.fingerprint,
                "options": asdict(self.options),
                "sizes": self.sizes,
                "slices": [[s.parameter, s.tensor, s.start, s.stop] for s in self.slices],
                "spatial": self.spatial,
            },
            separators=(",", ":"),
        )


def _reference(spec: CellSpec) -> str:
    """Where the cell can be found again; else a name that this process knows."""
    try:
        return spec.reference
    except CellError:
        _local_cells[spec.fingerprint].add(spec)
        return f"{LOCAL}{spec.name}"


@lru_cache(maxsize=512)
def parse(text: str) -> Signature:
    """The signature that ``text`` was made from.

    Raises:
        EngineError: if the cell is not known here, or is no longer the same.
    """
    content = json.loads(text)
    reference = content["cell"]
    name = reference.rpartition(":")[2]
    if reference.startswith(LOCAL):
        spec = next(iter(_local_cells[content["fingerprint"]]), None)
    else:
        spec = find(reference)
    if spec is None:
        raise EngineError(
            f"cell {name} was made inside a function of another process; define it at the top "
            f"level of a module to use an exported program elsewhere"
        )
    if spec.fingerprint != content["fingerprint"]:
        raise EngineError(f"the equations of cell {name} have changed since this was exported")
    options = {each.name: content["options"][each.name] for each in fields(StepOptions)}
    options["zoneout"] = tuple((state, rate) for state, rate in options["zoneout"])
    return Signature(
        spec,
        StepOptions(**options),
        tuple((name, number) for name, number in content["sizes"]),
        tuple(Slice(*each) for each in content["slices"]),
        content["spatial"],
    )
