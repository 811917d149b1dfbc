"""What tutorials print."""

from __future__ import annotations

import asyncio
import inspect
import re
import runpy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lag_integrations import Engine

EXAMPLES = Path(__file__).parents[1] / "examples"


@contextmanager
def loaded_before(engine: Engine) -> Iterator[None]:
    """Whoever loads a model is given this one, which has read nothing yet, and cannot close it."""
    engine._runner.prefixes.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Engine, "load", classmethod(lambda *args, **settings: engine))
        patch.setattr(Engine, "close", lambda self: None)
        yield


def sections_of(name: str, capsys: pytest.CaptureFixture[str], engine: Engine) -> list[str]:
    """What a tutorial prints, section by section, with a model that was loaded before."""
    main = runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"]
    with loaded_before(engine):
        asyncio.run(main()) if inspect.iscoroutinefunction(main) else main()
    text = " ".join(capsys.readouterr().out.split())
    return [section.strip() for section in re.split(r"─+ \d\. [^─]+ ─+", text)][1:]
