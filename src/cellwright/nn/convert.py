"""From torch.nn's recurrent modules to ours and back, in place, on the very same parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from torch import nn
from torch.nn.utils import parametrize

from cellwright.errors import InputError, InputTypeError
from cellwright.nn.signatures import PREFIX
from cellwright.nn.standard import GRU, LSTM, RNN
from cellwright.nn.standard_base import FLOATING, StandardStack
from cellwright.nn.standard_cells import GRUCell, LSTMCell, RNNCell
from cellwright.nn.standard_layer import StandardLayer

Model = TypeVar("Model", bound=nn.Module)
Change = tuple[Iterable[str], Mapping[str, Any]]  # attributes that go, and that come

OURS: dict[type[nn.Module], type[StandardStack]] = {
    nn.LSTM: LSTM,
    nn.GRU: GRU,
    nn.RNN: RNN,
    nn.LSTMCell: LSTMCell,
    nn.GRUCell: GRUCell,
    nn.RNNCell: RNNCell,
}
THEIRS: dict[type[nn.Module], type[nn.Module]] = {ours: theirs for theirs, ours in OURS.items()}

# What torch.nn's cells and layers show of themselves, and what its layers keep to themselves.
SHOWN_BY_CELLS = {"input_size", "hidden_size", "bias", "nonlinearity"}
SHOWN_BY_LAYERS = {
    "mode", "num_layers", "batch_first", "dropout", "bidirectional", "proj_size", *SHOWN_BY_CELLS
}  # fmt: skip
PRIVATE = ("_flat_weights", "_flat_weight_refs", "_flat_weights_names", "_all_weights")


def accelerate(model: Model) -> Model:
    """Let cellwright run every recurrent module of torch.nn inside a model.

    Each ``torch.nn.LSTM``, ``GRU``, ``RNN``, ``LSTMCell``, ``GRUCell`` and ``RNNCell``, ``model``
    itself included, becomes cellwright's module of the same name: the same object with another
    class (which is not a subclass of torch.nn's). So it stays where it is, also where several
    modules share it, and keeps its parameters (optimisers go on working), names, hooks,
    parametrizations, device, dtype and training flag. A subclass of torch.nn's is left alone,
    and so is a module whose ``forward`` was replaced. :func:`to_torch` is the way back.

    Args:
        model: changed in place.

    Returns:
        ``model``.

    Raises:
        InputTypeError: if ``model`` is no ``torch.nn.Module``.
        InputError: for a module that cellwright does not have, such as one of complex numbers;
            the message names it, and nothing is changed.

    Example:
        >>> import torch, cellwright as cw
        >>> model = torch.nn.ModuleDict({"rnn": torch.nn.GRU(3, 5), "head": torch.nn.Linear(5, 2)})
        >>> weight = model["rnn"].weight_hh_l0
        >>> model = cw.accelerate(model)
        >>> type(model["rnn"]) is cw.nn.GRU, model["rnn"].weight_hh_l0 is weight
        (True, True)
    """
    return _convert(model, OURS, _enter)


def to_torch(model: Model) -> Model:
    """Turn cellwright's LSTM, GRU, RNN and their Cells inside a model into torch.nn's.

    The inverse of :func:`accelerate`, in place and on the same parameters, for tools that know
    torch.nn's modules only.

    Args:
        model: changed in place.

    Returns:
        ``model``.

    Raises:
        InputTypeError: if ``model`` is no ``torch.nn.Module``.

    Example:
        >>> import torch, cellwright as cw
        >>> type(cw.nn.to_torch(cw.nn.LSTM(3, 5))) is torch.nn.LSTM
        True
    """
    return _convert(model, THEIRS, _leave)


def _convert(model: Model, table: Mapping[Any, Any], change: Callable[..., Change]) -> Model:
    if not isinstance(model, nn.Module):
        raise InputTypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    found = []
    for name, module in model.named_modules():
        target = table.get(_plain_class(module))
        if target is None or "forward" in vars(module):
            continue
        try:
            found.append((module, target, change(module, target)))
        except InputError as error:
            where = f"module {name!r}" if name else "the module"
            raise InputError(f"{where}, a {type(module).__name__}: {error}") from error
    for module, target, (gone, new) in found:
        _put_on(module, target)
        for name in gone:
            vars(module).pop(name, None)
        vars(module).update(new)
        if isinstance(module, nn.RNNBase):
            module._init_flat_weights()
    return model


def _plain_class(module: nn.Module) -> type[nn.Module]:
    """The class of a module without the one that torch.nn.utils.parametrize puts over it."""
    own = type(module)
    below = own.__bases__[0]
    if parametrize.is_parametrized(module) and own.__name__ == f"Parametrized{below.__name__}":
        return below
    return own


def _put_on(module: nn.Module, target: type[nn.Module]) -> None:
    """Give a module the class ``target``, under its parametrizations if it has any."""
    own = type(module)
    if _plain_class(module) is not own:
        content = {k: v for k, v in vars(own).items() if k not in ("__dict__", "__weakref__")}
        target = type(f"Parametrized{target.__name__}", (target,), content)
    module.__class__ = target


def _configured(module: Any, ours: type[StandardStack]) -> dict[str, Any]:
    """What a module of class ``ours`` has beside a torch.nn.Module's own attributes."""
    blank: Any = ours.__new__(ours)
    if issubclass(ours, StandardLayer):
        blank.configure_layer(
            module.mode, int(module.input_size), int(module.hidden_size), int(module.num_layers),
            bias=module.bias, batch_first=module.batch_first, dropout=module.dropout,
            bidirectional=module.bidirectional, proj_size=int(module.proj_size),
        )  # fmt: skip
    else:
        blank.configure_cell(
            int(module.input_size), int(module.hidden_size), module.bias,
            getattr(module, "nonlinearity", None),
        )  # fmt: skip
    empty = vars(nn.Module())
    return {name: value for name, value in vars(blank).items() if name not in empty}


def _enter(module: nn.Module, ours: type[StandardStack]) -> Change:
    for name, parameter in module.named_parameters():
        if parameter.dtype not in FLOATING:
            raise InputError(f"{name}: numbers of {parameter.dtype} are not for cellwright")
    return PRIVATE, _configured(module, ours)


def _leave(module: Any, theirs: type[nn.Module]) -> Change:
    layer = isinstance(module, StandardLayer)
    gone = _configured(module, OURS[theirs]).keys() - (SHOWN_BY_LAYERS if layer else SHOWN_BY_CELLS)
    gone |= {name for name in vars(module) if name.startswith(PREFIX)}
    if not layer:
        return gone, {}
    names = [
        module.weight_names(layer, direction)
        for layer in range(module.num_layers)
        for direction in range(module.num_directions)
    ]
    return gone, {
        "_all_weights": names,
        "_flat_weights_names": [each for some in names for each in some],
    }
