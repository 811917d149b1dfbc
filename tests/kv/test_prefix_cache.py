"""What the prefix cache holds, finds, and lets go of."""

from __future__ import annotations

import gc

import torch

from lag_integrations.kv.cache import new_cache, read_layers
from lag_integrations.kv.prefix_cache import PUBLIC, Injected, PrefixCache
from lag_integrations.kv.segment import Segment

BYTES = 2 * 2 * 3 * 4 * 4
"""Of a token: two layers, two slots, three heads of four dimensions in fp32."""


def cache_of(tokens: int):
    slots = torch.arange(3 * tokens * 4, dtype=torch.float32).view(1, 3, tokens, 4)
    return new_cache([(slots, -slots), (slots + 1, -slots - 1)])


def segment_of(tokens: int) -> Segment:
    return Segment(torch.arange(tokens), (), "model")


def put(prefixes: PrefixCache, *pieces) -> None:
    length = sum(1 if isinstance(piece, int) else piece.length for piece in pieces)
    prefixes.insert(pieces, cache_of(length))


def test_the_longest_beginning_is_found_and_the_last_piece_left():
    prefixes = PrefixCache(10_000)
    put(prefixes, 1, 2, 3)
    put(prefixes, 1, 2, 4, 5)
    for prompt, known in (
        ([1, 2, 4, 5, 6], 4),
        ([1, 2, 4, 5], 3),
        ([1, 2, 3], 2),
        ([1, 9], 1),
        ([9, 2], 0),
        ([1], 0),
    ):
        cache, found = prefixes.fork(prompt)
        assert (found, cache.get_seq_length()) == (known, known)
    cache, _ = prefixes.fork([1, 2, 4, 9])
    keys, values = read_layers(cache)[1]
    assert torch.equal(keys, read_layers(cache_of(4))[1][0][:, :, :3])
    assert torch.equal(values, read_layers(cache_of(4))[1][1][:, :, :3])


def test_a_segment_is_found_only_as_itself_and_at_its_temperature():
    prefixes = PrefixCache(10_000)
    segment, twin = segment_of(3), segment_of(3)
    put(prefixes, 1, Injected.of(segment, 0.9), 2)
    assert prefixes.fork([1, Injected.of(segment, 0.9), 2, 5])[1] == 3
    cache, known = prefixes.fork([1, Injected.of(segment, 0.9), 7])
    assert (known, cache.get_seq_length()) == (2, 4)
    assert prefixes.fork([1, Injected.of(twin, 0.9), 2, 5])[1] == 1
    assert prefixes.fork([1, Injected.of(segment, 1.0), 2, 5])[1] == 1
    assert prefixes.fork([1, 0, 1, 2, 2])[1] == 1, "its tokens as text are something else"


def test_an_entry_goes_with_its_segment():
    prefixes = PrefixCache(10_000)
    segment, other = segment_of(3), segment_of(2)
    put(prefixes, 1, Injected.of(segment, 0.9), Injected.of(other, 0.9), 2)
    put(prefixes, 1, 2, 3)
    del other
    gc.collect()
    assert len(prefixes) == 1
    assert prefixes.fork([1, Injected.of(segment, 0.9), 2])[1] == 1


def test_what_stands_before_segments_outlives_them():
    prefixes = PrefixCache(10_000)
    segment = segment_of(3)
    put(prefixes, 1, 2)
    put(prefixes, 1, 2, Injected.of(segment, 0.9), 3)
    assert len(prefixes) == 2
    del segment
    gc.collect()
    assert prefixes.fork([1, 2, 4])[1] == 2


def test_what_stands_before_segments_is_as_recent_as_they_are():
    prefixes = PrefixCache(9 * BYTES)
    segment = segment_of(3)
    put(prefixes, 1, 2)
    put(prefixes, 7, 8)
    put(prefixes, 1, 2, Injected.of(segment, 0.9))
    put(prefixes, 5)
    assert [prefixes.fork([*known, 9])[1] for known in ([7, 8], [1, 2], [5])] == [0, 2, 1]


def test_a_conversation_that_goes_on_is_one_entry():
    prefixes = PrefixCache(10_000)
    put(prefixes, 1, 2)
    put(prefixes, 1, 2, 3, 4)
    assert (len(prefixes), prefixes.nbytes) == (1, 4 * BYTES)
    put(prefixes, 1, 2, 3)
    assert (len(prefixes), prefixes.nbytes) == (1, 4 * BYTES), "all of it is known"
    put(prefixes)
    assert len(prefixes) == 1


def test_the_oldest_go_when_there_is_no_room():
    prefixes = PrefixCache(5 * BYTES)
    put(prefixes, 1, 2)
    put(prefixes, 3, 4)
    prefixes.fork([1, 2, 9])  # used
    put(prefixes, 5, 6)
    assert prefixes.nbytes == 4 * BYTES
    assert [prefixes.fork([token, token + 1, 9])[1] for token in (1, 3, 5)] == [2, 0, 2]
    put(prefixes, *range(10, 16))
    assert prefixes.nbytes == 4 * BYTES, "larger than all that may be held"
    prefixes.clear()
    assert (len(prefixes), prefixes.nbytes) == (0, 0)
    assert prefixes.fork([1, 2, 9])[1] == 0


def test_no_bytes_are_no_cache():
    prefixes = PrefixCache(0)
    put(prefixes, 1, 2)
    assert len(prefixes) == 0


def test_entries_are_few():
    prefixes = PrefixCache(10_000_000)
    for token in range(100):
        put(prefixes, token, token)
    assert len(prefixes) == 32


def test_what_one_salt_read_is_nothing_to_another():
    prefixes = PrefixCache(10_000)
    prefixes.insert([1, 2, 3], cache_of(3), salt="lima")
    assert prefixes.fork([1, 2, 3, 4], salt="lima")[1] == 3
    for salt in ("", "quito", "lim"):
        assert prefixes.fork([1, 2, 3, 4], salt=salt)[1] == 0
        assert prefixes.match_length([1, 2, 3, 4], salt=salt)[0] == 0
    prefixes.insert([1, 2, 3], cache_of(3), salt="quito")  # nor does it take the other's place
    assert len(prefixes) == 2


def test_what_is_public_is_everybodys():
    prefixes = PrefixCache(10_000)
    prefixes.insert([1, 2], cache_of(2), salt=PUBLIC)
    prefixes.insert([1, 2, 3], cache_of(3), salt="lima")
    assert prefixes.fork([1, 2, 3, 4], salt="quito")[1] == 2
    assert prefixes.fork([1, 2, 3, 4], salt="lima")[1] == 3
    assert prefixes.has_public([1, 2])
    assert not prefixes.has_public([1, 2, 3])


def test_a_salt_is_forgotten_with_all_within_it():
    prefixes = PrefixCache(10_000)
    for salt in ("lima", "lima:ada", "limax", "quito"):
        prefixes.insert([1, 2], cache_of(2), salt=salt)
    prefixes.clear_salt("lima")
    found = [
        prefixes.match_length([1, 2, 3], salt=each)[0] for each in ("lima", "lima:ada", "limax")
    ]
    assert found == [0, 0, 2]
    assert len(prefixes) == 2


def test_what_was_forgotten_meanwhile_is_not_put_back():
    prefixes = PrefixCache(10_000)
    begun = prefixes.moment()
    prefixes.clear_salt("lima")
    prefixes.insert([1, 2], cache_of(2), salt="lima:ada", since=begun)
    prefixes.insert([1, 2], cache_of(2), salt="quito", since=begun)
    prefixes.insert([3, 4], cache_of(2), salt="lima", since=prefixes.moment())
    assert prefixes.match_length([1, 2, 3], salt="lima:ada")[0] == 0
    assert prefixes.match_length([1, 2, 3], salt="quito")[0] == 2
    assert prefixes.match_length([3, 4, 5], salt="lima")[0] == 2
