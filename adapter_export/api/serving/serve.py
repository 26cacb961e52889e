"""Serve bundles by HTTP."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Literal

from adapter_export.api.models.base import PathLike, require
from adapter_export.errors import UsageError, argument
from adapter_export.option import Option

_LAST_PORT = 65535


def serve(
    bundles: PathLike | Sequence[PathLike],
    *,
    host: Annotated[str, Option("The address to listen at.")] = "127.0.0.1",
    port: Annotated[int, Option("The port to listen at; 0 takes one that is free.", least=0)] = 8080,
    qualify: Annotated[bool, "Name models with their bundles, `bundle/adapter`."] = False,
    adapters_dir: Annotated[
        PathLike | None,
        Option("A folder in which adapters that are not loaded are found by name.", "DIR", "--adapters"),
    ] = None,
    hub: Annotated[bool, "Serve bundles, and let administrators load adapters, from `hf://…` and `oci://…`."] = False,
    admin_token: str | None = None,
    state: Annotated[PathLike | None, Option("The file that keeps routes, so that a restart has them.", "FILE")] = None,
    drain: Annotated[float, "Seconds in which calls are answered after SIGTERM, and health says `not ready`."] = 5.0,
    quiet: Annotated[bool, "Log only what is wrong."] = False,
    workers: Annotated[int, Option("Processes that share the port and the files of the bundles.", least=1)] = 1,
    mapped_weights: Annotated[
        bool, "Compute on the file of the weights, whose memory workers share, without a packed copy in each."
    ] = False,
    provider: Annotated[Literal["cpu", "cuda"], "Where to compute."] = "cpu",
    threads: Annotated[int, Option("Threads of one operation.", least=1)] = 1,
    calls: Annotated[int, Option("Calls of a session that run at a time.", least=1)] = 1,
    call_rows: Annotated[int, Option("The most rows of a call.", least=1)] = 32,
    max_wait: Annotated[float, Option("Milliseconds that a row waits for others though a call could begin.")] = 0.0,
    resident: Annotated[
        int | None, Option("Keep so many adapters in memory, and read others when they are called.", least=1)
    ] = None,
    call_bytes: Annotated[int, Option("The largest body of a call.", least=1)] = 2**22,
    loaded: Annotated[int, Option("The most adapters beside those of the bundles.", least=0)] = 64,
    waiting: Annotated[int, Option("The most rows that wait for a session.", least=1)] = 4096,
    connections: Annotated[int, Option("The most connections at a time.", least=1)] = 500,
    sending: Annotated[float, "Seconds that a client has to send a head, and again a body."] = 10.0,
    answering: Annotated[float, "Seconds that a client waits for an answer."] = 60.0,
    on_ready: Callable[[str, Sequence[str]], object] | None = None,
) -> None:
    """Serve bundles by HTTP until the process is told to end; call it in the main thread.

    Args:
        bundles: their folders, or `NAME=FOLDER`, or with `hub` references such as `oci://host/repository:tag`. An
            adapter's name is a model, and that of a bundle its base.
        admin_token: lets whoever has it change routes and adapters; without one, only who sits at this machine may.
        on_ready: is told the address and the names of the models when calls are answered.

    Raises:
        UsageError: models have the same name, the port is taken, or arguments do not go together.
        MissingExtraError: the libraries of the server are not installed.
        InputError: a bundle or the state cannot be read.
    """
    require("fastapi", "serve", "serving")
    require("uvicorn", "serve", "serving")
    require("prometheus_client", "serve", "serving")
    from adapter_export.server.limits import Limits
    from adapter_export.server.models import Computing
    from adapter_export.server.process import Settings, serve_here
    from adapter_export.server.workers import serve_workers

    if hub:
        require("huggingface_hub", "hub", "fetching adapters")
        require("httpx", "hub", "fetching adapters")

    for name, value in (("drain", drain), ("max_wait", max_wait), ("sending", sending), ("answering", answering)):
        if not 0 <= value < float("inf"):
            raise UsageError("is no time", where=argument(name), found=value, expected="0 or more")
    if not 0 <= port <= _LAST_PORT:
        raise UsageError("is no port", where=argument("port"), found=port, expected=f"0 to {_LAST_PORT:,}")
    if admin_token == "":
        raise UsageError("an empty admin token lets everybody in", fix="give one, or none")
    places = [bundles] if isinstance(bundles, str | Path) else bundles
    settings = Settings(
        host=host,
        port=port,
        computing=Computing(provider, threads, calls, call_rows, max_wait / 1000, resident, not mapped_weights),
        limits=Limits(
            call=call_bytes,
            loaded=loaded,
            waiting=waiting,
            connections=connections,
            sending=sending,
            answering=answering,
        ),
        qualify=qualify,
        adapters=None if adapters_dir is None else Path(adapters_dir),
        hub=hub,
        state=None if state is None else Path(state),
        token=admin_token,
        drain=drain,
        quiet=quiet,
    )
    named, ready = [str(place) for place in places], on_ready or (lambda *_: None)
    if workers == 1:
        serve_here(named, settings, ready)
    else:
        serve_workers(named, settings, workers, ready)
