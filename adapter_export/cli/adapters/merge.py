"""`adapter-export merge`: an adapter goes into the weights of its model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import adapter_export as ae
from adapter_export.cli.options import Force, Json, SiteMapFile, TrustPickle, command
from adapter_export.option import Option
from adapter_export.safe_io.output import Output


@command(
    "adapter-export merge model.pt --adapter lora -o merged.pt",
    "adapter-export merge model.onnx --adapter lora -o merged.onnx --without-head",
    like=ae.merge,
)
def merge(
    model: Path,
    *,
    adapter: Annotated[Path, Option("The folder of the adapter.", "FOLDER")],
    output: Annotated[Path, Option("The archive, or the ONNX file, to write.", "FILE", "-o")],
    force: Force = False,
    site_map: SiteMapFile = None,
    trust_pickle: TrustPickle = False,
    as_json: Json = False,
    **options: Any,
) -> None:
    """Write a model with an adapter inside its weights, where it costs nothing at run time.

    MODEL is a torch archive, a Hugging Face folder or an ONNX file. The adapter must be a fixed change of linear
    layers, as LoRA is; whether it is, is seen from what it computes. The result has a fingerprint of its own, and is
    compared with model and adapter before it is written. It cannot be swapped any more.
    """
    from adapter_export.cli.bases import Noted, opened
    from adapter_export.cli.output import emit_json, say, warn

    Output(output, force).ensure_writable(sources=[model, adapter])
    base, reporter = opened(model, site_map, trust_pickle), Noted()
    merged = ae.merge(base, adapter, output, force=force, reporter=reporter, **options)
    for note in reporter.notes:
        warn(f"{note}.")
    if as_json:
        facts = {"error": merged.error, "scale": merged.scale, "compared": merged.compared, "notes": reporter.notes}
        document = {"model": str(output), "fingerprint": merged.fingerprint, "tensors": list(merged.tensors), **facts}
        emit_json(document)
        return
    say(
        f"wrote {output}: {len(merged.tensors)} tensors of {model.name} are new, fingerprint {merged.fingerprint[:19]}…"
    )
    say(f"{merged.compared:,} values, up to {merged.scale:.3g}, are within {merged.error:.1e} of model and adapter.")
    say(f"Next: adapter-export build {output} -o bundle")
