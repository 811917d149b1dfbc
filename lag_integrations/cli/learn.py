"""The command that makes lessons."""

from __future__ import annotations

from typing import Annotated

import typer

from lag_integrations.cli.opening import Embedder, Place, at_store
from lag_integrations.cli.options import AsJson, ModelDevice, ModelDtype, ModelQuantization
from lag_integrations.cli.output import progress_bar, say, short_id, show_json


@at_store
def learn(
    place: Place,
    model: Annotated[str, typer.Option(help="Hub id, folder or GGUF file.")],
    max_lessons: Annotated[
        int | None, typer.Option(min=1, help="Most lessons to make now.")
    ] = None,
    dtype: ModelDtype = "auto",
    quantization: ModelQuantization = None,
    device: ModelDevice = None,
    embedder: Embedder = None,
    as_json: AsJson = False,
) -> None:
    """Distil lessons from logs of alike tasks, with a model; makes only what is missing.

    A lesson is a log, too: it is recalled like any other, and deleted with the first of its
    sources.
    """
    place.require()  # before the model is loaded, which takes long
    from lag_integrations.engine.engine import Engine

    with place.memory(embedder) as memory:
        memory.store.database.require_writable()
        engine = Engine.load(model, dtype=dtype, quantization=quantization, device=device)
        with progress_bar("Learning") as progress:
            made = memory.learn(engine, max_lessons=max_lessons, progress=progress)
        lessons = memory.get(made.lessons)
    if as_json:
        show_json({"lessons": list(made.lessons), "refused": made.refused, "left": made.left})
        return
    for log in lessons:
        say(f"{short_id(log.id)}  {log.trace.last_response}")
    say(
        f"Made {len(made.lessons):,} lessons; of {made.refused:,} groups of logs the model made "
        f"none, and {made.left:,} are left."
    )
