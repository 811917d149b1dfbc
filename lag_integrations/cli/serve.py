"""The command that serves a model with a memory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer
from pydantic import SecretStr

from lag_integrations.cli.opening import Embedder, Place, at_store
from lag_integrations.cli.options import (
    ChatTemplateFile,
    Loading,
    ModelDevice,
    ModelDtype,
    ModelQuantization,
)
from lag_integrations.cli.output import say
from lag_integrations.errors import SettingsError


@at_store
def serve(
    place: Place,
    model: Annotated[
        str | None,
        typer.Option(help="Hub id, folder, GGUF file or packaged model; SmolLM2 by default."),
    ] = None,
    upstream: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="A server with OpenAI's API whose model answers instead, given logs as text: "
            "http://127.0.0.1:11434/v1.",
        ),
    ] = None,
    upstream_key: Annotated[
        str | None, typer.Option(envvar="KVLOG_UPSTREAM_KEY", help="The key for that server.")
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen at; another than this machine needs --keys.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65_535, help="Port to listen at.")] = 8321,
    keys: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            exists=True,
            dir_okay=False,
            help='JSON file of API keys and their tenants: {"<key>": {"namespace": "team-a"}}.',
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option("--served-name", help="Name of the model for clients; its own by default."),
    ] = None,
    k: Annotated[int | None, typer.Option("--k", min=0, help="Most logs to recall.")] = None,
    max_tokens: Annotated[
        int, typer.Option(min=1, help="Most tokens of an answer that does not say how many.")
    ] = 512,
    timeout: Annotated[
        float, typer.Option(min=0.1, help="Most seconds until an answer is whole.")
    ] = 600.0,
    at_once: Annotated[
        int, typer.Option(min=1, help="Most answers at once; others are refused with 429.")
    ] = 64,
    embedder: Embedder = None,
    device: ModelDevice = None,
    dtype: ModelDtype = "auto",
    quantization: ModelQuantization = None,
    chat_template: ChatTemplateFile = None,
) -> None:
    """Serve a model with this memory, by OpenAI's API (extra ``serve``).

    Clients change their base URL alone: http://127.0.0.1:8321/v1.
    """
    from lag_integrations.chat.settings import ModelSettings  # which takes a while

    try:
        from lag_integrations.serving.app import LOOPBACK
        from lag_integrations.serving.backends import Backend, EmbeddedModel
        from lag_integrations.serving.server import Server
        from lag_integrations.serving.upstream import UpstreamModel
    except ModuleNotFoundError as error:
        raise SettingsError(
            f"`kvlog serve` needs {error.name}; install 'lag_integrations[serve]'."
        ) from None
    if keys is None and host not in LOOPBACK:
        raise SettingsError(
            f"Whoever reaches {host} could read this memory; give --keys, or leave --host out."
        )
    _refuse_unused(
        {
            "device": device,
            "dtype": None if dtype == "auto" else dtype,
            "quantization": quantization,
            "chat-template": chat_template,
        }
        if upstream is not None
        else {"upstream-key": upstream_key},
        "a model at --upstream" if upstream is not None else "a model in this process",
    )
    backend: Backend
    if upstream is None:
        engine = Loading(device, dtype, quantization, chat_template, False).load(model)
        backend, own_name = EmbeddedModel(engine), _short(engine.name)
    else:
        if model is None:
            raise SettingsError("Name the model of the --upstream server with --model.")
        key = None if upstream_key is None else SecretStr(upstream_key)
        backend = UpstreamModel(ModelSettings(model=model, base_url=upstream, api_key=key))
        own_name = model
    with Server(
        backend,
        place.open_namespace(embedder),
        name=name or own_name,
        namespace=place.namespace,
        keys=keys,
        k=k,
        max_tokens=max_tokens,
        timeout=timeout,
        most_at_once=at_once,
    ) as server:
        server.listen(host, port)
        say(f"Serving {server.name} at {server.url}/v1 (Ctrl-C ends it)")
        server.run()


def _refuse_unused(options: Mapping[str, object], where: str) -> None:
    """Refuse options that would have no effect."""
    for name, value in options.items():
        if value is not None:
            raise SettingsError(f"--{name} has no effect on {where}; leave it out.")


def _short(name: str) -> str:
    """Return the name of a model; of a path, its last part."""
    path = Path(name)
    return path.name if path.is_absolute() or path.exists() else name
