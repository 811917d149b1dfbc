"""Commands about a whole store."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lag_integrations.cli.opening import Place
from lag_integrations.cli.options import (
    AsJson,
    EmbedderName,
    IndexUrl,
    LedgerUrl,
    Namespace,
    SegmentsUrl,
    StorePath,
    parse_duration,
    parse_size,
)
from lag_integrations.cli.output import human_size, progress_bar, say, show_json, show_table
from lag_integrations.errors import StoreError

if TYPE_CHECKING:
    from lag_integrations.store.audit import Problem
    from lag_integrations.store.statistics import Statistics

MinAge = Annotated[
    float,
    typer.Option(
        "--orphans-older-than",
        metavar="SECONDS",
        min=0,
        help="Age from which a file that belongs to no log counts as left behind. A younger one "
        "may be being written.",
    ),
]
_ONLY_PEOPLE_MEND = ("ledger_damaged", "trace_damaged")


def stats(
    store: StorePath,
    all_namespaces: Annotated[
        bool, typer.Option("--all", help="All namespaces that have logs.")
    ] = False,
    namespace: Namespace = "default",
    ledger: LedgerUrl = None,
    as_json: AsJson = False,
) -> None:
    """Show what a store holds, and what is still to do."""
    with Place(store, namespace, ledger).ledger_only() as (database, _):
        from lag_integrations.store.statistics import namespaces_of, statistics_of, store_info

        facts = store_info(database)
        names = namespaces_of(database) if all_namespaces else [namespace]
        found = [statistics_of(database, name) for name in names]
    if as_json:
        mine = (
            {"namespaces": [asdict(one) for one in found]} if all_namespaces else asdict(found[0])
        )
        show_json(asdict(facts) | mine)
        return
    say(f"schema      {facts.schema}")
    made_by = f"{facts.embedder}, {facts.dimension} dimensions" if facts.embedder else "none yet"
    say(f"embedder    {made_by}")
    for one in found:
        say("")
        _show_statistics(one)


def verify(
    store: StorePath,
    min_age: MinAge = 600.0,
    namespace: Namespace = "default",
    ledger: LedgerUrl = None,
    segments_url: SegmentsUrl = None,
    index: IndexUrl = None,
    as_json: AsJson = False,
) -> None:
    """Check that everything agrees with the ledger; exits with 1 if something does not."""
    with Place(store, namespace, ledger, segments_url, index).store() as opened:
        from lag_integrations.store.audit import Audit

        with progress_bar("Verifying") as progress:
            problems = Audit(opened, progress, min_age=min_age).verify()
    _show_problems(problems, as_json, "Nothing is wrong.")
    if problems:
        raise typer.Exit(1)


def repair(
    store: StorePath,
    min_age: MinAge = 600.0,
    namespace: Namespace = "default",
    ledger: LedgerUrl = None,
    segments_url: SegmentsUrl = None,
    index: IndexUrl = None,
    as_json: AsJson = False,
) -> None:
    """Make right what verify finds; exits with 1 if something has to come from a backup."""
    with Place(store, namespace, ledger, segments_url, index).store() as opened:
        from lag_integrations.store.audit import Audit

        with progress_bar("Repairing") as progress:
            problems = Audit(opened, progress, min_age=min_age).repair()
    _show_problems(problems, as_json, "Nothing was wrong.")
    if any(problem.kind in _ONLY_PEOPLE_MEND for problem in problems):
        raise StoreError(
            "Damaged traces, or a damaged ledger, are as they were: restore them from a backup, "
            "or import an export of them."
        )


def reindex(
    store: StorePath,
    namespace: Namespace = "default",
    ledger: LedgerUrl = None,
    segments_url: SegmentsUrl = None,
    index: IndexUrl = None,
    embedder: EmbedderName = None,
    as_json: AsJson = False,
) -> None:
    """Embed every trace again, with an embedder that may be another than before.

    A store has one embedder: other namespaces are embedded again when they are next used.
    """
    with Place(store, namespace, ledger, segments_url, index).memory(embedder) as memory:
        with progress_bar("Embedding") as progress:
            memory.reindex(progress)
        number = memory.store.embeddings.count_logs()
    if as_json:
        show_json({"embedded": number})
    else:
        say(f"Embedded and indexed {number:,} logs.")


def reencode(
    store: StorePath,
    model: Annotated[str, typer.Option(help="Hub id or folder of the model.")],
    codec: Annotated[
        str, typer.Option(help="native, fp32, bf16, fp16, fp8, int8 or int4; each also with +zstd.")
    ] = "native",
    only: Annotated[
        bool, typer.Option("--only", help="Remove the segments of other models and codecs after.")
    ] = False,
    dtype: Annotated[str, typer.Option(help="dtype to load the model in.")] = "auto",
    device: Annotated[str | None, typer.Option(help="Device to load the model to.")] = None,
    namespace: Namespace = "default",
    ledger: LedgerUrl = None,
    segments_url: SegmentsUrl = None,
    index: IndexUrl = None,
    embedder: EmbedderName = None,
    as_json: AsJson = False,
) -> None:
    """Encode every log with a model, as far as it is not done yet.

    Load the model as the program does that uses the memory: a segment fits one model, tokenizer,
    chat template and dtype.
    """
    place = Place(store, namespace, ledger, segments_url, index)
    place.require()  # before the model is loaded, which takes long
    from lag_integrations.engine.engine import Engine
    from lag_integrations.kv.segment import SegmentKey

    with place.memory(embedder, codec=codec) as memory:
        engine = Engine.load(model, dtype=dtype, device=device)
        memory.attach(engine)
        with progress_bar("Encoding") as progress:
            memory.flush(progress)
        kind = SegmentKey("", engine.fingerprint.id, engine.selection.name, codec)
        removed = 0
        if only:
            removed = memory.store.segments.forget_others(kind)
            memory.store.retry_removals()
        stored = sum(
            (key.fingerprint, key.selection, key.codec)
            == (kind.fingerprint, kind.selection, kind.codec)
            for key, _, _ in memory.store.segments.all_files()
        )
    if as_json:
        show_json(
            {"model": model, "fingerprint": kind.fingerprint, "stored": stored, "removed": removed}
        )
    else:
        say(f"{stored:,} segments of {model} are stored; {removed:,} others were removed.")


def prune(
    store: StorePath,
    max_bytes: Annotated[
        Any,
        typer.Option(metavar="SIZE", parser=parse_size, help="Of traces and segments: 10GB, 8GiB."),
    ] = None,
    max_logs: Annotated[int | None, typer.Option(min=1, help="Number of logs.")] = None,
    ttl: Annotated[
        Any,
        typer.Option(
            metavar="TIME", parser=parse_duration, help="Age since the last capture: 30d, 12h."
        ),
    ] = None,
    namespace: Namespace = "default",
    ledger: LedgerUrl = None,
    segments_url: SegmentsUrl = None,
    index: IndexUrl = None,
    as_json: AsJson = False,
) -> None:
    """Evict what goes beyond a budget: the least recent and least useful first."""
    if max_bytes is None and max_logs is None and ttl is None:
        raise typer.BadParameter("give --max-bytes, --max-logs or --ttl.")
    with Place(store, namespace, ledger, segments_url, index).store() as opened:
        from lag_integrations.store.budget import Budget

        pruned = opened.evictor.enforce(Budget(max_bytes, max_logs, ttl))
        opened.retry_removals()
    if as_json:
        show_json(asdict(pruned))
    else:
        say(f"Deleted {pruned.logs:,} logs, evicted {pruned.segments:,} segments of others.")


def purge(
    store: StorePath,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    namespace: Namespace = "default",
    ledger: LedgerUrl = None,
    segments_url: SegmentsUrl = None,
    index: IndexUrl = None,
    as_json: AsJson = False,
) -> None:
    """Delete everything of the namespace, for good."""
    place = Place(store, namespace, ledger, segments_url, index)
    place.require()
    if not yes:
        if not sys.stdin.isatty():
            raise typer.BadParameter("there is nobody to ask; give --yes to delete everything.")
        typer.confirm(
            f"Delete everything in namespace {namespace!r} of {store}?", abort=True, err=True
        )
    with place.store() as opened:
        receipt = opened.purge()
    if as_json:
        show_json({"deleted": receipt.logs, "remains": [vars(one) for one in receipt.remains]})
    else:
        say(f"Deleted {receipt.logs:,} logs.")
        for remainder in receipt.remains:
            say(f"There may still be {remainder}.")


def migrate(
    store: StorePath,
    backed_up: Annotated[
        bool, typer.Option("--backed-up", help="There is a backup of the ledger already.")
    ] = False,
    ledger: LedgerUrl = None,
    as_json: AsJson = False,
) -> None:
    """Bring the ledger to this version's schema; a file is copied first, a server is not."""
    from lag_integrations.store.database import Database
    from lag_integrations.store.migrations import HEAD

    store.mkdir(0o700, parents=True, exist_ok=True)
    before = set(store.glob("backup-*.sqlite"))
    database = Database(ledger or None, store, backed_up=backed_up)
    database.close()
    backups = [str(path) for path in set(store.glob("backup-*.sqlite")) - before]
    if as_json:
        show_json({"from": database.migrated_from, "to": HEAD, "backups": backups})
    elif database.migrated_from is None:
        say(f"The ledger has schema {HEAD}; there was nothing to do.")
    else:
        say(f"Migrated the ledger from schema {database.migrated_from} to {HEAD}.")
        for path in backups:
            say(f"It was copied to {path} before.")


def _show_statistics(one: Statistics) -> None:
    def listed(numbers: dict[str, int]) -> str:
        return ", ".join(f"{number:,} {name}" for name, number in numbers.items()) or "none"

    say(f"namespace   {one.namespace}")
    say(f"logs        {one.logs:,} ({human_size(one.trace_bytes)})")
    say(f"outcomes    {listed(one.outcomes)}")
    say(f"states      {listed(one.states)}")
    stored = sum(kind.stored for kind in one.segments)
    say(f"segments    {stored:,} ({human_size(one.segment_bytes)})")
    say(f"to embed    {one.states['captured']:,} of {one.logs:,}")
    say(f"to remove   {one.removals:,}")
    say(f"failures    {sum(one.failures.values()):,}")
    for task, number in one.failures.items():
        say(f"            {number:,} x {task}")
    if one.segments:
        columns = ["stored", "evicted", "size", "tokens", "codec"]
        columns += ["fingerprint", "selection", "model"]
        rows = [
            (
                kind.stored,
                kind.evicted,
                human_size(kind.bytes),
                kind.tokens,
                kind.codec,
                kind.fingerprint[:12],
                kind.selection,
                kind.model or "?",
            )
            for kind in one.segments
        ]
        show_table(columns, rows)


def _show_problems(problems: Sequence[Problem], as_json: bool, none: str) -> None:
    if as_json:
        show_json([asdict(problem) for problem in problems])
    elif not problems:
        say(none)
    else:
        show_table(["kind", "subject", "detail"], [tuple(asdict(one).values()) for one in problems])
