"""The command that evaluates."""

from __future__ import annotations

import re
from collections import Counter
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from lag_integrations.cli.opening import Embedder, Place, at_store
from lag_integrations.cli.options import (
    AsJson,
    ChatTemplateFile,
    Loading,
    ModelDevice,
    ModelDtype,
    ModelQuantization,
)
from lag_integrations.cli.output import progress_bars, warn
from lag_integrations.cli.recall import evaluate_recall
from lag_integrations.cli.report import Against, report
from lag_integrations.cli.tool_tasks import DATASET, evaluate_tool_tasks, refuse_others
from lag_integrations.errors import EvaluationError

if TYPE_CHECKING:
    from lag_integrations.evaluation.evaluation import Shard
    from lag_integrations.evaluation.questions import Stratum
    from lag_integrations.evaluation.settings import LogSource

_ROUNDS = {False: 8, True: 3}
"""By whether questions are multiple choice (paper)."""

_BATCH = 8
_MAX_TOKENS = 1_024
_ARMS = "none,text_last,kv,kv_last"


class PlacementName(str, Enum):
    """Where segments stand."""

    before_turn = "before_turn"
    before_question = "before_question"
    after_system = "after_system"
    before_prompt = "before_prompt"


class Logs(str, Enum):
    """Of what logs are made."""

    gold = "gold"
    self = "self"


@at_store
def eval_(
    context: typer.Context,
    place: Place | None,
    data: Annotated[
        Path | None, typer.Option(help="Folder with a folder for each dataset.")
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(
            help="musique, musique_closed, musique_dropped, musique_twins, formula, "
            "formula_unseen, 2wiki, mmlupro, gpqa, react; jsonl, for a folder with your own "
            "questions.jsonl; or bfcl, for an agent with tools, without --data."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the results; a run that is there goes on.")
    ] = None,
    path: Annotated[
        Path | None,
        typer.Option(
            "--recall",
            metavar="STORE",
            help="Search this store for --questions instead, without a model, and say what is "
            "found.",
        ),
    ] = None,
    queries: Annotated[
        Path | None,
        typer.Option(
            "--questions",
            help='JSONL for --recall: {"query": ..., "log": "<id>" or null if nothing fits}, and '
            'as wanted "before" (what the user said before) and "kind" (a row of the table).',
        ),
    ] = None,
    held_out: Annotated[
        int | None,
        typer.Option(
            min=2, help="With --recall: report one query in so many separately, chosen by its text."
        ),
    ] = None,
    min_relevance: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="With --recall: least probability that a log fits."),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Hub id, folder or packaged model; SmolLM2 by default.")
    ] = None,
    models: Annotated[
        str | None,
        typer.Option(
            help="Several models, separated by commas: each has a folder within --out, "
            "and one report of all."
        ),
    ] = None,
    arms: Annotated[
        str | None,
        typer.Option(
            help="Arms to run, separated by commas, or all.",
            show_default=f"{_ARMS}; all for bfcl",
        ),
    ] = None,
    logs: Annotated[
        Logs,
        typer.Option(
            help="Make logs of the dataset's gold decompositions and solutions (gold), or of what "
            "the model itself did with the seen questions in arm none (self)."
        ),
    ] = Logs.gold,
    logs_from: Annotated[
        str | None,
        typer.Option(help="Store another dataset's logs instead, none of which fits."),
    ] = None,
    only_correct: Annotated[
        bool,
        typer.Option(
            help="Whether logs whose answer is wrong, by the gold answers, are left out of recall."
        ),
    ] = True,
    online: Annotated[
        bool, typer.Option("--online", help="Begin with an empty store, which grows as it runs.")
    ] = False,
    rounds: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Most rounds a question, or model calls a turn; 3 for multiple choice, else 8.",
        ),
    ] = None,
    documents: Annotated[int, typer.Option(min=0, help="Documents retrieved a round.")] = 2,
    k: Annotated[int, typer.Option("--k", min=0, help="Most logs recalled a round.")] = 3,
    min_score: Annotated[
        float | None,
        typer.Option(
            min=-1, max=1, help="Least similarity of a log, instead of the memory's relevance."
        ),
    ] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(
            min=1, help="Most tokens a round.", show_default=f"{_MAX_TOKENS:,}; 128 for bfcl"
        ),
    ] = None,
    placement: Annotated[
        PlacementName | None,
        typer.Option(help="Where segments stand.", show_default="as calibrated, else before_turn"),
    ] = None,
    best_last: Annotated[
        bool,
        typer.Option(
            "--best-last/--best-first",
            help="Whether the most relevant log stands last, nearest to the question.",
        ),
    ] = True,
    attention_temperature: Annotated[
        float | None,
        typer.Option(
            help="Temperature of the attention to segments; 1 leaves it as it is.",
            show_default="as calibrated, else 0.9",
        ),
    ] = None,
    direct: Annotated[
        bool,
        typer.Option("--direct", help="Ask for nothing but the answer: for very small models."),
    ] = False,
    strata: Annotated[
        str | None,
        typer.Option(
            help="Ask only these, separated by commas: seen, overlapping, unseen, dropped, twin, "
            "instance."
        ),
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Questions worked on at once, which is faster, but takes their seconds from the "
            "report; 8 where questions have one round, else 1.",
        ),
    ] = None,
    likelihood: Annotated[
        bool,
        typer.Option(
            "--likelihood",
            help="Find out how likely each answer of one round would have been with the logs as "
            "text.",
        ),
    ] = False,
    against: Against = "text_last",
    limit: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Most seen questions; 3/7 as many unseen ones. For bfcl, most unseen tasks.",
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option(help="Seed of the split and of the sample of questions.")
    ] = 0,
    shard: Annotated[
        str, typer.Option(metavar="I/N", help="Run part I of N, to share the work.")
    ] = "1/1",
    embedder: Embedder = None,
    device: ModelDevice = None,
    dtype: ModelDtype = "auto",
    quantization: ModelQuantization = None,
    chat_template: ChatTemplateFile = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Let model and embedder run their own code.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Evaluate logs as the LAG paper does, on any data and model; writes a report.

    With --recall, search a store for queries instead, and say how often the logs that fit were
    found, and how often others.
    """
    if place is not None:
        if queries is None or data or dataset or out:
            raise typer.BadParameter(
                "--recall needs --questions, and no --data, --dataset or --out."
            )
        evaluate_recall(
            place,
            queries,
            k=k,
            min_relevance=min_relevance,
            min_score=min_score,
            held_out=held_out,
            embedder=embedder,
            as_json=as_json,
        )
        return
    if queries or held_out or as_json or min_relevance is not None:
        raise typer.BadParameter(
            "--questions, --held-out, --min-relevance and --json go with --recall STORE."
        )
    loading = Loading(device, dtype, quantization, chat_template, trust_remote_code)
    if dataset == DATASET and out is not None:
        refuse_others(context)
        evaluate_tool_tasks(
            out=out,
            model=model,
            arms=arms,
            logs=logs.value,
            rounds=rounds,
            k=k,
            max_tokens=max_tokens,
            limit=limit,
            seed=seed,
            against=against,
            embedder=embedder,
            loading=loading,
        )
        return
    if data is None or dataset is None or out is None:
        raise typer.BadParameter(
            "an evaluation needs --data, --dataset and --out; or give --recall STORE and "
            "--questions, to see what a store recalls."
        )
    from lag_integrations.evaluation import report as reports
    from lag_integrations.evaluation.arms import ARMS, arm
    from lag_integrations.evaluation.datasets import load
    from lag_integrations.evaluation.evaluation import Evaluation
    from lag_integrations.evaluation.settings import Settings, settle
    from lag_integrations.store.embedder import load_embedder

    part = _shard(shard)
    chosen_models = _models(model, models)
    if online and part.count > 1:
        raise EvaluationError("An online run goes question by question; it cannot be sharded.")
    reports.require()
    chosen = list(ARMS) if arms == "all" else [name.strip() for name in (arms or _ARMS).split(",")]
    for name in chosen:
        arm(name)  # an unknown one is refused now, not hours later
    asked = _strata(strata)
    if online and asked:
        raise EvaluationError("An online run asks all questions in turn; leave out --strata.")
    questions = load(dataset, data, seed=seed, limit=limit)
    others = None if logs_from is None else load(logs_from, data, seed=seed)
    is_choice = any(question.options for question in questions.seen)
    can_search = bool(questions.documents) or is_choice
    if not can_search and not direct and rounds is None:
        warn(f"{dataset} has no documents to search here: one round a question.")
    most_rounds = rounds or (1 if direct or not can_search else _ROUNDS[is_choice])
    if online and batch and batch > 1:
        raise EvaluationError(
            "Each question of an online run needs the logs of those before it; leave out --batch."
        )
    if likelihood and (most_rounds > 1 or online):
        raise EvaluationError(
            "Only answers of one round are rated; leave out --likelihood, or add --rounds 1."
        )
    settings = Settings(
        dataset=dataset,
        model="",
        embedder=embedder,
        logs=_source(logs, online, logs_from is not None, bool(questions.logs)),
        logs_from=logs_from,
        only_correct=only_correct,
        online=online,
        rounds=most_rounds,
        documents=documents,
        k=k,
        min_score=min_score,
        max_tokens=max_tokens or _MAX_TOKENS,
        placement=None if placement is None else placement.value,
        best_last=best_last,
        attention_temperature=attention_temperature,
        direct=direct,
        batch=batch or (1 if online or most_rounds > 1 else _BATCH),
        likelihood=likelihood,
        limit=limit,
        seed=seed,
    )
    # Loaded once, for documents and all arms.
    finder = load_embedder(embedder, trust_remote_code=trust_remote_code)
    for label, source in chosen_models.items():
        engine = loading.load(source)
        folder = out / label
        folder.mkdir(parents=True, exist_ok=True)
        mine = settings.model_copy(update={"model": source or "packaged SmolLM2-135M-Instruct"})
        settle(folder / "run.json", mine, questions, engine.fingerprint.id, engine.log_settings)
        evaluation = Evaluation(mine, questions, engine, finder, folder, part, others, asked)
        with progress_bars() as progress:
            evaluation.run(chosen, progress)
        engine.close()
    report(out, against)


def _models(model: str | None, models: str | None) -> dict[str, str | None]:
    """Return the models by the name of their folder in the results; "" if there is only one."""
    if models is None:
        return {"": model}
    if model is not None:
        raise EvaluationError("Give --model or --models, not both.")
    names = [name.strip() for name in models.split(",")]
    labels = [Path(name).name for name in names]
    if twice := [label for label, count in Counter(labels).items() if count > 1]:
        raise EvaluationError(f"Two models are called {twice[0]!r}; rename the folder of one.")
    return dict(zip(labels, names, strict=True))


def _source(logs: Logs, online: bool, has_others: bool, has_own: bool) -> LogSource:
    """Return what the stored logs are made of.

    Raises:
        EvaluationError: Two things were asked for that cannot be at once.
    """
    if online and has_others:
        raise EvaluationError("An online run stores its own logs; leave out --logs-from.")
    if logs is Logs.self and (has_others or (has_own and not online)):
        raise EvaluationError("Logs are given already; leave out --logs self.")
    if online:
        return "self"
    return "other" if has_others else "dataset" if has_own else logs.value


def _strata(text: str | None) -> list[Stratum]:
    from lag_integrations.evaluation.questions import Stratum

    known = {name: name for name in get_args(Stratum)}
    names = [] if text is None else [name.strip() for name in text.split(",")]
    if unknown := [name for name in names if name not in known]:
        raise EvaluationError(f"There is no stratum {unknown[0]!r}; there are {', '.join(known)}.")
    return [known[name] for name in names]


def _shard(text: str) -> Shard:
    from lag_integrations.evaluation.evaluation import Shard

    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise typer.BadParameter(f"{text!r} is no part of the work; write it like 2/8.")
    return Shard(int(found[1]), int(found[2]))
