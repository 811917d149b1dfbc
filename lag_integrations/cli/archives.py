"""Commands that carry a namespace, or a whole store, elsewhere."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lag_integrations.cli.opening import Embedder, Place, at_store, flush
from lag_integrations.cli.options import AsJson, FlushAfter
from lag_integrations.cli.output import progress_bar, say, show_json, warn

if TYPE_CHECKING:
    from lag_integrations.store.archive import ArchiveResult
    from lag_integrations.store.backup import BackupResult

KeyFile = Annotated[
    Path | None,
    typer.Option(
        "--key",
        metavar="FILE",
        exists=True,
        dir_okay=False,
        help="File with the secret key of the signature, which both stores are given; the store's "
        "own key by default. `(umask 077; openssl rand -out FILE 32)` makes one.",
    ),
]


@at_store
def export(
    place: Place,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The archive to write.")],
    with_segments: Annotated[
        bool, typer.Option("--with-segments", help="Include the segments.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the file if it exists.")
    ] = False,
    key: KeyFile = None,
    as_json: AsJson = False,
) -> None:
    """Write the logs of a namespace to one portable, signed file."""
    with place.store() as opened:
        from lag_integrations.store.archive import export_archive

        with progress_bar("Exporting") as progress:
            archived = export_archive(
                opened,
                file,
                segments=with_segments,
                overwrite=overwrite,
                key=_secret(key),
                progress=progress,
            )
    _show_archived(archived, as_json, f"Wrote {archived.logs:,} logs")


@at_store
def import_(
    place: Place,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The archive that export wrote.")],
    flush_after: FlushAfter = False,
    no_segments: Annotated[
        bool,
        typer.Option(
            "--no-segments", help="Leave the segments out; they are made again when needed."
        ),
    ] = False,
    key: KeyFile = None,
    embedder: Embedder = None,
    as_json: AsJson = False,
) -> None:
    """Add an archive's logs to a namespace; importing again changes nothing.

    Anybody may have written an archive that is signed neither by this store nor with the key: its
    segments, verdicts and some counters are left out.
    """
    from lag_integrations.store.archive import check_archive, import_archive

    secret = _secret(key)
    check_archive(file, secret)  # before a store is made for it
    with place.store(create=True) as opened, progress_bar("Importing") as progress:
        archived = import_archive(opened, file, progress, key=secret, segments=not no_segments)
    if flush_after:
        with place.memory(embedder) as memory:
            flush(memory)
    _show_archived(archived, as_json, f"Read {archived.logs:,} logs, {archived.new:,} of them new")


@partial(at_store, tenant=False)
def backup(
    place: Place,
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="The new folder to write.")],
    no_segments: Annotated[
        bool, typer.Option("--no-segments", help="Leave the segments out; they can be made again.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Copy a whole store with all namespaces, even while others use it."""
    with place.store() as opened:
        from lag_integrations.store.backup import back_up

        with progress_bar("Copying") as progress:
            copied = back_up(opened, target, segments=not no_segments, progress=progress)
    _show_copied(copied, as_json, f"Copied to {target}")


def restore(
    source: Annotated[Path, typer.Argument(metavar="BACKUP", help="The folder that backup wrote.")],
    store: Annotated[
        Path, typer.Argument(metavar="STORE", help="Folder of the store, new or empty.")
    ],
    as_json: AsJson = False,
) -> None:
    """Make a new store from a backup, if the backup is complete."""
    from lag_integrations.store import backup

    with progress_bar("Copying") as progress:
        copied = backup.restore(source, store, progress)
    _show_copied(copied, as_json, f"Restored to {store}")


def _show_copied(copied: BackupResult, as_json: bool, text: str) -> None:
    if as_json:
        show_json(asdict(copied))
    else:
        say(f"{text}: {copied.logs:,} logs, {copied.segments:,} segments.")
        if copied.missing:
            say(f"{copied.missing:,} segments are not in it, and are made again.")


def _secret(key: Path | None) -> bytes | None:
    return None if key is None else key.read_bytes()


def _show_archived(archived: ArchiveResult, as_json: bool, text: str) -> None:
    if not archived.trusted:
        warn(
            "The archive is signed neither by this store nor with a key that was given: segments, "
            "verdicts and some counters in it were left out."
        )
    if archived.skipped:
        warn(
            f"{archived.skipped:,} logs or segments were left out: they are damaged, or cannot be "
            "read."
        )
    if as_json:
        show_json(asdict(archived))
    else:
        say(f"{text}, and {archived.segments:,} segments.")
