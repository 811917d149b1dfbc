"""What Chroma writes of the process's memory is blanked."""

import random

import pytest

from lag_integrations import KVLogMemory
from lag_integrations.store.chroma.spare_room import blank_spare_room
from tests.store.model import hash_embedder
from tests.store.processes import numbered

SECRET = b"4111-2222-3333"


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Return a store whose index Chroma has written, and its file of vectors."""
    folder = tmp_path_factory.mktemp("spare") / "memory"
    with KVLogMemory(folder, embedder=hash_embedder) as memory:
        memory.add_many(numbered(n) for n in range(9))
        memory.flush()
    (file,) = folder.rglob("data_level0.bin")
    return folder, file


def test_what_lies_behind_the_vectors_is_blanked_and_nothing_else(written):
    folder, file = written
    whole = file.read_bytes()
    vectors = len(whole.rstrip(b"\0"))
    assert vectors < len(whole) - 20_000, "there is room for more, of a kind that is known"
    junk = bytearray(whole)
    for _ in range(50):
        place = random.randrange(vectors + 1_000, len(junk) - len(SECRET))
        junk[place : place + len(SECRET)] = SECRET
    file.write_bytes(junk)
    blank_spare_room(file.parent)
    assert file.read_bytes() == whole
    file.write_bytes(junk)
    with KVLogMemory(folder, embedder=hash_embedder) as memory:
        assert len(memory.recall(numbered(7).task, k=9, min_score=-1)) == 9
        assert len(memory.store.index.entries()) == 18
        assert SECRET not in file.read_bytes()
        file.write_bytes(junk)  # as Chroma may write it
        memory.add(numbered(9))
        memory.flush()
        assert SECRET not in file.read_bytes()


def test_a_file_of_an_unknown_kind_is_left_as_it_is(written):
    _, file = written
    header = file.with_name("header.bin")
    known, whole = header.read_bytes(), file.read_bytes()
    file.write_bytes(whole[:-1] + b"x")
    for other in (b"\2" + known[1:], known[:12] + b"\1" + known[13:], b""):
        header.write_bytes(other)
        blank_spare_room(file.parent)
        assert file.read_bytes() == whole[:-1] + b"x"
    header.write_bytes(known)
    file.write_bytes(whole)
