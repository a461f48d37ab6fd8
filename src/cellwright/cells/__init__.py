"""The catalogue of cells, and the way to a cell in a file of one's own.

The equations are in the family modules beside this one; a family is imported when one of
its cells is asked for.
"""

from __future__ import annotations

import difflib
import os
import re
from importlib import import_module
from typing import TYPE_CHECKING

from cellwright.errors import UsageError

if TYPE_CHECKING:
    from cellwright.lang import CellSpec

__all__ = ["get", "load", "names"]

_FAMILIES = {
    "elman": ("elman", "elman_relu"),
    "lstm": ("cec", "lstm_1997", "lstm", "lstm_no_output_activation", "lstm_unsquashed"),
    "peephole": ("peephole_lstm", "peephole_lstm_cell_only", "peephole_lstm_unsquashed"),
    "odyssey": (
        "odyssey_vanilla",
        "odyssey_nig",
        "odyssey_nfg",
        "odyssey_nog",
        "odyssey_niaf",
        "odyssey_noaf",
        "odyssey_cifg",
        "odyssey_np",
        "odyssey_fgr",
    ),
    "gru": ("gru", "gru_v1", "gru_update_new", "mgu", "ugrnn"),
    "mutated": ("mut1", "mut2", "mut3"),
    "minimal": ("janet", "indrnn", "mingru", "minlstm", "sru"),
    "highway": ("rhn",),
    "continuous": ("lem",),
    "exponential": ("slstm",),
    "normalised": ("layer_norm_lstm",),
    "projected": ("lstm_projection",),
}
_FAMILY_OF = {name: family for family, members in _FAMILIES.items() for name in members}
_CONVOLUTIONAL = re.compile(r"conv(olution(al)?)?([123]d)?")


def names() -> list[str]:
    """The names of all cells in the catalogue, family by family.

    Example:
        >>> import cellwright as cw
        >>> cw.cells.names()[:3]
        ['elman', 'elman_relu', 'cec']
    """
    return list(_FAMILY_OF)


def get(name: str) -> CellSpec:
    """The cell of that name in the catalogue.

    Raises:
        UsageError: with the names that come near, where there is none.

    Example:
        >>> import cellwright as cw
        >>> cw.cells.get("gru").title
        'GRU, reset after the product'
    """
    family = _FAMILY_OF.get(name) if isinstance(name, str) else None
    if family is None:
        raise UsageError(_no_such_name(name))
    found: CellSpec = getattr(import_module(f"{__name__}.{family}"), name)
    return found


def load(reference: str | os.PathLike[str]) -> CellSpec:
    """A cell by reference: a name in the catalogue, or "path/to/file.py:cell_name".

    A path without a cell's name is enough where the file has one cell. The file is run
    once, as a module; it is run again only after it has changed.

    Raises:
        UsageError: where the name, the file or the cell does not exist.
        CellError: where the file cannot be run, naming the line.

    Example:
        >>> import cellwright as cw
        >>> cw.cells.load("lstm") is cw.cells.get("lstm")
        True
    """
    if isinstance(reference, os.PathLike):
        reference = os.fspath(reference)
    if not isinstance(reference, str):
        raise UsageError(
            "a cell is referred to by a name in the catalogue or by 'path/to/file.py:cell_name'; "
            f"got {reference!r}"
        )
    if reference in _FAMILY_OF:
        return get(reference)
    if ".py" not in reference and not {":", "/", os.sep} & set(reference):
        raise UsageError(
            _no_such_name(reference) + " (a cell of your own is 'path/to/file.py:cell_name')"
        )
    from cellwright.lang.files import load_from_file

    return load_from_file(reference)


def _no_such_name(name: object) -> str:
    said = f"no cell is named {name!r} in the catalogue; "
    asked = name.lower() if isinstance(name, str) else ""
    form = _CONVOLUTIONAL.search(asked)
    if form:
        said += (
            "the convolutional form of a cell is a layer over it, such as "
            "cw.nn.ConvRecurrent('peephole_lstm', ...); "
        )
        asked = asked.replace(form[0], "").strip("-_ ")
    near = difflib.get_close_matches(asked, names(), n=5)
    if near:
        return f"{said}did you mean {', '.join(near)}?"
    return f"{said}the catalogue has {', '.join(names())}"
