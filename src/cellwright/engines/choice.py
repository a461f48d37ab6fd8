"""Which engine runs a recurrence, and why."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch

from cellwright.engines.protocol import Engine
from cellwright.engines.signature import Signature
from cellwright.errors import EngineError, UsageError

# In the order of preference; modules are imported when first considered.
_ENGINES = {
    "cpu": ("cellwright.engines.cpu", "CpuEngine"),
    "gpu": ("cellwright.engines.gpu", "GpuEngine"),
    "reference": ("cellwright.engines.reference", "ReferenceEngine"),
}
_loaded: dict[str, Engine] = {}
_wanted: ContextVar[str | None] = ContextVar("cellwright_engine", default=None)


@dataclass(frozen=True)
class Choice:
    """An engine and the reason why it was chosen."""

    engine: Engine
    reason: str


def names() -> list[str]:
    """Names of the engines, the preferred first."""
    return list(_ENGINES)


def get(name: str) -> Engine:
    """The engine of that name, which may say in which of its forms: "gpu:resident"."""
    if not isinstance(name, str):
        raise UsageError(f"engine: expected the name of one, got {name!r}")
    plain, _, form = name.partition(":")
    if plain not in _ENGINES:
        raise UsageError(f"there is no engine {name!r}; there are {', '.join(_ENGINES)}")
    if name not in _loaded:
        module, member = _ENGINES[plain]
        kind = getattr(importlib.import_module(module), member)
        if form and plain != "gpu":
            raise UsageError(f"form: the {plain} engine has only one form, got {form!r}")
        _loaded[name] = kind(form) if form else kind()
    return _loaded[name]


@contextmanager
def engine(name: str, form: str | None = None) -> Iterator[None]:
    """Let one engine run every recurrence inside the ``with`` block.

    Args:
        name: "cpu", "gpu" or "reference".
        form: of the gpu engine, "resident" or "steps"; by default it chooses by the shapes.

    Raises:
        UsageError: if there is no such engine, or it has no such form.
        EngineError: inside the block, where that engine cannot run a recurrence.

    Example:
        >>> import torch, cellwright as cw
        >>> layer = cw.nn.Recurrent("gru", input_size=3, hidden_size=4)
        >>> with cw.engine("reference"):
        ...     y, state = layer(torch.zeros(5, 2, 3))
    """
    name = name if form is None else f"{name}:{form}"
    get(name)
    token = _wanted.set(name)
    try:
        yield
    finally:
        _wanted.reset(token)


asked_for = _wanted.get
"""The name of the engine that the surrounding block asks for; None outside of such blocks."""


def choose(signature: Signature, device: torch.device, dtype: torch.dtype) -> Choice:
    """The engine that will run a recurrence on tensors of that device and dtype."""
    wanted = _wanted.get()
    if wanted is not None:
        objection = get(wanted).objection(signature, device, dtype)
        if objection:
            raise EngineError(f"engine {wanted!r} was asked for, but {objection}")
        asked = '", form="'.join(wanted.split(":"))
        asked = f'asked for by cellwright.engine("{asked}")'
        return Choice(get(wanted), _because([asked], wanted, signature))
    objections: list[str] = []
    for name in _ENGINES:
        objection = get(name).objection(signature, device, dtype)
        if objection is None:
            return Choice(get(name), _because([get(name).purpose, *objections], name, signature))
        objections.append(f"not {name}: {objection}")
    raise EngineError(f"no engine can run cell {signature.spec.name}: {'; '.join(objections)}")


def _because(reasons: list[str], name: str, signature: Signature) -> str:
    """The reasons, with what the engine has to say of the signature."""
    remark = get(name).remark(signature)
    return "; ".join([*reasons, remark] if remark else reasons)
