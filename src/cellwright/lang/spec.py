"""The traced cell: its equations as graphs, its states, parameters and source."""

from __future__ import annotations

import hashlib
import importlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from cellwright.errors import CellError, InputError
from cellwright.ir import HIDDEN, INPUT, Matrix, Node, Type, topological
from cellwright.lang import printing


@dataclass(frozen=True)
class StateSpec:
    """A state of a cell: its name and the name of its size."""

    name: str
    size: str


@dataclass(frozen=True)
class ParameterSpec:
    """A weight of a cell.

    Attributes:
        group, member: ``W`` and ``i`` of ``W.i``; ``member`` is None where there is none.
        type: matrix or vector, with the names of its sizes.
        initial: constant initial value, or None for the layer's scheme.
    """

    group: str
    member: str | None
    type: Type
    initial: float | None = None

    @property
    def name(self) -> str:
        """``W.i``."""
        return self.group if self.member is None else f"{self.group}.{self.member}"

    @property
    def reads_input(self) -> bool:
        """Whether it is a matrix that multiplies ``x``."""
        return isinstance(self.type, Matrix) and self.type.columns == INPUT

    def shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """Its shape for the given sizes: (rows, columns / blocks) or (units,)."""
        if isinstance(self.type, Matrix):
            return sizes[self.type.rows], sizes[self.type.columns] // self.type.blocks
        return (sizes[self.type.size],)


@dataclass(frozen=True, eq=False)
class CellSpec:
    """A cell, traced: what everything else is derived from.

    Attributes:
        name: its name.
        title, source, year, notes: from the docstring or the decorator's arguments.
        states: in the order of the function's arguments; the first is the output.
        parameters: in the order of first use, group by group.
        next: state -> its value after the step.
        watch: name -> a value that one may look at.
        names: (name, node) of every named intermediate value, in the order of writing.
        forget_gate, input_gate: members that initialisation schemes treat apart.
        function: what was traced.
    """

    name: str
    title: str
    source: str
    year: int | None
    notes: str
    states: tuple[StateSpec, ...]
    parameters: tuple[ParameterSpec, ...]
    next: Mapping[str, Node]
    watch: Mapping[str, Node]
    names: tuple[tuple[str, Node], ...]
    forget_gate: str | None = None
    input_gate: str | None = None
    function: Callable[..., Any] | None = field(default=None, repr=False)

    @property
    def watches(self) -> tuple[str, ...]:
        """Names of the values that ``trace=True`` returns beside the states."""
        return tuple(self.watch)

    @property
    def output(self) -> str:
        """Name of the state that a layer returns for every step."""
        return self.states[0].name

    @cached_property
    def size_names(self) -> tuple[str, ...]:
        """Names of the sizes that occur, beside "input" and "hidden"."""
        found = {state.size for state in self.states}
        for parameter in self.parameters:
            kind = parameter.type
            found |= {kind.rows, kind.columns} if isinstance(kind, Matrix) else {kind.size}
        return tuple(sorted(found - {INPUT, HIDDEN}))

    def resolve_sizes(
        self, input_size: int, hidden_size: int, sizes: Mapping[str, int] | None = None
    ) -> dict[str, int]:
        """Every size of the cell as a number; :class:`InputError` where one is missing or idle."""
        given = dict(sizes or {})
        idle = sorted(set(given) - set(self.size_names))
        if idle:
            known = ", ".join(self.size_names) or "no size beside input and hidden"
            raise InputError(f"cell {self.name} has no size {idle[0]!r}; it has {known}")
        for name in self.size_names:
            if name not in given:
                raise InputError(
                    f"cell {self.name} has a size {name!r}: give it a number, "
                    f"as in sizes={{{name!r}: {max(1, hidden_size // 2)}}}"
                )
        resolved = {INPUT: input_size, HIDDEN: hidden_size, **given}
        for name, value in resolved.items():
            if isinstance(value, bool) or not isinstance(value, int):
                raise InputError(f"size {name!r} has to be a whole number, got {value!r}")
            if value < (0 if name == INPUT else 1):
                raise InputError(f"size {name!r} has to be greater than zero, got {value}")
        return resolved

    def num_parameters(self, input_size: int, hidden_size: int, **sizes: int) -> int:
        """Number of weights of one layer of this cell.

        Example:
            >>> import cellwright as cw
            >>> cw.cells.get("lstm").num_parameters(input_size=10, hidden_size=20)
            2480
        """
        resolved = self.resolve_sizes(input_size, hidden_size, sizes)
        total = 0
        for parameter in self.parameters:
            count = 1
            for extent in parameter.shape(resolved):
                count *= extent
            total += count
        return total

    def equations(self) -> str:
        """The equations as text, one a line, with the step of each value in brackets.

        Example:
            >>> import cellwright as cw
            >>> print(cw.cells.get("elman").equations())
            h[t] = tanh(W @ x[t] + U @ h[t-1] + b)
        """
        return printing.equations(self)

    def latex(self) -> str:
        r"""The equations as a LaTeX ``aligned`` block, for a formula of a page or a paper.

        Example:
            >>> import cellwright as cw
            >>> print(cw.cells.get("elman").latex())
            \begin{aligned}
            h_{t} &= \tanh(W x_{t} + U h_{t-1} + b)
            \end{aligned}
        """
        return printing.latex(self)

    @cached_property
    def fingerprint(self) -> str:
        """A hash of all that decides what the cell computes; the same in every process."""
        roots = [*self.next.values(), *self.watch.values()]
        number = {each: index for index, each in enumerate(topological(roots))}
        lines = [
            repr((each.op, [number[i] for i in each.inputs], each.attributes, str(each.type)))
            for each in number
        ]
        lines.append(repr([(name, number[value]) for name, value in self.next.items()]))
        lines.append(repr([(name, number[value]) for name, value in self.watch.items()]))
        lines.append(repr((self.states, [p.name for p in self.parameters])))
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def __str__(self) -> str:
        heading = f"{self.name}: {self.title}" if self.title else self.name
        return "\n".join([heading, *(f"  {line}" for line in self.equations().splitlines())])

    def __repr__(self) -> str:
        states = ", ".join(state.name for state in self.states)
        groups = dict.fromkeys(parameter.group for parameter in self.parameters)
        return f"<cell {self.name}: states {states}; parameters {', '.join(groups)}>"

    def __copy__(self) -> CellSpec:
        return self

    def __deepcopy__(self, memo: object) -> CellSpec:
        return self

    @property
    def reference(self) -> str:
        """Where the cell is found again: "module:name", or "/path/to/file.py:name".

        Raises:
            CellError: if it is found nowhere, as a cell that was made inside a function.
        """
        module = getattr(self.function, "__module__", None) or ""
        qualified = getattr(self.function, "__qualname__", "")
        from cellwright.lang.files import path_of

        reference = f"{path_of(module) or module}:{qualified}"
        try:
            found = find(reference) if module else None
        except (ImportError, AttributeError):
            found = None
        if found is not self:
            raise CellError(
                f"cell {self.name} cannot be pickled: a cell is pickled by reference, so it has to "
                f"be found under its name in a module; it was made in {reference}"
            )
        return reference

    def __reduce__(self) -> tuple[Callable[[str], CellSpec], tuple[str]]:
        return find, (self.reference,)


def find(reference: str) -> CellSpec:
    """The cell that a ``CellSpec.reference`` names; what a pickled cell is read back with."""
    from cellwright.lang.files import module_of

    module, _, qualified = reference.rpartition(":")
    found: Any
    if Path(module).is_absolute():
        found = module_of(Path(module))
    else:
        found = sys.modules.get(module) or importlib.import_module(module)
    for part in qualified.split("."):
        found = getattr(found, part)
    if not isinstance(found, CellSpec):
        raise CellError(f"{reference} is not a cell but {type(found).__name__}")
    return found
