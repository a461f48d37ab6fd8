"""``cellwright cells`` and ``cellwright tasks``: what there is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from cellwright.apps import show
from cellwright.apps.values import parse_sizes
from cellwright.errors import UsageError

if TYPE_CHECKING:
    from cellwright.lang import CellSpec


def cells(
    name: Annotated[
        str | None,
        Argument(
            metavar="CELL", help="A cell's name, or path/to/file.py:cell.", show_default="all cells"
        ),
    ] = None,
    input_size: Annotated[int, Option(help="Units of x.", min=1)] = 128,
    hidden_size: Annotated[int, Option(help="Units of the states.", min=1)] = 128,
    size: Annotated[
        list[str] | None,
        Option(
            metavar="NAME=N", help="Another size that a cell has.", show_default="half the units"
        ),
    ] = None,
    latex: Annotated[bool, Option("--latex", help="The equations as LaTeX.")] = False,
    plan: Annotated[bool, Option("--plan", help="What is computed, forward and backward.")] = False,
    llvm: Annotated[bool, Option("--llvm", help="The CPU engine's loops as LLVM IR.")] = False,
    asm: Annotated[
        bool, Option("--asm", help="The same loops as assembler of this machine.")
    ] = False,
    triton: Annotated[
        bool, Option("--triton", help="The GPU engine's loops as Triton's source.")
    ] = False,
) -> None:
    """List the cells, or show one: equations, source, parameters."""
    from cellwright import cells as catalogue

    sizes = parse_sizes(size or [])
    forms = {"--latex": latex, "--plan": plan, "--llvm": llvm, "--asm": asm, "--triton": triton}
    chosen = [each for each, given in forms.items() if given]
    if name is None:
        if chosen:
            raise UsageError(f"{chosen[0]}: say of which cell")
        specs = [catalogue.get(each) for each in catalogue.names()]
        _check_sizes(specs, sizes)
        _list(specs, input_size, hidden_size, sizes)
        return
    if len(chosen) > 1:
        raise UsageError(f"{' and '.join(chosen)} exclude each other")
    spec = catalogue.load(name)
    if latex:
        show.say(spec.latex())
    elif plan:
        from cellwright.plan import dump

        show.say(dump(spec).rstrip())
    else:
        _check_sizes([spec], sizes)
        if chosen:
            show.say(_listing(spec, input_size, hidden_size, sizes, chosen[0]).rstrip())
        else:
            _show(spec, input_size, hidden_size, sizes)


def _check_sizes(specs: list[CellSpec], sizes: dict[str, int]) -> None:
    known = sorted({name for spec in specs for name in spec.size_names})
    for name, value in sizes.items():
        if name not in known:
            has = f"there are {', '.join(known)}" if known else "there are no other sizes"
            raise UsageError(f"--size: no size is named {name!r}; {has}")
        if value < 1:
            raise UsageError(f"--size: {name} has to be at least 1, got {value}")


def _other_sizes(spec: CellSpec, hidden_size: int, sizes: dict[str, int]) -> dict[str, int]:
    half = max(1, hidden_size // 2)
    return {name: sizes.get(name, half) for name in spec.size_names}


def _list(specs: list[CellSpec], input_size: int, hidden_size: int, sizes: dict[str, int]) -> None:
    rows, at = [], {"input": input_size, "hidden": hidden_size}
    for spec in specs:
        others = _other_sizes(spec, hidden_size, sizes)
        at |= others
        count = spec.num_parameters(input_size, hidden_size, **others)
        rows.append([
            spec.name,
            "" if spec.year is None else str(spec.year),
            " ".join(state.name for state in spec.states),
            " ".join(spec.watches),
            f"{count:,}",
        ])  # fmt: skip
    show.table(
        {"cell": "left", "year": "right", "states": "left", "gates": "left",
         "parameters": "right"},
        rows,
    )  # fmt: skip
    show.say(f"\nParameters at {', '.join(f'{name} size {value}' for name, value in at.items())}.")


def _show(spec: CellSpec, input_size: int, hidden_size: int, sizes: dict[str, int]) -> None:
    show.say(f"{spec.name}: {spec.title}" if spec.title else spec.name)
    show.say()
    for line in spec.equations().splitlines():
        show.say(f"  {line}")
    show.say()
    if spec.source:
        show.say(f"Source: {spec.source}" + (f" ({spec.year})" * _lacks_year(spec)))
    if spec.notes:
        show.say(spec.notes)
    others = _other_sizes(spec, hidden_size, sizes)
    resolved = spec.resolve_sizes(input_size, hidden_size, others)
    rows = []
    for each in spec.parameters:
        shape = each.shape(resolved)
        rows.append([each.name, " × ".join(map(str, shape)), f"{math.prod(shape):,}"])
    total = spec.num_parameters(input_size, hidden_size, **others)
    rows.append(["all", "", f"{total:,}"])
    show.say()
    show.table({"parameter": "left", "shape": "left", "numbers": "right"}, rows)
    at = ", ".join(f"{name} size {value}" for name, value in resolved.items())
    show.say(f"\nAt {at}.")


def _listing(
    spec: CellSpec, input_size: int, hidden_size: int, sizes: dict[str, int], form: str
) -> str:
    """An engine's loops for one layer of the cell; no memory is taken for its weights."""
    from cellwright.engines import cpu, gpu
    from cellwright.nn import Recurrent

    others = _other_sizes(spec, hidden_size, sizes)
    layer = Recurrent(spec, input_size, hidden_size, sizes=others, device="meta")
    signature = layer.signature(0, lengths=False, reset=False, trace=False)
    if form == "--triton":
        return gpu.listing(signature)
    return cpu.listing(signature, assembly=form == "--asm")


def _lacks_year(spec: CellSpec) -> bool:
    return spec.year is not None and str(spec.year) not in spec.source


def tasks(
    name: Annotated[
        str | None,
        Argument(
            metavar="TASK", help="A task's name, or path/to/file.py:task.", show_default="all tasks"
        ),
    ] = None,
) -> None:
    """List the tasks, or show one: options, settings, cases, what others have published."""
    from cellwright import tasks as known
    from cellwright.tasks.task import Task

    if name is None:
        rows = [[each, known.get(each).title] for each in known.names()]
        show.table({"task": "left", "what is to be learnt": "left"}, rows)
        show.say("\ncellwright tasks TASK shows one; cellwright train TASK trains on it.")
        return
    entry = known.get(name)
    show.say(f"{entry.name}: {entry.title}")
    show.say(f"Source: {entry.source}")
    show.say(f"Licence of the data: {entry.licence}")
    _show_values("Options (--with)", entry.options)
    _show_values("Settings of its own", getattr(entry, "defaults", {}))
    for case in entry.cases:
        values = {**case.options, **case.changes}
        said = _said(values)
        show.say(f"Case {case.name}: {said or 'as it is'}; {case.seeds} seeds")
    for each in entry.published:
        note = f"; {each.note}" if each.note else ""
        measure = each.measure or getattr(entry, "metric", "")
        case_name = f"{each.case}, " if each.case else ""
        value = f"{each.value:,g}"
        if not each.measure and isinstance(entry, Task):
            value = entry.objective.show_published(each.value)
        show.say(f"Published: {case_name}{each.method}: {measure} {value} ({each.source}{note})")
    show.say(f"\ncellwright train {name}\ncellwright reproduce {name}")


def _show_values(title: str, values: Mapping[str, object]) -> None:
    if values:
        show.say(f"{title}: {_said(values)}")


def _said(values: Mapping[str, object]) -> str:
    """``length 500, init chrono:500``: a setting with names of its own is taken apart."""
    parts = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            parts += [_said(value)] * bool(value)
        else:
            parts.append(f"{name} {value}")
    return ", ".join(parts)
