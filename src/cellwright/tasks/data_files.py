"""Data that does not come with the package: found in a folder of the user's, or downloaded."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from cellwright.errors import DataError
from cellwright.tasks.text import digest

VARIABLE = "CELLWRIGHT_DATA"


@dataclass(frozen=True)
class DataFile:
    """A file of a data set.

    Attributes:
        folder: of the data set, below the folder that ``CELLWRIGHT_DATA`` names.
        name: of the file.
        url: its public address.
        sha256: of its content.
    """

    folder: str
    name: str
    url: str
    sha256: str

    def here(self) -> bool:
        """Whether the file is at hand, so that nothing has to be downloaded."""
        import pooch

        named = os.environ.get(VARIABLE)
        given = Path(named).expanduser() / self.folder / self.name if named else None
        kept = pooch.os_cache("cellwright") / self.folder / self.name
        return kept.exists() or (given is not None and given.exists())

    def path(self) -> Path:
        """The file, downloaded the first time.

        Where the environment variable ``CELLWRIGHT_DATA`` names a folder that has it, that one is
        taken; else the one in the user's cache, after a download if it is not there yet.

        Raises:
            DataError: the file cannot be downloaded, or is not the one that is meant.
        """
        named = os.environ.get(VARIABLE)
        if named:
            given = Path(named).expanduser() / self.folder / self.name
            if given.exists():
                if digest(given) != self.sha256:
                    raise DataError(
                        f"{given}: this is another file than {self.url}: its SHA-256 differs"
                    )
                return given
        return self._download()

    def _download(self) -> Path:
        import pooch

        pooch.get_logger().setLevel("WARNING")
        try:
            found = pooch.retrieve(
                self.url, f"sha256:{self.sha256}", self.name,
                pooch.os_cache("cellwright") / self.folder,
            )  # fmt: skip
        # Whatever the network raises is one of these.
        except (OSError, ValueError) as error:
            raise DataError(
                f"{self.url} cannot be downloaded ({error}); if you have the file, put it into "
                f"FOLDER/{self.folder}/{self.name} and set {VARIABLE}=FOLDER"
            ) from error
        return Path(found)
