"""`adapter-export sign`: who made a bundle."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import adapter_export as ae
from adapter_export.cli.options import Force, Json, command
from adapter_export.cli.output import emit_json, say


@command(
    "adapter-export sign bundle --key release.pem",
    "adapter-export sign bundle --key release.pem --report report.json",
    "adapter-export sign bundle --key release.pem --certificate release.crt --certificate-chain between.crt",
    like=ae.sign,
)
def sign(bundle: Path, *, force: Force = False, as_json: Json = False, **options: Any) -> None:
    """Sign BUNDLE, so that others can tell who made it: `verify --key PUBLIC`.

    The signature covers every file but those whose names begin with a dot, and lies in the bundle as `model.sig`, in
    the format of OpenSSF model-signing. Nothing goes over the network. `add` and `remove` drop it, for they make
    another bundle. A password of KEY is taken from the environment variable `ADAPTER_EXPORT_KEY_PASSWORD`.

    Exit codes: 0 signed, 3 the bundle, the key or the report cannot be used.
    """
    password = os.environ.get("ADAPTER_EXPORT_KEY_PASSWORD")
    signed = ae.sign(bundle, force=force, password=password, **options)
    if as_json:
        emit_json({"bundle": str(bundle), **asdict(signed)})
        return
    say(f"signed {len(signed.files)} files of {bundle} by {signed.signer}")
    say(f"Next: adapter-export verify {bundle} --key PUBLIC")
