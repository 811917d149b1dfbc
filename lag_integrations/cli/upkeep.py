"""Commands about a whole store."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lag_integrations.cli.opening import AllNamespaces, Embedder, Place, at_store
from lag_integrations.cli.options import (
    AsJson,
    ModelDevice,
    ModelDtype,
    ModelQuantization,
    parse_duration,
    parse_size,
)
from lag_integrations.cli.output import human_size, progress_bar, say, show_json, show_table
from lag_integrations.errors import StoreError

if TYPE_CHECKING:
    from lag_integrations.store.audit import Audit, Problem
    from lag_integrations.store.statistics import Statistics

MinAge = Annotated[
    float,
    typer.Option(
        "--orphans-older-than",
        metavar="SECONDS",
        min=0,
        help="Age from which a file that belongs to no log counts as left behind; a younger one "
        "may still be being written.",
    ),
]
_ONLY_PEOPLE_MEND = ("ledger_damaged", "trace_damaged")


@at_store
def stats(
    place: Place,
    all_namespaces: Annotated[
        bool, typer.Option("--all", help="Show all namespaces that have logs.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show what a store holds, and what is still to do."""
    with place.ledger_only() as (database, _):
        from lag_integrations.store.statistics import namespaces_of, statistics_of, store_info

        facts = store_info(database)
        names = namespaces_of(database) if all_namespaces else [place.namespace]
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


@at_store
def verify(
    place: Place,
    min_age: MinAge = 600.0,
    namespace: AllNamespaces = None,
    as_json: AsJson = False,
) -> None:
    """Check traces, segments and index against the ledger; exits with 1 if something is wrong."""
    problems = _audit(place, namespace, "Verifying", lambda audit: audit.verify(), min_age)
    _show_problems(problems, as_json, "Nothing is wrong.")
    if any(problems.values()):
        raise typer.Exit(1)


@at_store
def repair(
    place: Place,
    min_age: MinAge = 600.0,
    namespace: AllNamespaces = None,
    as_json: AsJson = False,
) -> None:
    """Mend what verify finds; exits with 1 if something has to come from a backup."""
    problems = _audit(place, namespace, "Repairing", lambda audit: audit.repair(), min_age)
    _show_problems(problems, as_json, "Nothing was wrong.")
    if any(one.kind in _ONLY_PEOPLE_MEND for found in problems.values() for one in found):
        raise StoreError(
            "Damaged traces, or a damaged ledger, are as they were: restore them from a backup, "
            "or import an export of them."
        )


def _audit(
    place: Place,
    namespace: str | None,
    title: str,
    look: Callable[[Audit], list[Problem]],
    min_age: float,
) -> dict[str, list[Problem]]:
    """Return what is wrong by namespace, and under the first what is wrong with the whole store.

    Args:
        place: The store.
        namespace: The only namespace to look at.
        title: What the progress bar says.
        look: What to do with each namespace.
        min_age: Age from which a file that belongs to no log counts as left behind.
    """
    from lag_integrations.store.audit import Audit

    problems: dict[str, list[Problem]] = {}
    known: set[Problem] = set()
    for name in [namespace] if namespace else _namespaces(place):
        with (
            replace(place, namespace=name).store() as opened,
            progress_bar(f"{title} {name}") as progress,
        ):
            found = look(Audit(opened, progress, min_age=min_age))
        # Each audit looks at what namespaces share, too.
        problems[name] = [one for one in found if one not in known]
        known.update(found)
    return problems


def _namespaces(place: Place) -> list[str]:
    """Return the namespaces that have logs, or files of deleted logs; the default one if none."""
    from sqlalchemy import select

    from lag_integrations.store.schema import removals
    from lag_integrations.store.statistics import namespaces_of

    with place.ledger_only() as (database, _):
        names = set(namespaces_of(database))
        with database.read() as connection:
            names.update(connection.execute(select(removals.c.namespace)).scalars())
    return sorted(names) or [place.namespace]


@at_store
def reindex(
    place: Place,
    embedder: Embedder = None,
    as_json: AsJson = False,
) -> None:
    """Embed every trace again, for example with another embedder.

    A store has one embedder: other namespaces are embedded again when they are next used.
    """
    with place.memory(embedder) as memory:
        with progress_bar("Embedding") as progress:
            memory.reindex(progress)
        number = memory.store.embeddings.count_logs()
    if as_json:
        show_json({"embedded": number})
    else:
        say(f"Embedded and indexed {number:,} logs.")


@at_store
def reencode(
    place: Place,
    model: Annotated[str, typer.Option(help="Hub id, folder or GGUF file.")],
    codec: Annotated[
        str, typer.Option(help="native, fp32, bf16, fp16, fp8, int8 or int4; each also with +zstd.")
    ] = "native",
    only: Annotated[
        bool, typer.Option("--only", help="Then remove the segments of other models and codecs.")
    ] = False,
    dtype: ModelDtype = "auto",
    quantization: ModelQuantization = None,
    device: ModelDevice = None,
    embedder: Embedder = None,
    as_json: AsJson = False,
) -> None:
    """Encode the logs that have no segments of a model yet.

    Load the model as the program does that uses the memory: a segment fits one model, tokenizer,
    chat template, dtype and quantization.
    """
    place.require()  # before the model is loaded, which takes long
    from lag_integrations.engine.engine import Engine
    from lag_integrations.kv.segment import SegmentKey

    with place.memory(embedder, codec=codec) as memory:
        engine = Engine.load(model, dtype=dtype, quantization=quantization, device=device)
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


@at_store
def prune(
    place: Place,
    max_bytes: Annotated[
        Any,
        typer.Option(
            metavar="SIZE", parser=parse_size, help="Most bytes of traces and segments: 10GB, 8GiB."
        ),
    ] = None,
    max_logs: Annotated[int | None, typer.Option(min=1, help="Most logs.")] = None,
    ttl: Annotated[
        Any,
        typer.Option(
            metavar="TIME",
            parser=parse_duration,
            help="Greatest age since the last capture: 30d, 12h.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Delete logs and segments beyond a budget, the least recent and least useful first."""
    if max_bytes is None and max_logs is None and ttl is None:
        raise typer.BadParameter("give --max-bytes, --max-logs or --ttl.")
    with place.store() as opened:
        from lag_integrations.store.budget import Budget

        pruned = opened.evictor.enforce(Budget(max_bytes, max_logs, ttl))
        opened.retry_removals()
    if as_json:
        show_json(asdict(pruned))
    else:
        say(f"Deleted {pruned.logs:,} logs, evicted {pruned.segments:,} segments of others.")


@at_store
def purge(
    place: Place,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Delete all logs of a namespace for good."""
    place.require()
    if not yes:
        if not sys.stdin.isatty():
            raise typer.BadParameter("there is nobody to ask; give --yes to delete everything.")
        typer.confirm(
            f"Delete everything in namespace {place.namespace!r} of {place.path}?",
            abort=True,
            err=True,
        )
    with place.store() as opened:
        receipt = opened.purge()
    if as_json:
        show_json({"deleted": receipt.logs, "remains": [vars(one) for one in receipt.remains]})
    else:
        say(f"Deleted {receipt.logs:,} logs.")
        for remainder in receipt.remains:
            say(f"There may still be {remainder}.")


@partial(at_store, tenant=False)
def migrate(
    place: Place,
    backed_up: Annotated[
        bool, typer.Option("--backed-up", help="Do not refuse: the ledger has a backup already.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Bring the ledger to this version's schema; a file is copied first, a server is not."""
    from lag_integrations.store.database import Database
    from lag_integrations.store.migrations import HEAD

    if place.ledger:
        place.path.mkdir(0o700, parents=True, exist_ok=True)  # for locks, beside a database
    place.require()
    before = set(place.path.glob("backup-*.sqlite"))
    database = Database(place.ledger or None, place.path, backed_up=backed_up)
    database.close()
    backups = [str(path) for path in set(place.path.glob("backup-*.sqlite")) - before]
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


def _show_problems(problems: Mapping[str, Sequence[Problem]], as_json: bool, none: str) -> None:
    rows = [{"namespace": name, **asdict(one)} for name, found in problems.items() for one in found]
    if as_json:
        show_json(rows)
    elif rows:
        show_table(["namespace", "kind", "subject", "detail"], [[*row.values()] for row in rows])
    else:
        say(f"{none} Namespaces: {', '.join(problems)}.")
