"""`adapter-export capture`: a Hugging Face folder, or a pickled module that is trusted, becomes a model archive."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import adapter_export as ae
from adapter_export.cli.options import Json, command
from adapter_export.option import Option

if TYPE_CHECKING:
    pass


@command(
    "adapter-export capture path/to/all-MiniLM-L6-v2 -o model.pt",
    "adapter-export capture path/to/vit -o vit.pt --force",
    "adapter-export capture path/to/llama --with-cache -o llama.pt",
    "adapter-export capture path/to/patchtst --input past_values=float32[batch,512,7] -o model.pt",
    "adapter-export capture path/to/mamba --axis sequence=128 -o mamba.pt",
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

    MODEL is a Hugging Face folder, `config.json` and `model.safetensors`, or one of sentence-transformers. Its class is
    the one that `architectures` names; its inputs are those that its tokenizer or processor makes, or `--input`. With
    `--trust-pickle` it is a file of `torch.save(module)`. The archive holds the graph, the weights, the module paths,
    the tokenizer, and the base head: what its class or its modules compute of the final hidden state. A warning names
    what is left out. The archive needs none of the model's code, it trains, and it exports. From Python, any
    module is captured with `adapter_export.capture(module, "model.pt", example_inputs=…)`.
    """
    from adapter_export.cli.bases import Noted
    from adapter_export.cli.output import emit_json, say, size, steps, warn

    with steps() as show:
        reporter = Noted(show)
        base = ae.capture(model, output, reporter=reporter, **options)
    for note in reporter.notes:
        warn(f"{note}.")
    written = output.stat().st_size
    if as_json:
        emit_json(
            {
                "model": str(output),
                "fingerprint": base.fingerprint,
                "bytes": written,
                "inputs": [record.name for record in base.inputs],
                "outputs": [record.name for record in base.outputs],
                "lengths": {axis: asdict(one) for axis, one in base.lengths.items()},
                "max_tokens": base.max_tokens,
                "tokenizer": base.tokenizer is not None,
                "base_head": base.base_head_facts(),
                "notes": reporter.notes,
            }
        )
        return
    head = base.base_head.head if base.base_head else None
    means = (
        "" if head is None else f" and its base head ({head.task.type.replace('_', ' ') if head.task else 'logits'})"
    )
    say(f"wrote {output}: {size(written)}, {'with' if base.tokenizer else 'without'} a tokenizer{means}.")
    data = "--task causal_lm --data texts.jsonl" if options["with_cache"] else "--data train.tsv"
    train = f"adapter-export train {output} {data} -o adapter, or "
    say(f"Next: {train}adapter-export sites {output}")
