"""The command that measures a model."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lag_integrations.cli.opening import Place, at_store
from lag_integrations.cli.options import (
    AsJson,
    ChatTemplateFile,
    ModelDevice,
    ModelDtype,
    ModelQuantization,
)
from lag_integrations.cli.output import progress_bar, say, show_json, show_table

if TYPE_CHECKING:
    from lag_integrations.engine.log_settings import Calibration


@partial(at_store, tenant=False)
def calibrate(
    place: Place | None,
    model: Annotated[
        str,
        typer.Argument(help="Hub id, folder, or name of a packaged model.", show_default=False),
    ],
    path: Annotated[
        Path | None,
        typer.Option("--store", help="Folder of a store in which to keep the result, too."),
    ] = None,
    again: Annotated[
        bool, typer.Option("--again", help="Measure again, even if there is a calibration.")
    ] = False,
    device: ModelDevice = None,
    dtype: ModelDtype = "auto",
    quantization: ModelQuantization = None,
    chat_template: ChatTemplateFile = None,
    as_json: AsJson = False,
) -> None:
    """Measure how well a model uses logs as KV, and choose its settings.

    This takes some minutes on a CPU, once: the result is kept by the model's fingerprint, and used
    wherever the same model is loaded in the same way.
    """
    if place is not None:
        place.require()  # before the model is loaded, which takes long
    from lag_integrations import packaged
    from lag_integrations.calibration.calibrate import calibrate as measured
    from lag_integrations.engine.engine import Engine

    template = None if chat_template is None else chat_template.read_text("utf-8")
    engine = Engine.load(
        packaged.resolve(model),
        device=device,
        dtype=dtype,
        quantization=quantization,
        chat_template=template,
    )
    with progress_bar("Calibrating") as progress:
        found = measured(engine, progress, again=again)
    if place is not None:
        with place.store() as opened:
            opened.metadata.set_calibration(found.fingerprint, found.model_dump_json())
    if as_json:
        show_json(found.model_dump(mode="json"))
    else:
        _show(found)


def _show(found: Calibration) -> None:
    kinds = list(found.figures[0].likelihood)
    rows = [
        [
            of.setting,
            f"{of.value:.2f}",
            *(f"{of.likelihood[kind]:.2f}" for kind in kinds),
            f"{of.exact:.0%}",
            f"{of.parroted:.0%}",
        ]
        for of in found.figures
    ]
    show_table(["setting", "value", *kinds, "greedy", "parroted"], rows)
    low, high = found.gain_interval
    form = "as KV" if found.form == "kv" else "as text"
    say(
        f"{found.model} is given logs {form}; kept: {found.selection}; they stand "
        f"{found.placement}; attention temperature {found.temperature}. KV against text: "
        f"{found.gain:+.2f} [{low:+.2f}, {high:+.2f}] nats a token. {found.seconds:.0f} s, "
        f"{found.tokens:,} tokens."
    )
