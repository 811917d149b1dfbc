"""The room for more vectors in Chroma's files, which holds whatever lay in memory.

hnswlib writes a new array of vectors with all its room, as it was allocated: pieces of what the
process had freed, prompts among them.
"""

from __future__ import annotations

import os
import struct
from contextlib import suppress
from pathlib import Path

_HEADER, _VECTORS = "header.bin", "data_level0.bin"
_FIELDS = struct.Struct("<iQQQQ")
"""Version, offset, capacity, vectors, and bytes a vector: how Chroma's hnswlib begins a header."""
_VERSION = 1
_CHUNK = 1 << 20


def blank_spare_room(index: Path) -> None:
    """Overwrite the room behind the last vector with zeros, where it holds anything else.

    Files of a kind that is not known are left as they are.

    Args:
        index: The folder of one index. Nobody may be writing into it.

    Raises:
        OSError: A file cannot be read or written.
    """
    try:
        with (index / _HEADER).open("rb") as header:
            read = header.read(_FIELDS.size)
        nbytes = (index / _VECTORS).stat().st_size
    except FileNotFoundError:  # nothing is written yet
        return
    if len(read) < _FIELDS.size:
        return
    version, offset, capacity, vectors, size = _FIELDS.unpack(read)
    is_known = (version, offset) == (_VERSION, 0) and size > 0 and nbytes % size == 0
    if not is_known or not vectors * size <= nbytes <= capacity * size:
        return
    with suppress(FileNotFoundError), (index / _VECTORS).open("r+b") as file:  # a deleted index
        file.seek(vectors * size)
        while chunk := file.read(_CHUNK):
            if chunk.count(0) < len(chunk):
                file.seek(-len(chunk), os.SEEK_CUR)
                file.write(bytes(len(chunk)))
