"""The files of an archive as streams with limits on their length."""

from __future__ import annotations

import hashlib
import io
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from lag_integrations.errors import StoreError
from lag_integrations.store.archive.format import MAX_SEGMENTS
from lag_integrations.store.chunks import pages

_COMPRESSION = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""Allowed methods; others may take any amount of memory."""
_BUFFER = 2**16
_VALUE_BYTES = 64
_ENTRY_BYTES = 80
"""Of the directory, for each file."""
_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    OSError,
    RuntimeError,  # encrypted; NotImplementedError: compressed in some other way
    ValueError,
)
"""Exceptions of reading a damaged or hostile zip file."""


class _File(io.BufferedReader):
    """A zip file of which no more than so many bytes are read at once: its directory, at opening.

    Each entry of the directory takes up to ten times the memory that it takes there.
    """

    most: int | None = MAX_SEGMENTS * _ENTRY_BYTES

    def read(self, size: int | None = -1) -> bytes:
        if self.most is not None and size is not None and size > self.most:
            raise zipfile.BadZipFile("it has more files than any export")
        return super().read(size)


class Members:
    """The files in an archive.

    Args:
        path: The archive.

    Raises:
        StoreError: There is none, or it is no zip file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = _File(io.FileIO(path))
        except FileNotFoundError:
            raise StoreError(f"There is no archive {path}.") from None
        except OSError as error:
            raise self._not_whole(error) from error
        try:
            self._archive = zipfile.ZipFile(self._file)
        except _DAMAGE as error:
            self._file.close()
            raise self._not_whole(error) from error
        self._file.most = None

    def __len__(self) -> int:
        return len(self._archive.filelist)

    def close(self) -> None:
        """Release the archive."""
        self._archive.close()
        self._file.close()

    def read(self, name: str, limit: int) -> bytes:
        """Return a file's content, or its first ``limit + 1`` bytes if it is longer.

        Raises:
            KeyError: There is none.
            StoreError: It cannot be read.
        """
        try:
            with self._open(name) as file:
                return file.read(limit + 1)
        except _DAMAGE as error:
            raise self._not_whole(error) from error

    def lines(self, name: str, limit: int, most: int) -> Iterator[bytes]:
        """Yield the lines of a file.

        Args:
            name: The file.
            limit: Most bytes of a line.
            most: Most lines.

        Raises:
            StoreError: It is not there, cannot be read, or has longer or more lines.
        """
        try:
            with self._open(name) as file:
                number = 0
                while line := file.readline(limit + 1):
                    number += 1
                    if len(line) > limit:
                        raise StoreError(
                            f"{self.path} cannot be imported: line {number} of {name} is too "
                            f"long; no line that an export writes has more than {limit:,} bytes."
                        )
                    if number > most:
                        raise StoreError(
                            f"{self.path} is damaged, or was changed: {name} should have "
                            f"{most:,} lines, but has more. Export it again."
                        )
                    yield line
        except KeyError:
            raise StoreError(f"{self.path} is not whole: it has no {name}.") from None
        except _DAMAGE as error:
            raise self._not_whole(error) from error

    def _open(self, name: str) -> io.BufferedReader:
        info = self._archive.getinfo(name)
        if info.compress_type not in _COMPRESSION:
            raise NotImplementedError(f"{name} is compressed in a way that no export uses")
        # Reads lines faster than a file of zipfile does.
        return io.BufferedReader(cast(Any, self._archive.open(info)), _BUFFER)

    def _not_whole(self, error: Exception) -> StoreError:
        return StoreError(
            f"{self.path} cannot be read as an archive: it is no zip file, cut short or damaged "
            f"({type(error).__name__}: {error}). Export it again, or take another copy."
        )


class Lines:
    """The lines of one file, which is hashed as a whole before any of them is used.

    The archive may be changed while it is read. So each page is hashed again when it is used.

    Args:
        members: The archive.
        name: The file.
        limit: Most bytes of a line.
        number: Required number of lines.
        sha256: Required hash of the file, in hexadecimal; None if it is not known.

    Raises:
        StoreError: The file has another hash or number of lines.
    """

    def __init__(
        self, members: Members, name: str, limit: int, number: int, sha256: str | None
    ) -> None:
        self.name = name
        self._members = members
        self._limit = limit
        self._number = number
        self._digests: list[bytes] = []  # of the file up to the end of each page
        digest, found = hashlib.sha256(), 0
        for page in self._raw_pages():
            for line in page:
                digest.update(line)
            self._digests.append(digest.digest())
            found += len(page)
        if found != number:
            raise StoreError(
                f"{members.path} is not whole: {name} should have {number:,} lines, but has "
                f"{found:,}. Export it again."
            )
        if sha256 is not None and digest.hexdigest() != sha256:
            raise StoreError(
                f"{members.path} is damaged, or was changed: {name} is not what was exported. "
                "Export it again, or take another copy."
            )

    def __len__(self) -> int:
        return self._number

    def pages(self) -> Iterator[list[bytes]]:
        """Yield the lines in pages.

        Raises:
            StoreError: They changed since they were hashed.
        """
        digest, expected = hashlib.sha256(), iter(self._digests)
        for page in self._raw_pages():
            for line in page:
                digest.update(line)
            if digest.digest() != next(expected, None):
                raise StoreError(
                    f"{self._members.path} was changed while it was read. Import it again."
                )
            yield page
        if next(expected, None) is not None:
            raise StoreError(
                f"{self._members.path} was cut short while it was read. Import it again."
            )

    def _raw_pages(self) -> Iterator[list[bytes]]:
        return pages(self._members.lines(self.name, self._limit, self._number), _weight)


def _weight(line: bytes) -> int:
    """Return the size of a line in a page: its values take more memory than their text."""
    return len(line) + _VALUE_BYTES * sum(line.count(mark) for mark in (b",", b"[", b"{"))
