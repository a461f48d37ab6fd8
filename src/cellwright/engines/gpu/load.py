"""Emitted source on disk, and the modules that it becomes.

Triton reads the text of a kernel from its file. The files lie in the cache folder under the full
hash of their text; where there is none, in a folder that goes with the process.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import tempfile
import threading
import warnings
from functools import lru_cache
from pathlib import Path
from types import ModuleType

from cellwright.engines.cpu import jit

_lock = threading.RLock()
_modules: dict[str, ModuleType] = {}


@lru_cache(maxsize=1)
def _own_folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="cellwright-")


def _place(name: str, text: str) -> Path:
    """The file that holds ``text``, written if it is not there as it should be."""
    content = text.encode()
    kept = jit.cache_folder()
    if kept is not None:
        try:
            return _written(kept.with_name("triton") / name, content)
        except OSError as error:
            warnings.warn(
                f"emitted kernels are not kept on disk: {kept.with_name('triton')} cannot be "
                f"written ({error.strerror})",
                stacklevel=2,
            )
    return _written(Path(_own_folder().name) / name, content)


def _written(path: Path, content: bytes) -> Path:
    if path.is_file() and path.read_bytes() == content:
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        try:
            file.write(content)
            file.flush()
            os.replace(file.name, path)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise
    return path


def load(text: str) -> ModuleType:
    """The module of an emitted source; the same object for the same text."""
    key = hashlib.sha256(text.encode()).hexdigest()
    with _lock:
        if key not in _modules:
            name = f"cellwright_kernel_{key}"
            spec = importlib.util.spec_from_file_location(name, _place(f"{name}.py", text))
            assert spec is not None and spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            _modules[key] = module
        return _modules[key]
