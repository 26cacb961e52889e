"""`adapter-export capture`: a Hugging Face folder, or a pickled module that is trusted, becomes a model archive."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import adapter_export as ae
from adapter_export.api.option import Option
from adapter_export.cli.options import Json, command


@command(
    "adapter-export capture path/to/all-MiniLM-L6-v2 -o model.pt",
    "adapter-export capture path/to/vit -o vit.pt --force",
    "adapter-export capture path/to/llama --with-cache -o llama.pt",
    "adapter-export capture --trust-pickle mine.pt --input x=float32[batch,sequence,64] -o model.pt",
    like=ae.capture,
)
def capture(
    model: Annotated[Path, Option(metavar="MODEL")],
    *,
    output: Annotated[Path, Option("The archive to write.", "PATH", "-o")],
    as_json: Json = False,
    **options: Any,
) -> None:
    """Make a model archive from MODEL.

    MODEL is a Hugging Face folder: `config.json` and `model.safetensors`. With `--trust-pickle` it is a file of
    `torch.save(module)`. The archive holds the graph, the weights, the module paths and the tokenizer. It needs none of
    the model's code, it trains, and it exports. From Python, any module is captured with
    `adapter_export.capture(module, "model.pt", example_inputs=…)`.
    """
    from adapter_export.cli.output import emit_json, say, size, steps

    with steps() as tell:
        base = ae.capture(model, output, on_progress=tell, **options)
    written = output.stat().st_size
    if as_json:
        emit_json(
            {
                "model": str(output),
                "fingerprint": base.fingerprint,
                "bytes": written,
                "inputs": [record.name for record in base.inputs],
                "outputs": [record.name for record in base.outputs],
                "max_tokens": base.max_tokens,
                "tokenizer": base.tokenizer is not None,
            }
        )
        return
    say(f"wrote {output}: {size(written)}, {'with' if base.tokenizer else 'without'} a tokenizer.")
    train = "" if options["with_cache"] else f"adapter-export train {output} --data train.tsv -o adapter, or "
    say(f"Next: {train}adapter-export sites {output}")
