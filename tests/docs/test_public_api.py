"""What is public stands in docs/api.md, and imports nothing heavy until it is used."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import lag_integrations
from lag_integrations import errors
from lag_integrations.cli import app

ROOT = Path(__file__).parents[2]
API = (ROOT / "docs/api.md").read_text("utf-8")
MODULES = ("lag_integrations", "lag_integrations.langchain", "lag_integrations.llama_index")


@pytest.mark.parametrize("module", MODULES)
def test_what_is_exported_is_documented_and_the_other_way_round(module: str) -> None:
    exported = set(importlib.import_module(module).__all__)
    documented = set(re.findall(rf"^::: {re.escape(module)}\.(\w+)$", API, re.MULTILINE))

    assert documented - {"errors", "packaged"} == exported - {"__version__"}
    for name in exported:
        assert getattr(sys.modules[module], name) is not None


def test_members_that_are_documented_exist() -> None:
    for name, members in re.findall(r"^::: (\S+)\n    options:\n((?:      .*\n)+)", API, re.M):
        listed = yaml.safe_load(members).get("members") or []
        module, _, attribute = name.rpartition(".")
        found = getattr(importlib.import_module(module), attribute)
        fields = getattr(found, "model_fields", {})
        assert [m for m in listed if not hasattr(found, m) and m not in fields] == []


def test_commands_are_documented() -> None:
    known = {command.name for command in app.registered_commands} | {"quarantine"}

    assert set(re.findall(r"`kvlog ([a-z]+)", API)) == known


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = "import sys, lag_integrations; print(lag_integrations.__version__, *sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    version, *modules = done.stdout.split()

    assert re.fullmatch(r"\d+\.\d+\.\d+", version)
    assert not {"torch", "transformers", "chromadb", "sqlalchemy", "langchain_core"} & set(modules)


def test_one_version_everywhere() -> None:
    stated = re.search(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text("utf-8"), re.M)
    changes = re.search(r"^## \[(.*?)\]", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.M)
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))

    assert stated is not None
    assert changes is not None
    assert stated[1] == changes[1] == citation["version"]


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'forget_me'"):
        _ = lag_integrations.forget_me


def test_every_error_is_a_lag_error() -> None:
    found = [value for value in vars(errors).values() if isinstance(value, type)]

    assert all(issubclass(error, errors.LAGError) for error in found)


def test_files_that_the_guide_names_exist() -> None:
    guide = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    named = re.findall(r"`((?:lag_integrations|tests|docs|examples|benchmarks)/[\w/.]*)`", guide)

    assert len(named) > 20
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_tutorials_are_included_as_they_are() -> None:
    """A formatter once wrote ``--8 < --``, so that the site showed that and no code."""
    text = (ROOT / "docs" / "tutorials.md").read_text("utf-8")
    shown = re.findall(r'^```python title="(.+)"\n--8<-- "(.+)"\n```$', text, re.MULTILINE)
    assert [title for title, _ in shown] == [file for _, file in shown]
    programs = {str(path.relative_to(ROOT)) for path in (ROOT / "examples").rglob("*.py")}
    assert {file for _, file in shown} == programs
