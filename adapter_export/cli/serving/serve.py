"""`adapter-export serve`: bundles by HTTP."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import click

import adapter_export as ae
from adapter_export.cli.options import Json, command
from adapter_export.cli.output import emit_json, say


@command(
    "adapter-export serve bundle",
    "adapter-export serve bundle other=another/bundle --port 8080 --state routes.json",
    "adapter-export serve bundle --adapters tenants/ --resident 64",
    like=ae.serve,
    sections={
        "adapters": ("qualify", "adapters_dir", "hub", "resident", "loaded", "state"),
        "calls": ("workers", "mapped_weights", "provider", "threads", "calls", "call_rows", "max_wait"),
        "limits": ("call_bytes", "waiting", "connections", "sending", "answering"),
    },
    common=("adapters_dir", "state", "workers"),
)
def serve(bundles: Sequence[str], *, as_json: Json = False, **options: Any) -> None:
    """Serve BUNDLES by HTTP: an adapter's name is a model, and that of a bundle its base.

    It speaks the Open Inference Protocol v2, and plain JSON: POST /answer {"model": "trec", "text": "How far?"}. A
    page for people is at /, metrics for Prometheus at /metrics. SIGHUP reads the bundles again; SIGTERM answers what
    has come, and ends. Whoever has the token in the environment variable `ADAPTER_EXPORT_ADMIN_TOKEN` may change
    routes and adapters; without it, only who sits at this machine.
    """

    def say_ready(address: str, models: Sequence[str]) -> None:
        if as_json:
            emit_json({"listening": address, "models": list(models)})
        else:
            click.echo(f"listening on {address}")
            say(f"models: {', '.join(models)}")

    token = os.environ.get("ADAPTER_EXPORT_ADMIN_TOKEN")
    ae.serve(bundles, admin_token=token, on_ready=say_ready, **options)
