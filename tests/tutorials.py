"""What tutorials print."""

from __future__ import annotations

import asyncio
import inspect
import re
import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def sections_of(name: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What a tutorial prints, section by section."""
    main = runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"]
    asyncio.run(main()) if inspect.iscoroutinefunction(main) else main()
    text = " ".join(capsys.readouterr().out.split())
    return [section.strip() for section in re.split(r"─+ \d\. [^─]+ ─+", text)][1:]
