"""Archives that anybody changed in any way: refused, or imported as well as they can be."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lag_integrations.store.store import LogStore
from tests.store.archives import KEY, Members, changed_archives, exported, refused_or_imported
from tests.store.processes import numbered


class Target(NamedTuple):
    members: Members
    store: LogStore
    folder: Path


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    folder = tmp_path_factory.mktemp("fuzz")
    members = exported(folder, map(numbered, range(4)))
    store = LogStore(folder / "store", "default")
    yield Target(members, store, folder)
    store.close()


def everything(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if folder / "store" not in path.parents}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    "examples", [60, pytest.param(2_000, marks=pytest.mark.slow)], ids=["few", "many"]
)
def test_changed_archives_are_refused_or_imported(target: Target, examples: int) -> None:
    file = target.folder / "changed.zip"
    file.write_bytes(b"")
    outside = everything(target.folder)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    @settings(
        max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck), database=None
    )
    @given(st.data())
    def changed(data: Any) -> None:
        file.write_bytes(changed_archives(data.draw, target.members))
        key = data.draw(st.sampled_from([KEY, KEY, None]))
        refused_or_imported(target.store, file, key)

    changed()
    assert everything(target.folder) == outside
    assert not Path("/tmp/evil").exists()
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 2**10
    assert grown < 300e6
