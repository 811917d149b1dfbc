"""Commands that carry a namespace from one store to another."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lag_integrations.cli.opening import Place
from lag_integrations.cli.options import (
    AsJson,
    EmbedderName,
    FlushAfter,
    IndexUrl,
    LedgerUrl,
    Namespace,
    SegmentsUrl,
    StorePath,
)
from lag_integrations.cli.output import progress_bar, say, show_json, warn

if TYPE_CHECKING:
    from lag_integrations.store.archive import Archived


def export(
    store: StorePath,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The archive to write.")],
    with_segments: Annotated[
        bool, typer.Option("--with-segments", help="Put the segments in, too.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the file if it exists.")
    ] = False,
    namespace: Namespace = "default",
    ledger: LedgerUrl = None,
    segments_url: SegmentsUrl = None,
    index: IndexUrl = None,
    as_json: AsJson = False,
) -> None:
    """Write a namespace to one portable file."""
    with Place(store, namespace, ledger, segments_url, index).store() as opened:
        from lag_integrations.store.archive import export_archive

        with progress_bar("Exporting") as progress:
            archived = export_archive(
                opened, file, segments=with_segments, overwrite=overwrite, progress=progress
            )
    _show_archived(archived, as_json, f"Wrote {archived.logs:,} logs")


def import_(
    store: StorePath,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What export wrote.")],
    flush: FlushAfter = False,
    namespace: Namespace = "default",
    ledger: LedgerUrl = None,
    segments_url: SegmentsUrl = None,
    index: IndexUrl = None,
    embedder: EmbedderName = None,
    as_json: AsJson = False,
) -> None:
    """Add an archive's logs to a namespace; importing again changes nothing."""
    place = Place(store, namespace, ledger, segments_url, index)
    from lag_integrations.store.archive import check_archive, import_archive

    check_archive(file)  # before a store is made for it
    with place.store(create=True) as opened, progress_bar("Importing") as progress:
        archived = import_archive(opened, file, progress)
    if flush:
        with place.memory(embedder) as memory, progress_bar("Embedding") as progress:
            memory.flush(progress)
    _show_archived(archived, as_json, f"Read {archived.logs:,} logs, {archived.new:,} of them new")


def _show_archived(archived: Archived, as_json: bool, text: str) -> None:
    if archived.skipped:
        warn(f"{archived.skipped:,} damaged logs or segments were left out.")
    if as_json:
        show_json(asdict(archived))
    else:
        say(f"{text}, and {archived.segments:,} segments.")
