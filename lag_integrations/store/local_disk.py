"""Whether a folder is on a disk of this machine."""

from __future__ import annotations

import re
from pathlib import Path

_MOUNTS = Path("/proc/self/mountinfo")
_LOCAL = {"bcachefs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "overlay", "tmpfs", "xfs", "zfs"}


def is_local_disk(folder: str) -> bool:
    """Return whether a folder is known to be on a local disk; only Linux tells."""
    try:
        lines = _MOUNTS.read_text("utf-8", "surrogateescape").rstrip("\n").split("\n")
        place = Path(folder).resolve()
    except OSError:
        return False
    kinds: dict[Path, str] = {}
    for line in lines:  # "36 35 98:0 /root /mount/point rw,noatime master:1 - ext4 /dev/sda1 rw"
        mount, _, about = line.partition(" - ")
        kinds[Path(_unescaped(mount.split(" ")[4]))] = about.split(" ")[0]
    return next((kinds[one] for one in (place, *place.parents) if one in kinds), "") in _LOCAL


def _unescaped(text: str) -> str:
    """Replace the octal escapes of mountinfo."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), text)
