"""`adapter-export push` and `pull`: bundles and adapters on hubs and in registries."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import adapter_export as ae
from adapter_export.cli.options import Force, Json, command
from adapter_export.cli.output import emit_json, say, steps, warn_of
from adapter_export.option import Option


@command(
    "adapter-export push bundle hf://me/questions --license apache-2.0 --base-model microsoft/deberta-v3-small",
    "adapter-export push bundle oci://registry.example/models/questions:1.2",
    "adapter-export push adapters/trec hf://me/trec --license apache-2.0",
    like=ae.push,
)
def push(path: Path, reference: str, *, as_json: Json = False, **options: Any) -> None:
    """Send PATH, a bundle or the folder of an adapter, to REFERENCE, with a model card of what is known.

    REFERENCE is `hf://owner/name[@branch]`, with the login of `hf auth login` or `HF_TOKEN`, or
    `oci://host[:port]/repository[:tag]`, with that of `docker login`.

    Exit codes: 0 sent, 3 it is damaged, or the hub or the registry does not answer or does not take it.
    """
    with steps() as step:
        pushed = ae.push(path, reference, on_progress=step, on_note=warn_of, **options)
    if as_json:
        facts = {"reference": pushed.reference, "pinned": pushed.pinned, "kind": pushed.kind, "digest": pushed.digest}
        emit_json({**facts, "bytes": pushed.bytes, "files": pushed.files})
        return
    say(f"pushed {path} to {pushed.reference}: {pushed.bytes / 1e6:,.1f} MB in {len(pushed.files)} files")
    say(f"digest {pushed.digest}")
    say(f"Next: adapter-export pull {pushed.pinned} --expect {pushed.digest} -o {pushed.kind}")


@command(
    "adapter-export pull hf://me/questions -o bundle",
    "adapter-export pull oci://registry.example/models/questions:1.2 -o bundle --key release.pub",
    like=ae.pull,
)
def pull(
    reference: str,
    *,
    output: Annotated[
        Path | None, Option("The folder to write.  [default: the cache alone, whose folder is named]", "DIR", "-o")
    ] = None,
    force: Force = False,
    as_json: Json = False,
    **options: Any,
) -> None:
    """Take the bundle or adapter of REFERENCE, whole and verified.

    REFERENCE is `hf://owner/name[@revision]` or `oci://host[:port]/repository[:tag|@sha256:…]`. What arrives is
    compared with its hashes before it gets its place, and kept in the cache. `HF_HUB_OFFLINE=1` asks no network.

    Exit codes: 0 taken, 3 it is not there, damaged, or not what was expected.
    """
    with steps() as step:
        pulled = ae.pull(reference, output, force=force, on_progress=step, on_note=warn_of, **options)
    if as_json:
        facts = {"reference": pulled.reference, "pinned": pulled.pinned, "kind": pulled.kind, "digest": pulled.digest}
        emit_json({**facts, "path": str(pulled.path)})
        return
    say(f"pulled {pulled.pinned}: {pulled.kind} in {pulled.path}")
    say(f"digest {pulled.digest}")
    say(f"Next: adapter-export {'verify' if pulled.kind == 'bundle' else 'inspect'} {pulled.path}")
