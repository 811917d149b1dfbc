"""The part of `kvlog eval` and `kvlog report` that is about tasks with tools (BFCL)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import typer

from lag_integrations.cli.options import Loading
from lag_integrations.cli.output import progress_bars, say, warn

DATASET = "bfcl"
"""What `--dataset` calls them."""

_ROUNDS, _MAX_TOKENS = 8, 128
_PREFIX_BYTES = 2 * 2**30
"""Of keys and values of recent prompts: the tools of a task are thousands of tokens, and its
conversation has room beside them."""

_OPTIONS = {
    *("dataset", "out", "model", "arms", "logs", "rounds", "k", "max_tokens", "limit", "seed"),
    *("against", "embedder", "device", "dtype", "quantization", "chat_template"),
    "trust_remote_code",
}
"""The options of `kvlog eval` that mean something here."""


def refuse_others(context: typer.Context) -> None:
    """Refuse options that would have no effect.

    Raises:
        BadParameter: Such an option was given.
    """
    # By its name: the class of a source differs between versions of typer.
    given = {
        name
        for name in context.params
        if (source := context.get_parameter_source(name)) and source.name == "COMMANDLINE"
    }
    if others := sorted(given - _OPTIONS):
        told = ", ".join(f"--{name.replace('_', '-')}" for name in others)
        raise typer.BadParameter(f"{told}: no option of --dataset {DATASET}; leave it out.")


def evaluate_tool_tasks(
    *,
    out: Path,
    model: str | None,
    arms: str | None,
    logs: Literal["gold", "self"],
    rounds: int | None,
    k: int,
    max_tokens: int | None,
    limit: int | None,
    seed: int,
    against: str,
    embedder: str | None,
    loading: Loading,
) -> None:
    """Ask BFCL's tasks, or those that are left of them, and report; for options see `eval_`."""
    from lag_integrations.evaluation import report as reports
    from lag_integrations.evaluation.tool_tasks import bfcl
    from lag_integrations.evaluation.tool_tasks.evaluation import (
        TOOL_ARMS,
        ToolTaskEvaluation,
        tool_arm,
    )
    from lag_integrations.evaluation.tool_tasks.settings import ToolTaskSettings, settle
    from lag_integrations.store.embedder import load_embedder

    reports.require()
    chosen = TOOL_ARMS if arms in (None, "all") else [name.strip() for name in str(arms).split(",")]
    for name in chosen:
        tool_arm(name)  # an unknown one is refused now, not hours later
    seen, unseen = bfcl.load_tasks(seed)
    settings = ToolTaskSettings(
        model=model or "packaged SmolLM2-135M-Instruct",
        embedder=embedder,
        logs=logs,
        rounds=rounds or _ROUNDS,
        k=k,
        max_tokens=max_tokens or _MAX_TOKENS,
        seed=seed,
    )
    finder = load_embedder(embedder, trust_remote_code=loading.trust_remote_code)
    engine = loading.load(model, prefix_cache_bytes=_PREFIX_BYTES)
    out.mkdir(parents=True, exist_ok=True)
    settle(
        out / "run.json",
        settings,
        seen=len(seen),
        data=bfcl.installed_version(),
        fingerprint=engine.fingerprint.id,
        given=engine.log_settings,
    )
    evaluation = ToolTaskEvaluation(
        settings, seen, unseen[:limit], bfcl.checkers(), engine, finder, out
    )
    with progress_bars() as progress:
        evaluation.run(chosen, progress)
    engine.close()
    report_tool_tasks(out, against)


def report_tool_tasks(out: Path, against: str) -> None:
    """Write the report of an evaluation, and print it."""
    from rich.console import Console

    from lag_integrations.evaluation.settings import described
    from lag_integrations.evaluation.tool_tasks import report as reports
    from lag_integrations.evaluation.tool_tasks.records import TaskRecords
    from lag_integrations.evaluation.tool_tasks.results import summarize
    from lag_integrations.evaluation.tool_tasks.settings import headline

    results = summarize(TaskRecords(out / "records.jsonl"), against=against)
    told = headline(described(out / "run.json"))
    (out / "report.md").write_text(f"{told}\n\n{reports.markdown(results)}", "utf-8")
    say(told)
    Console().print(reports.console(results))
    failed: Mapping[str, int] = sum((Counter(of.errors) for of in results.figures), Counter())
    for error, count in failed.items():
        warn(f"{count} tasks ended with {error} and count as wrong.")
    say(f"Report: {out / 'report.md'}")
