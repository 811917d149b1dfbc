"""Segment files: in a local folder, or anywhere that fsspec can write to."""

from __future__ import annotations

import os
import posixpath
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import fsspec
from fsspec.implementations.local import LocalFileSystem

from lag_integrations.errors import SegmentCorruptedError, StoreError
from lag_integrations.kv.mapped_file import Data, mapped
from lag_integrations.store.local_disk import is_local_disk

Stamp = tuple[int, int, int]
"""Inode, size and modification time of a file."""


class SegmentFiles:
    """Files that are written as a whole or not at all.

    Args:
        url: Folder, or URL of a folder for fsspec, as ``s3://bucket/memory``.
        make: Create the folder if it does not exist.

    Raises:
        StoreError: There is no such file system.
    """

    def __init__(self, url: str, *, make: bool = True) -> None:
        self.url = url
        try:
            self._fs, self._root = fsspec.core.url_to_fs(url)
            if make and isinstance(self._fs, LocalFileSystem):
                Path(self._root).mkdir(0o700, parents=True, exist_ok=True)
            elif make:
                self._fs.makedirs(self._root, exist_ok=True)
        except (ImportError, ValueError, OSError) as error:
            raise StoreError(
                f"Segments cannot be kept at {url!r} ({error}). Give a folder or a URL that fsspec "
                "can write to, and install the package that it names."
            ) from error
        self._local = isinstance(self._fs, LocalFileSystem)
        self._mapped = self._local and is_local_disk(self._root)

    def put(self, name: str, data: bytes) -> None:
        """Write a new file durably.

        Raises:
            OSError: It cannot be written (a full disk), or is reached by a link.
        """
        path = self._path(name)
        if problem := self._link_on_the_way(posixpath.dirname(name)):
            raise OSError(problem)
        if not self._local:
            self._fs.pipe_file(path, data)  # object stores show an object when it is whole
            return
        folder = Path(path).parent
        folder.mkdir(parents=True, exist_ok=True)
        prefix = f".{Path(path).stem}-"  # whose it is can be seen, if it is left half written
        descriptor, scratch = tempfile.mkstemp(dir=folder, prefix=prefix, suffix=".part")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
                if self._mapped:  # whoever would write into it now makes another file instead
                    os.fchmod(file.fileno(), 0o400)
            os.replace(scratch, path)
            sync_folder(folder)
        except BaseException:
            Path(scratch).unlink(missing_ok=True)
            raise

    def get(self, name: str, nbytes: int) -> Data:
        """Return the content of a file, which on a local disk is mapped into memory.

        Args:
            name: The file.
            nbytes: Its size. Of a file of another size, which may be huge, nothing is read, or in
                an object store a byte more than that.

        Raises:
            OSError: It is missing or cannot be read.
            SegmentCorruptedError: It is of another size, no plain file, or reached by a link.
        """
        path = self._path(name)
        if not self._local:
            data: bytes = self._fs.cat_file(path, start=0, end=nbytes + 1)
            if len(data) != nbytes:
                size = f"more than {nbytes}" if len(data) > nbytes else len(data)
                raise SegmentCorruptedError(_other_size(path, size, nbytes))
            return data
        if problem := self._link_on_the_way(name):
            raise SegmentCorruptedError(problem)
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode):  # of which reading may never end
            raise SegmentCorruptedError(f"{path} is no plain file.")
        if found.st_size != nbytes:
            raise SegmentCorruptedError(_other_size(path, found.st_size, nbytes))
        content = mapped(path, nbytes) if self._mapped and nbytes else None
        return _read(path, nbytes) if content is None else content

    def stamp(self, name: str) -> Stamp | None:
        """Return a stamp that changes with a mapped file; None for files that are not mapped."""
        if not self._mapped:
            return None
        try:
            found = os.stat(self._path(name))
        except OSError:
            return None
        return found.st_ino, found.st_size, found.st_mtime_ns

    def remove(self, name: str) -> None:
        """Remove a file, if it exists.

        Raises:
            OSError: It cannot be removed.
            StoreError: It is reached by a link.
        """
        self._refuse_links(posixpath.dirname(name))
        try:
            self._fs.rm_file(self._path(name))
        except FileNotFoundError:
            return

    def names(self, folder: str) -> Iterator[str]:
        """Yield the names of all files below a folder, those of interrupted writes included.

        Raises:
            StoreError: The folder is a link, or is reached by one.
        """
        self._refuse_links(folder)
        try:
            paths = self._fs.find(self._path(folder), withdirs=False)
        except FileNotFoundError:
            return
        for path in paths:
            yield posixpath.relpath(path, self._root)

    def folders(self, folder: str) -> list[str]:
        """Return the folders within a folder, without links.

        Raises:
            StoreError: The folder is a link, or is reached by one.
        """
        self._refuse_links(folder)
        try:
            entries = self._fs.ls(self._path(folder), detail=True)
        except FileNotFoundError:
            return []
        found = (entry["name"] for entry in entries if entry["type"] == "directory")
        return [posixpath.relpath(path, self._root) for path in found]

    def age(self, name: str) -> float:
        """Return the seconds since a file was written; infinity if that is not known."""
        try:
            return float(time.time() - self._fs.modified(self._path(name)).timestamp())
        except (NotImplementedError, FileNotFoundError):
            return float("inf")

    def move(self, name: str, target: str) -> None:
        """Move a file, if it exists.

        Raises:
            OSError: It cannot be moved.
            StoreError: It or the target is reached by a link, or the target is one.
        """
        self._refuse_links(posixpath.dirname(name))
        self._refuse_links(target)
        try:
            self._fs.makedirs(posixpath.dirname(self._path(target)), exist_ok=True)
            self._fs.mv(self._path(name), self._path(target))
        except FileNotFoundError:
            return

    @staticmethod
    def is_name(name: str) -> bool:
        """Return whether a name stays below the root."""
        return not name.startswith("/") and ".." not in name.split("/")

    def _refuse_links(self, folder: str) -> None:
        """Refuse a folder that is reached by a link below the root: it may be somebody else's."""
        if problem := self._link_on_the_way(folder):
            raise StoreError(problem)

    def _link_on_the_way(self, name: str) -> str | None:
        """Say that a file or folder is, or is reached by, a link below the root, if so."""
        place = self._path(name)
        while self._local and len(place) > len(self._root):
            if os.path.islink(place):
                return (
                    f"{place} is a link, which this store did not make and does not follow. "
                    "Remove the link, or put what it leads to in its place."
                )
            place = posixpath.dirname(place)
        return None

    def _path(self, name: str) -> str:
        if not self.is_name(name):
            raise StoreError(f"{name[:80]!r} is not the name of a segment file.")
        return posixpath.join(self._root, name)


def _other_size(path: str, size: int | str, nbytes: int) -> str:
    return (
        f"{path} is damaged, or was written by somebody else: it has {size} bytes, not {nbytes}. "
        "Encode its trace again."
    )


def _read(path: str, nbytes: int) -> Data:
    with open(path, "rb", buffering=0) as file:
        data = bytearray(nbytes)
        with memoryview(data) as view:
            done = 0
            while done < len(view) and (some := file.readinto(view[done:])):
                done += some
    if done < len(data):
        raise OSError(f"{path} was cut short while it was read")
    return data


def sync_folder(folder: Path) -> None:
    """Make new names in a folder durable, if the system can."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
