"""Nested states as safetensors files: tensors as tensors, all the rest as JSON, no pickle.

A file is one safetensors file. Its metadata has one entry, ``cellwright``, which is JSON:
``format`` says what the file is, ``format_version`` is a number that grows when old readers
would misread it, and ``content`` is the nested state, in which a tensor is replaced by its name:
the keys on the way to it, with dots between. (One entry, because safetensors writes several in
an order that changes from call to call, and equal states are to give equal bytes.)
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialise
from torch import Tensor

from cellwright.errors import CheckpointError
from cellwright.train.files import replacing

FORMAT_VERSION = 1


def save(path: Path, kind: str, content: Any) -> None:
    """Write a nested state of dicts, lists, tuples, tensors and plain values, whole or not at all.

    Args:
        path: the file.
        kind: what it is; `load` asks for the same.
        content: the state.

    Raises:
        UsageError: the file cannot be written.
    """
    tensors: dict[str, Tensor] = {}
    head = {"format": kind, "format_version": FORMAT_VERSION, "content": _pack(content, tensors)}
    # As bytes: safetensors' own writer makes files that only their owner can read.
    with replacing(path) as temporary:
        temporary.write_bytes(serialise(tensors, {"cellwright": json.dumps(head)}))


def load(path: Path, kind: str) -> Any:
    """Read what `save` wrote. Nothing in the file is executed.

    Raises:
        CheckpointError: the file is missing, truncated, of another kind or of a newer format.
    """
    try:
        # Opened first for its own sake: safetensors does not tell a missing file from a bad one.
        with path.open("rb"):
            pass
        with safe_open(path, framework="pt") as opened:
            head = json.loads((opened.metadata() or {}).get("cellwright", "{}"))
            _check(path, kind, head)
            # Cloned: what is mapped from the file would change or vanish with it.
            tensors = {name: opened.get_tensor(name).clone() for name in opened.keys()}  # noqa: SIM118
        return _unpack(head["content"], tensors)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: there is no such file") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
    except SafetensorError as error:
        raise CheckpointError(
            f"{path}: expected a safetensors file, but it is damaged or truncated ({error})"
        ) from None
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise CheckpointError(f"{path}: its content is damaged ({error!r})") from error


def _check(path: Path, kind: str, head: dict[str, Any]) -> None:
    version = head.get("format_version")
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: its format is version {version}, and this cellwright reads versions up to "
            f"{FORMAT_VERSION}: install a newer cellwright to use it"
        )
    if head.get("format") != kind or not isinstance(version, int):
        found = head.get("format", "a safetensors file that cellwright did not write")
        raise CheckpointError(f"{path}: expected a {kind}, got {found}")


def _pack(value: Any, tensors: dict[str, Tensor], path: tuple[str, ...] = ()) -> Any:
    """The value as JSON can hold it; its tensors go into ``tensors`` under their path."""
    if isinstance(value, Tensor):
        name = ".".join(path)
        while name in tensors:  # a key with a dot in it can look like a path
            name += "_"
        tensors[name] = value.detach().cpu().contiguous().clone()
        return {"tensor": name}
    if isinstance(value, dict):
        return {
            "dict": [[_pack(k, {}), _pack(v, tensors, (*path, str(k)))] for k, v in value.items()]
        }
    if isinstance(value, (tuple, list)):
        packed = [_pack(each, tensors, (*path, str(i))) for i, each in enumerate(value)]
        return {"tuple": packed} if isinstance(value, tuple) else packed
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    raise TypeError(f"a {type(value).__name__} cannot be stored: {value!r}")


def _unpack(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_unpack(each, tensors) for each in value]
    if not isinstance(value, dict):
        return value
    ((form, content),) = value.items()
    if form == "tensor":
        return tensors[content]
    if form == "tuple":
        return tuple(_unpack(each, tensors) for each in content)
    if form != "dict":
        raise ValueError(f"unknown form {form!r}")
    return {_unpack(k, tensors): _unpack(v, tensors) for k, v in content}
