"""`adapter-export capture`: a Hugging Face folder, or a pickled module that is trusted, becomes a model archive."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from adapter_export.cli.options import PATH, check_free, examples, force_option, json_option, output_option
from adapter_export.errors import UsageError
from adapter_export.format.manifest import Axis, InputRecord

if TYPE_CHECKING:
    from adapter_export.torch_backend.base.base import TorchBase


# What a model takes, as it is written on the command line: `input_ids=int64[batch,sequence]`.

_TYPES = ("float32", "int64", "int32", "bool")
_INPUT = re.compile(r"(?P<name>[A-Za-z_]\w*)=(?P<dtype>\w+)\[(?P<axes>[^\[\]]*)\]")
_AXIS = re.compile(r"[A-Za-z_]\w*|[1-9][0-9]{0,8}")


def parse_inputs(texts: Sequence[str]) -> tuple[InputRecord, ...]:
    """The inputs that `--input` describes, in their order.

    Raises:
        UsageError: one is not of the form `NAME=TYPE[AXIS,…]`, or two have one name.
    """
    records = tuple(map(_parse, texts))
    names = [record.name for record in records]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UsageError("an input is described twice", where="`--input`", found=f"`{twice}`", fix="leave one out")
    return records


def _parse(text: str) -> InputRecord:
    found = _INPUT.fullmatch(text)
    axes = [] if found is None else [axis.strip() for axis in found["axes"].split(",") if found["axes"].strip()]
    if found is None or found["dtype"] not in _TYPES or not all(map(_AXIS.fullmatch, axes)):
        raise UsageError(
            "an input that cannot be read",
            where="`--input`",
            found=f"`{text}`",
            expected=f"`NAME=TYPE[AXIS,…]` with a type of {', '.join(_TYPES)}",
            fix="write it as `input_ids=int64[batch,sequence]`; an axis is a number, or has a name and is dynamic",
        )
    return InputRecord(found["name"], found["dtype"], tuple(map(_axis, axes)), "values")


def _axis(text: str) -> Axis:
    return int(text) if text.isdecimal() else text


@click.command(
    epilog=examples(
        "adapter-export capture path/to/all-MiniLM-L6-v2 -o model.pt",
        "adapter-export capture path/to/vit -o vit.pt --force",
        "adapter-export capture path/to/llama --with-cache -o llama.pt",
        "adapter-export capture --trust-pickle mine.pt --input x=float32[batch,sequence,64] -o model.pt",
    )
)
@click.argument("model", type=PATH, metavar="MODEL")
@output_option("The archive")
@click.option(
    "--with-cache",
    is_flag=True,
    help="Capture a causal language model as it generates: with its language head, and with keys and values of the "
    "tokens before as inputs `past_key_values.N.key` and outputs `present.N.key`.",
)
@click.option(
    "--trust-pickle",
    is_flag=True,
    help="Read a pickled module. Reading it runs whatever code its maker put into it, with all that you may do on this "
    "machine. Only for files that you made yourself, or whose maker you trust.",
)
@click.option(
    "--input",
    "inputs",
    multiple=True,
    metavar="NAME=TYPE[AXIS,…]",
    help="What a pickled module takes, such as `input_ids=int64[batch,sequence]`, once for each input. Axes with names "
    "are dynamic. Not needed for tokens and images by their usual names.",
)
@click.option("--tokenizer", type=PATH, metavar="PATH", help="The `tokenizer.json` of a pickled module, or its folder.")
@click.option("--max-tokens", type=click.IntRange(min=1), help="The longest input of a pickled module, in tokens.")
@force_option
@json_option
def capture(
    model: Path,
    output: Path,
    with_cache: bool,
    trust_pickle: bool,
    inputs: tuple[str, ...],
    tokenizer: Path | None,
    max_tokens: int | None,
    force: bool,
    as_json: bool,
) -> None:
    """Make a model archive from MODEL.

    MODEL is a Hugging Face folder: `config.json` and `model.safetensors`. With `--trust-pickle` it is a file of
    `torch.save(module)`. The archive holds the graph, the weights, the module paths and the tokenizer. It needs none of
    the model's code, it trains, and it exports. From Python, any module is saved with
    `adapter_export.torch_backend.base.base.save_base(module, example_inputs, "model.pt")`.
    """
    from adapter_export.cli.output import steps
    from adapter_export.cli.sources import require

    check_free(output, force=force)
    _check_options(model, with_cache, trust_pickle, bool(inputs or tokenizer or max_tokens))
    require("torch", "torch", "capturing a model")
    from adapter_export.torch_backend.base.base import load_base

    with steps() as tell:
        tell(f"opening and capturing {model}")
        if trust_pickle:
            _capture_pickled(model, output, inputs, tokenizer, max_tokens, force)
        else:
            _capture_folder(model, output, with_cache, force)
        tell("loading the archive as others will")
        base = load_base(output)
    _report(output, base, with_cache, as_json)


def _check_options(model: Path, with_cache: bool, trust_pickle: bool, described: bool) -> None:
    """Refuse options that do not go with what the model is.

    Raises:
        UsageError: they do not.
        BaseModelError: the model is a file, which only `--trust-pickle` reads.
    """
    if trust_pickle and (model.is_dir() or with_cache):
        found = "a folder" if model.is_dir() else "`--with-cache`"
        raise UsageError("`--trust-pickle` is for a pickled module", found=found, fix="leave one of the two out")
    if described and not trust_pickle:
        raise UsageError(
            "`--input`, `--tokenizer` and `--max-tokens` describe a pickled module",
            found="no `--trust-pickle`",
            fix="leave them out; a Hugging Face folder says all of it",
        )
    if model.is_file() and not trust_pickle:
        from adapter_export.torch_backend.base.file_kinds import check_pickled, untrusted

        check_pickled(model)
        raise untrusted(model)


def _capture_folder(folder: Path, output: Path, with_cache: bool, force: bool) -> None:
    from adapter_export.cli.sources import require

    require("transformers", "hf", "opening a Hugging Face folder")
    from adapter_export.torch_backend.base.huggingface import capture_folder

    capture_folder(folder, output, with_cache=with_cache, force=force)


def _capture_pickled(
    path: Path, output: Path, inputs: tuple[str, ...], tokenizer: Path | None, max_tokens: int | None, force: bool
) -> None:
    pass  # MOVE
    from adapter_export.cli.sources import read_tokenizer
    from adapter_export.torch_backend.base.pickled import capture_pickled

    described = parse_inputs(inputs)
    text = None
    if tokenizer is not None:
        text = read_tokenizer(tokenizer / "tokenizer.json" if tokenizer.is_dir() else tokenizer)
    capture_pickled(path, output, described, tokenizer=text, max_tokens=max_tokens, force=force)


def _report(output: Path, base: TorchBase, with_cache: bool, as_json: bool) -> None:
    from adapter_export.cli.output import emit_json, say, size

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
