"""BFCL: its files, its functions as tools, and the tasks of ``multi_turn_base``."""

from __future__ import annotations

import copy
import importlib
import importlib.util
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lag_integrations.errors import EvaluationError
from lag_integrations.evaluation.datasets.splits import split
from lag_integrations.evaluation.tool_tasks.judge import Checkers
from lag_integrations.evaluation.tool_tasks.tasks import Task, parse_call

_FILE = "BFCL_v4_multi_turn_base.json"
_TYPES = {"dict": "object", "float": "number", "tuple": "array"}
"""JSON schema's names of BFCL's types; others are the same, and "any" has none."""


def data_folder() -> Path:
    """Return the folder of BFCL's data.

    Raises:
        EvaluationError: BFCL is not installed.
    """
    # Found without importing it: what it imports needs the clients of every vendor.
    found = importlib.util.find_spec("bfcl_eval")
    if found is None or not found.submodule_search_locations:
        raise EvaluationError(
            "BFCL is not installed. Install it with: pip install --no-deps bfcl-eval==2026.3.23"
        )
    return Path(found.submodule_search_locations[0]) / "data"


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Read a file of JSON objects, one a line."""
    for line in path.read_text("utf-8").splitlines():
        yield json.loads(line)


def as_tool(function: Mapping[str, Any]) -> dict[str, Any]:
    """Return a function as a tool in OpenAI's form, whose names hold no dots."""
    return {
        "type": "function",
        "function": {
            "name": function["name"].replace(".", "_"),
            "description": function["description"],
            "parameters": _schema(function["parameters"]),
        },
    }


def _schema(described: Mapping[str, Any]) -> dict[str, Any]:
    schema = dict(described)
    kind = schema.pop("type", "any")
    if kind != "any":
        schema["type"] = _TYPES.get(kind, kind)
    if "properties" in schema:
        schema["properties"] = {
            name: _schema(value) for name, value in schema["properties"].items()
        }
    if "items" in schema:
        schema["items"] = _schema(schema["items"])
    return schema


def installed_version() -> str:
    """Return the version of BFCL, which decides the tasks."""
    return version("bfcl-eval")


def load_tasks(seed: int) -> tuple[tuple[Task, ...], tuple[Task, ...]]:
    """Return the tasks with even numbers, split by a seed: 70 % seen, and the unseen ones.

    Raises:
        EvaluationError: BFCL is not installed.
    """
    return split(read_tasks(), seed)


def read_tasks() -> list[Task]:
    """Read the tasks with even numbers.

    Raises:
        EvaluationError: BFCL is not installed.
    """
    folder = data_folder()
    rows = zip(
        read_rows(folder / _FILE), read_rows(folder / "possible_answer" / _FILE), strict=True
    )
    docs: dict[str, list[dict[str, Any]]] = {}
    return [
        _task(folder, entry, answer["ground_truth"], docs)
        for entry, answer in rows
        if int(entry["id"].rpartition("_")[2]) % 2 == 0
    ]


def _task(
    folder: Path,
    entry: Mapping[str, Any],
    gold: Sequence[Sequence[str]],
    docs: dict[str, list[dict[str, Any]]],
) -> Task:
    from bfcl_eval.constants.executable_backend_config import MULTI_TURN_FUNC_DOC_FILE_MAPPING

    names = entry["involved_classes"]
    for name in names:
        file = MULTI_TURN_FUNC_DOC_FILE_MAPPING[name]
        docs.setdefault(name, list(read_rows(folder / "multi_turn_func_doc" / file)))
    excluded = entry.get("excluded_function", ())
    functions = {
        function["name"]: (name, function)
        for name in names
        for function in docs[name]
        if function["name"] not in excluded
    }
    parameters = {
        name: list(function["parameters"]["properties"])
        for name, (_, function) in functions.items()
    }
    return Task(
        id=entry["id"],
        asked=tuple(turn[0]["content"] for turn in entry["question"]),
        gold=tuple(tuple(parse_call(call, parameters) for call in turn) for turn in gold),
        tools=tuple(as_tool(function) for _, function in functions.values()),
        systems={name: partial(_system, name, entry["initial_config"]) for name in names},
        owners={tool: name for tool, (name, _) in functions.items()},
    )


def _system(name: str, initial: Mapping[str, Any]) -> Any:
    """Return a simulated system in its first state."""
    from bfcl_eval.constants.executable_backend_config import (
        CLASS_FILE_PATH_MAPPING,
        STATELESS_CLASSES,
    )

    system = getattr(importlib.import_module(CLASS_FILE_PATH_MAPPING[name]), name)()
    if name not in STATELESS_CLASSES:
        # It keeps what it is given, and changes it.
        system._load_scenario(copy.deepcopy(initial.get(name, {})))
    return system


def checkers() -> Checkers:
    """Return BFCL's own checkers of states and results."""
    from bfcl_eval.eval_checker.multi_turn_eval.multi_turn_checker import (
        response_checker,
        state_checker,
    )

    return Checkers(
        states_fit=lambda run, gold: bool(state_checker(dict(run), dict(gold))["valid"]),
        results_fit=lambda run, gold: bool(response_checker(run, gold, 0)["valid"]),
    )
