"""Opening a data file of the user's, plain or compressed, with errors that name it."""

from __future__ import annotations

import gzip
import hashlib
import zlib
from pathlib import Path

from cellwright.errors import DataError


def read_text(path: Path) -> str:
    """The whole text of a file, decompressed where its name ends in ``.gz``.

    Raises:
        DataError: the file is missing, unreadable, empty, not UTF-8 or a broken archive.
    """
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file") from None
    except IsADirectoryError:
        raise DataError(f"{path}: this is a folder, and a data file was expected") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    if path.suffix == ".gz":
        try:
            raw = gzip.decompress(raw)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{path}: the archive is damaged or truncated ({error})") from error
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}:{line}: this is not UTF-8 text") from None
    if not text.strip():
        raise DataError(f"{path}: the file is empty")
    return text


def digest(path: Path) -> str:
    """SHA-256 of a file, by which a run knows its data again.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
