"""What a user has in a file: find the file, run it as a module, pick the cell or task out."""

from __future__ import annotations

import hashlib
import sys
import traceback
import types
from pathlib import Path
from typing import TypeVar

from cellwright.errors import CellError, CellwrightError, UsageError
from cellwright.lang.spec import CellSpec

DIGEST = "__cellwright_digest__"  # in a module that was run here: a hash of its file's content


def load_from_file(reference: str) -> CellSpec:
    """Return the cell that "path/to/file.py:cell_name" or "path/to/file.py" refers to."""
    return find_in_file(reference, CellSpec, "cell", "@cell(state=...)")


Kind = TypeVar("Kind")


def find_in_file(reference: str, kind: type[Kind], word: str, decorator: str) -> Kind:
    """Return the object that "path/to/file.py:name" or "path/to/file.py" refers to.

    Args:
        reference: the file and, unless there is only one object of the kind in it, the name.
        kind: its type.
        word: what a user calls it.
        decorator: what makes one of a function.

    Raises:
        UsageError: there is no such file, or nothing of that name and kind in it.
        CellError: running the file raised an error.
    """
    path, name = _split(reference, word)
    module = _run_once(path)
    known = {key: value for key, value in vars(module).items() if isinstance(value, kind)}
    found = f"{word}s in the file: {', '.join(known) or 'none'}"
    if name is None:
        if len(known) == 1:
            return next(iter(known.values()))
        raise UsageError(f"which {word} of {path}? write '{path}:{word}_name'; {found}")
    if name in known:
        return known[name]
    if name in vars(module):
        other = type(getattr(module, name)).__name__
        raise UsageError(
            f"{name!r} in {path} is a {other}, not a {word}; a {word} has {decorator} above its "
            f"def; {found}"
        )
    raise UsageError(f"no {word} is named {name!r} in {path}; {found}")


def module_of(path: Path) -> types.ModuleType:
    """The module that the file was run as, however it has changed since; else the file is run."""
    return sys.modules.get(_module_name(path)) or _run_once(path)


def path_of(module: str) -> Path | None:
    """The file of a module that was run here; None for a module that Python imports itself."""
    found = sys.modules.get(module)
    if found is None or DIGEST not in vars(found):
        return None
    return Path(str(found.__file__))


def _module_name(path: Path) -> str:
    return f"cellwright_file_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"


def _split(reference: str, word: str) -> tuple[Path, str | None]:
    head, colon, last = reference.rpartition(":")
    # "C:\cells.py" has a colon and no cell's name.
    name = last if colon and not last.endswith(".py") else None
    if name is None:
        head = reference
    path = Path(head).expanduser()
    if name is not None and not name.isidentifier():
        raise UsageError(
            f"{reference!r} does not name a {word} after the last colon; expected "
            f"'path/to/file.py:{word}_name'"
        )
    if not path.exists():
        raise UsageError(f"no file {path} (from {reference!r}, in the folder {Path.cwd()})")
    if not path.is_file():
        raise UsageError(f"{path} is not a file; expected 'path/to/file.py:{word}_name'")
    return path.resolve(), name


def _run_once(path: Path) -> types.ModuleType:
    """Run the file under a module name made of its path; again only after it has changed."""
    source = _read(path)
    digest = hashlib.sha256(source).hexdigest()
    name = _module_name(path)
    earlier = sys.modules.get(name)
    if earlier is not None and vars(earlier).get(DIGEST) == digest:
        return earlier
    module = types.ModuleType(name)
    module.__file__ = str(path)
    vars(module)[DIGEST] = digest
    sys.modules[name] = module
    try:
        exec(compile(source, str(path), "exec", dont_inherit=True), module.__dict__)
    except BaseException as error:
        if earlier is None:
            del sys.modules[name]
        else:
            sys.modules[name] = earlier
        if isinstance(error, CellwrightError) or not isinstance(error, Exception):
            raise
        raise CellError(_what_went_wrong(path, error)) from error
    return module


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error


def _what_went_wrong(path: Path, error: Exception) -> str:
    if isinstance(error, SyntaxError) and error.lineno is not None:
        return f"{error.filename or path}:{error.lineno}: {type(error).__name__}: {error.msg}"
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename == str(path)
    ]
    where = f"{path}:{lines[-1]}" if lines else str(path)
    return f"{where}: running the file raised {type(error).__name__}: {error}"
