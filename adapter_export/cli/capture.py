"""`adapter-export capture`: a Hugging Face folder becomes a model archive."""

from __future__ import annotations

from pathlib import Path

import click

from adapter_export.cli.options import PATH, check_free, examples, force_option, json_option, output_option


@click.command(
    epilog=examples(
        "adapter-export capture path/to/all-MiniLM-L6-v2 -o model.pt",
        "adapter-export capture path/to/vit -o vit.pt --force",
        "adapter-export capture path/to/llama --with-cache -o llama.pt",
    )
)
@click.argument("folder", type=PATH, metavar="HF_FOLDER")
@output_option("The archive")
@click.option(
    "--with-cache",
    is_flag=True,
    help="Capture a causal language model as it generates: with its language head, and with keys and values of the "
    "tokens before as inputs `past_key_values.N.key` and outputs `present.N.key`.",
)
@force_option
@json_option
def capture(folder: Path, output: Path, with_cache: bool, force: bool, as_json: bool) -> None:
    """Make a model archive from HF_FOLDER: a folder with `config.json` and `model.safetensors`.

    The archive holds the graph, the weights, the module paths and the tokenizer. It needs none of the model's code, it
    trains, and it exports. A model that is in no such folder is saved from Python, with
    `adapter_export.torch.base.save_base(module, example_inputs, "model.pt")`.
    """
    from adapter_export.cli.output import emit_json, say, size, steps
    from adapter_export.cli.sources import require

    check_free(output, force=force)
    require("torch", "torch", "capturing a model")
    require("transformers", "hf", "opening a Hugging Face folder")
    from adapter_export.torch.base import load_base
    from adapter_export.torch.huggingface import capture_folder

    with steps() as tell:
        tell(f"opening and capturing {folder}")
        capture_folder(folder, output, with_cache=with_cache, force=force)
        tell("loading the archive as others will")
        base = load_base(output)
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
    train = "" if with_cache else f"adapter-export train {output} --data train.tsv -o adapter, or "
    say(f"Next: {train}adapter-export sites {output}")
