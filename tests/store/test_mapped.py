"""Segments are mapped into memory where that is safe, and nothing goes wrong."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from lag_integrations.kv import mapped_file
from lag_integrations.kv.mapped_file import mapped
from lag_integrations.store import local_disk
from lag_integrations.store.segment_files import SegmentFiles
from tests.conftest import overwrite
from tests.store.processes import numbered, open_memory

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or mapped(__file__, Path(__file__).stat().st_size) is None,
    reason="files are read here",
)

MOUNTS = """\
22 1 259:1 / / rw,relatime shared:1 - ext4 /dev/root rw
30 22 0:26 / /proc rw - proc proc rw
41 22 0:40 / /srv/team rw,relatime shared:7 - nfs4 host:/team rw,vers=4.2
42 41 0:41 / /srv/team/my\\040disk rw - xfs /dev/sdb rw
43 22 0:42 / /home/me/cloud rw - fuse.sshfs me@host: rw
44 22 0:43 / /mnt rw - nfs host:/a rw
45 22 0:44 / /mnt rw - tmpfs tmpfs rw
"""


@pytest.fixture
def local(monkeypatch):
    """As on a disk of this machine, whatever the tests run on."""
    monkeypatch.setattr("lag_integrations.store.segment_files.is_local_disk", lambda _: True)


@pytest.mark.parametrize(
    ("folder", "local"),
    [
        ("/", True),
        ("/var/memory", True),
        ("/srv/team/memory", False),
        ("/srv/teams", True),
        ("/srv/team/my disk/memory", True),
        ("/home/me/cloud/a", False),
        ("/mnt/a", True),  # what was mounted last counts
    ],
)
def test_network_drives_are_not_local(monkeypatch, tmp_path, folder, local):
    (tmp_path / "mountinfo").write_text(MOUNTS)
    monkeypatch.setattr(local_disk, "_MOUNTS", tmp_path / "mountinfo")
    assert local_disk.is_local_disk(folder) is local


def test_without_mounts_nothing_is_known(monkeypatch, tmp_path):
    monkeypatch.setattr(local_disk, "_MOUNTS", tmp_path / "none")
    assert not local_disk.is_local_disk("/")


def test_a_mapped_file_may_be_removed_and_written_to(tmp_path):
    file = tmp_path / "file"
    file.write_bytes(b"0123456789")
    content = mapped(str(file), 10)
    file.unlink()
    assert content is not None
    assert bytes(content) == b"0123456789"
    content[0] = 65
    assert bytes(content[:2]) == b"A1"


def test_what_cannot_be_mapped_is_read(tmp_path, monkeypatch):
    assert mapped(str(tmp_path / "none"), 10) is None
    (tmp_path / "short").write_bytes(b"0123")
    assert mapped(str(tmp_path / "short"), 10) is None

    # A disk with an error in this file, as madvise tells it.
    monkeypatch.setattr(mapped_file, "_POPULATE_READ", -1)
    (tmp_path / "bad").write_bytes(b"0123")
    assert mapped(str(tmp_path / "bad"), 4) is None


@pytest.mark.parametrize("local", [True, False])
def test_files_are_mapped_on_local_disks_only(tmp_path, monkeypatch, local):
    monkeypatch.setattr("lag_integrations.store.segment_files.is_local_disk", lambda _: local)
    seen = []

    def spy(path: str, nbytes: int) -> memoryview | None:
        content = mapped(path, nbytes)
        seen.append((Path(path).name, content is not None))
        return content

    monkeypatch.setattr("lag_integrations.store.segment_files.mapped", spy)
    blobs = SegmentFiles(str(tmp_path))
    blobs.put("a", b"some")
    blobs.put("empty", b"")
    assert bytes(blobs.get("a", 4)) == b"some"
    assert bytes(blobs.get("empty", 0)) == b""
    assert seen == ([("a", True)] if local else [])
    assert (blobs.stamp("a") is not None) is local
    assert blobs.stamp("none") is None
    assert bool((tmp_path / "a").stat().st_mode & 0o200) is not local
    with pytest.raises(FileNotFoundError):
        blobs.get("none", 4)


@pytest.mark.parametrize("damage", ["cut", "changed", "removed"])
def test_a_file_that_is_damaged_while_it_is_held_is_made_again(
    tmp_path, tiny, local, damage, caplog
):
    with open_memory(tmp_path / "m") as memory:
        memory.add(numbered(1))
        memory.flush()
        found = memory.recall("vault")
        memory.store.segment_cache.clear()
        (held,) = memory.segments(found)
        assert memory.segments(found)[0] is held
        copies = [slot.clone() for slot in held.slots[0]]
        (file,) = (tmp_path / "m" / "segments").rglob("*.safetensors")
        data = file.read_bytes()
        if damage == "removed":
            file.unlink()
        else:
            overwrite(file, b"" if damage == "cut" else data[:-1] + bytes([data[-1] ^ 1]))
        (again,) = memory.segments(found)
        assert again is not held
        assert "cannot be used" in caplog.text
        assert all(torch.equal(*pair) for pair in zip(again.slots[0], copies, strict=True))
        assert memory.segments(found)[0] is again
