"""Whether the documents shown now tell that those of a log changed."""

from __future__ import annotations

import pytest

from lag_integrations.traces.sources import Source, is_outdated, names_in, sources_in

A = Source("a", ("doc",), "old a")
B = Source("b", ("doc",), "old b")
FILED = Source("a", ("doc", "/notes.txt"), "old a", "v1")


@pytest.mark.parametrize(
    ("known", "shown", "outdated"),
    [
        pytest.param([A], [], False, id="nothing shown"),
        pytest.param([A], [Source("x", ("other",), "x")], False, id="other documents"),
        pytest.param([A], [A, Source("c", ("doc",), "c")], False, id="as it was"),
        pytest.param([A], [Source("a", (), "new a")], True, id="same id"),
        pytest.param([A], [Source("z", ("doc",), "old a")], False, id="same content, new id"),
        pytest.param([A], [Source("z", ("doc",), "new a")], True, id="put in again, changed"),
        pytest.param([A, B], [A, Source("c", ("doc",), "c")], False, id="b is not shown"),
        pytest.param(
            [A, B],
            [Source("y", ("doc",), "old a"), Source("z", ("doc",), "new b")],
            True,
            id="put in again, b is gone",
        ),
        pytest.param([A, B], [A, Source("b", ("doc",), "new b")], True, id="b changed"),
        pytest.param(
            [FILED], [Source("c", ("doc",), "c", "v1")], False, id="another piece, same version"
        ),
        pytest.param(
            [FILED], [Source("c", ("doc",), "c", "v2")], True, id="another piece, new version"
        ),
        pytest.param(
            [FILED], [Source("c", ("new", "/notes.txt"), "c", "v1")], False, id="read again"
        ),
        pytest.param(
            [FILED], [Source("c", ("new", "/notes.txt"), "c", "v2")], True, id="read again, changed"
        ),
        pytest.param(
            [Source("a", (), "old a")], [Source("z", (), "new a")], False, id="no names at all"
        ),
        pytest.param(
            [Source(None, ("doc",), "x")], [Source(None, ("other",), "y")], False, id="no ids"
        ),
    ],
)
def test_what_is_shown_tells(known, shown, outdated):
    assert is_outdated(known, shown) is outdated


def test_metadata_of_others_is_no_source():
    mine = FILED.to_json()
    assert sources_in({"sources": [mine]}) == [FILED]
    for other in (None, "doc", 3, {"hash": "x"}, {"hash": 1, "documents": []}):
        assert sources_in({"sources": other}) == sources_in({"sources": [other]}) == []
        assert names_in([other]) == [other]
    assert names_in([mine, "doc-7", A.to_json()]) == ["doc-7", "doc", "/notes.txt", "a"]
