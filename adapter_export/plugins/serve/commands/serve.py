"""Serve bundles by HTTP, with one adapter per request."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from adapter_export.address import Address, as_written
from adapter_export.commands.command import Command, Screen
from adapter_export.errors import UsageError
from adapter_export.extras import require
from adapter_export.option import Option, OptionsOf
from adapter_export.plugins.serve.server_settings import Limits, ServerSettings, SessionSettings
from adapter_export.words import argument, quoted

_OPTIONS = OptionsOf(ServerSettings, SessionSettings, Limits)
_LAST_PORT = 65535
_TIMES = ("drain", "max_batch_delay", "read_timeout", "request_timeout")


def serve(
    bundles: Address | Sequence[Address],
    *,
    admin_token: Annotated[str | None, Option(variable="ADAPTER_EXPORT_ADMIN_TOKEN")] = None,
    workers: Annotated[int, Option("Processes that share the port and the bundles' files.", least=1)] = 1,
    on_ready: Callable[[str, Sequence[str]], object] | None = None,
    **options: Annotated[Any, _OPTIONS],
) -> None:
    """Serve bundles by HTTP: each adapter is a model, and the name of a bundle is its base.

    Protocols: plain JSON (`POST /answer {"model": "trec", "text": "How far?"}`), the Open Inference Protocol v2, and
    the APIs of OpenAI, Cohere, Text Embeddings Inference, vLLM and Ollama. A web page is at `/`, Prometheus metrics at
    `/metrics`. SIGHUP reloads the bundles; SIGTERM finishes running requests and exits. Clients with the token in
    `ADAPTER_EXPORT_ADMIN_TOKEN` may change routes and adapters; without a token, only loopback clients may.

    Args:
        bundles: folders, `NAME=FOLDER`, or references such as `oci://host/repository:tag`, which are fetched.
        admin_token: token that is required to change routes and adapters. Default: only loopback clients may.
        on_ready: called with the address and the names of the models when the server is ready.
        options: the settings of `ServerSettings`, `SessionSettings` and `Limits`.

    Returns:
        `None` when the process is terminated. Call it in the main thread, which receives signals.

    Raises:
        UsageError: two models have the same name, the port is in use, or an argument is out of range.
        MissingExtraError: the libraries of the extra `serve` are not installed.
        InputError: a bundle or the state file cannot be read.
    """
    require("fastapi", "serve", "serving")
    require("uvicorn", "serve", "serving")
    require("prometheus_client", "serve", "serving")
    from adapter_export.plugins.serve.process import serve_here
    from adapter_export.plugins.serve.workers import serve_workers

    settings = _settings(options, admin_token)
    if settings.hub:
        require("huggingface_hub", "hub", "fetching adapters")
        require("httpx2", "hub", "fetching adapters")
    places = [as_written(bundle) for bundle in ([bundles] if isinstance(bundles, str | Path) else bundles)]
    if settings.sessions.form == "auto":
        places, settings = _with_forms(places, settings)
    ready = on_ready or (lambda *_: None)
    if workers == 1:
        serve_here(places, settings, ready)
    else:
        serve_workers(places, settings, workers, ready)


def _with_forms(places: Sequence[str], settings: ServerSettings) -> tuple[list[str], ServerSettings]:
    """Replace bundles by their forms, under the same names; UsageError if their providers differ."""
    from adapter_export.bundle.chosen_form import chosen_form
    from adapter_export.bundle.open_bundle import folder_of
    from adapter_export.plugins.serve.models import named_place

    forms = {name: chosen_form(path, "auto", settings.sessions.provider) for name, path in map(named_place, places)}
    providers = {form.provider for form in forms.values()}
    if len(providers) > 1:
        raise UsageError(
            "the fastest forms of the bundles have different providers",
            where=argument("form", "auto"),
            found=quoted(sorted(providers)),
            fix="serve them in processes of their own",
        )
    sessions = replace(settings.sessions, provider=providers.pop(), form="given")
    named = [f"{name}={folder_of(form.bundle)}" for name, form in forms.items()]
    return named, replace(settings, sessions=sessions)


def _settings(options: Mapping[str, Any], token: str | None) -> ServerSettings:
    of_server, of_sessions, limits = _OPTIONS.split("serve", options)
    for name in _TIMES:
        seconds = options.get(name)
        if seconds is not None and not 0 <= seconds < float("inf"):
            raise UsageError("must be 0 or more", where=argument(name), found=seconds)
    port = of_server.get("port", 0)
    if not 0 <= port <= _LAST_PORT:
        raise UsageError("must be a port", where=argument("port"), found=port, expected=f"0 to {_LAST_PORT:,}")
    if token == "":
        raise UsageError("the admin token is empty", fix="set a token, or none")
    of_server |= {name: Path(of_server[name]) for name in ("adapters_dir", "state", "lora_root") if name in of_server}
    _check_lora(of_server, token)
    return ServerSettings(**of_server, sessions=SessionSettings(**of_sessions), limits=Limits(**limits), token=token)


def _check_lora(of_server: Mapping[str, Any], token: str | None) -> None:
    """Raise UsageError if one of the settings that loading PEFT adapters needs is missing."""
    wanted = [argument(name) for name in ("lora_root", "lora_base") if name in of_server]
    if not wanted:
        return
    if len(wanted) == 1:
        raise UsageError(argument("lora_root") + " and " + argument("lora_base") + " need each other")
    if token is None:
        raise UsageError(
            wanted[0] + " needs an admin token",
            fix="set `ADAPTER_EXPORT_ADMIN_TOKEN`, or `admin_token` in Python",
        )
    if not of_server["lora_root"].is_dir():
        raise UsageError("is not a folder", where=wanted[0], found=of_server["lora_root"])


def _show(ready: tuple[str, Sequence[str]], screen: Screen) -> None:
    address, models = ready
    screen.line(f"listening on {address}")
    screen.report(f"models: {', '.join(models)}")


def _document(ready: tuple[str, Sequence[str]], _: Screen) -> Mapping[str, object]:
    address, models = ready
    return {"listening": address, "models": list(models)}


COMMAND = Command(
    serve,
    _show,
    document=_document,
    live="on_ready",
    examples=(
        "adapter-export serve bundle",
        "adapter-export serve bundle other=another/bundle --port 8080 --state routes.json",
        "adapter-export serve bundle --adapters tenants/ --resident 64",
    ),
    sections={
        "adapters": ("qualify", "adapters_dir", "hub", "resident", "max_adapters", "lora_root", "lora_base", "state"),
        "calls": (
            *("workers", "mapped_weights", "provider", "form", "threads", "concurrency"),
            *("max_batch_size", "max_batch_tokens", "max_batch_delay"),
        ),
        "limits": (
            *(
                "max_body",
                "max_queue",
                "max_queue_tokens",
                "max_file",
                "max_outputs",
                "max_new_tokens",
                "max_connections",
            ),
            *("read_timeout", "request_timeout"),
        ),
    },
    common=("adapters_dir", "state", "workers"),
)
