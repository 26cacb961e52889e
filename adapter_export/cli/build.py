"""`adapter-export build`: a base and its adapters become one bundle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from adapter_export.cli.options import (
    PATH,
    check_free,
    examples,
    force_option,
    json_option,
    output_option,
    site_map_option,
    trust_pickle_option,
)
from adapter_export.cli.sources import PRECISIONS, Treatment, prepared
from adapter_export.errors import RequestError, UsageError

if TYPE_CHECKING:
    from adapter_export.bundle.flavours import Forms
    from adapter_export.cli.sources import Source
    from adapter_export.format.manifest import Manifest, Precision
    from adapter_export.graph.adapter import Adapter
    from adapter_export.numerics.runner import Runner
    from adapter_export.numerics.sample_inputs import InputCase
    from adapter_export.onnx_backend.base.base import OnnxBase

_GOLDEN_SEED = 0

_FLAVOUR_WORDS = {
    "slots": "an adapter may be fed",
    "inputs": "an adapter must be fed",
    "bank": "an adapter for each row",
}
_WEIGHTS_WORDS = {"base.bin": "the base's weights", "bank.bin": "the adapters of the bank"}

_FEW_TOKENS = 2
"""How long the golden vectors of a large base are: each row of a product costs."""


@click.command(
    epilog=examples(
        "adapter-export build model.pt --adapters trec,sentiment -o bundle",
        "adapter-export build huggingface-folder --adapters adapters/trec -o bundle",
        "adapter-export build model.onnx --adapters a --tokenizer tokenizer.json --max-tokens 512 -o bundle",
        "adapter-export build model.pt --adapters trec --base-precision int8-weights --int8-embeddings -o bundle",
        "adapter-export build model.pt --adapters old=runs/1/trec,new=runs/2/trec -o bundle --force",
    )
)
@click.argument("model", type=PATH)
@click.option(
    "--adapters",
    required=True,
    metavar="A,B,…",
    help="Adapter folders, or names looked up in the current folder, beside the model and in `./adapters`. "
    "`NAME=FOLDER` renames one.",
)
@output_option("The bundle")
@click.option(
    "--tokenizer",
    type=PATH,
    metavar="PATH",
    help="A `tokenizer.json`, or a folder with one; the one that was saved with the model if not given.",
)
@click.option("--max-tokens", type=click.IntRange(min=1), help="The longest text; what the model takes if not given.")
@click.option(
    "--allow-base-mismatch", is_flag=True, help="Take adapters that were trained on other weights of the base."
)
@click.option(
    "--base-precision",
    type=click.Choice(PRECISIONS),
    default="fp32",
    show_default=True,
    help="How the base computes: floats, integers (`int8`), or floats with weights of 8 or 4 bits. Adapters and heads "
    "stay in float32. In `int8` the rows of a batch depend on each other.",
)
@click.option("--int8-embeddings", is_flag=True, help="Keep embeddings in 8 bits beside weights of 8 or 4 bits.")
@click.option("--optimize", is_flag=True, help="Fuse attention, norms and activations before the slots go in.")
@click.option(
    "--flavours",
    metavar="A,B,…",
    help="Forms of the graph: some of slots, inputs and bank, or `all`; if not given, all that the model allows. The "
    "one with slots is always there.",
)
@click.option(
    "--bake",
    multiple=True,
    metavar="NAME",
    help="Write a graph in which this adapter is constant, too, for a device that needs no other. Repeatable.",
)
@click.option(
    "--copy-weights",
    is_flag=True,
    help="Copy the weights of an ONNX base. Without this the bundle's file is a hard link to them where it can be: no "
    "time, no room, but who writes into one file changes both.",
)
@site_map_option
@force_option
@trust_pickle_option
@json_option
def build(
    model: Path,
    adapters: str,
    output: Path,
    tokenizer: Path | None,
    max_tokens: int | None,
    allow_base_mismatch: bool,
    base_precision: Precision,
    int8_embeddings: bool,
    optimize: bool,
    flavours: str | None,
    bake: tuple[str, ...],
    copy_weights: bool,
    site_map: Path | None,
    force: bool,
    trust_pickle: bool,
    as_json: bool,
) -> None:
    """Export MODEL and its adapters as one bundle.

    MODEL is a torch archive, a Hugging Face folder, an ONNX file or an onnxruntime-genai folder; the bundle of such a
    folder is one as well. The bundle holds one ONNX graph with slots, the base's weights once, a small file per
    adapter, golden vectors computed by the reference, and a manifest. It is held against its golden vectors before it
    is put in its place; if anything fails, nothing is left behind.
    """
    from adapter_export.bundle.build import build_bundle
    from adapter_export.cli.output import emit_json, steps, warn
    from adapter_export.cli.places import read_adapters

    treatment = Treatment(base_precision, int8_embeddings, optimize)
    treatment.check()
    check_free(output, force=force)
    chosen = read_adapters(adapters, model)
    notes: list[str] = []
    with steps() as tell:
        tell(f"opening {model}")
        source = _open(model, chosen, trust_pickle, site_map)
        longest = _max_tokens(source, max_tokens)
        text = _text(source, tokenizer, longest)
        with prepared(source, treatment, allow_base_mismatch, tell) as (base, references):
            manifest = build_bundle(
                base,
                chosen,
                output,
                references=references,
                cases=_golden_cases(base, longest, references),
                tokenizer=text,
                max_tokens=None if text is None else longest,
                kept=_kept(source),
                allow_base_mismatch=allow_base_mismatch,
                copy_weights=copy_weights,
                forms=_forms(flavours, bake, source),
                force=force,
                progress=tell,
                note=notes.append,
            )
    list(map(warn, notes))
    document = {"bundle": str(output), "manifest": asdict(manifest)}
    emit_json(document) if as_json else _report(manifest, model, output)


def _open(model: Path, adapters: Sequence[Adapter], trust_pickle: bool, site_map: Path | None) -> Source:
    """The base, with the site map that the adapters were trained with."""
    from adapter_export.cli.places import check_site_map
    from adapter_export.cli.sources import open_source

    source = open_source(model, trust_pickle=trust_pickle, site_map=site_map)
    check_site_map(adapters, source.given)
    return source


def _forms(flavours: str | None, bake: Sequence[str], source: Source) -> Forms:
    """What was asked for; nothing but slots in a folder that onnxruntime-genai loads, unless it was."""
    from adapter_export.bundle.flavours import FLAVOURS, Forms
    from adapter_export.cli.sources import OnnxSource

    if flavours is None:
        return Forms(["slots"] if isinstance(source, OnnxSource) and source.genai else None, bake)
    if flavours == "all":
        return Forms(list(FLAVOURS), bake)
    names = {name.strip() for name in flavours.split(",")}
    unknown = ", ".join(sorted(names - set(FLAVOURS)))
    if unknown:
        expected = f"`all`, or some of {', '.join(FLAVOURS)}"
        raise UsageError("unknown flavours", where="`--flavours`", found=unknown, expected=expected)
    return Forms([flavour for flavour in FLAVOURS if flavour in names], bake)


def _max_tokens(source: Source, given: int | None) -> int | None:
    """The longest text: what is asked for, but never more than the base takes."""
    known = source.max_tokens
    if given is not None and known is not None and given > known:
        raise UsageError(
            "more tokens than the base takes", where="`--max-tokens`", found=given, expected=f"at most {known}"
        )
    return given or known


def _golden_cases(base: OnnxBase, longest: int | None, references: Runner) -> list[InputCase]:
    """The inputs of the golden vectors: two short ones for a large base, which takes seconds for each."""
    from adapter_export.numerics.sample_inputs import input_cases
    from adapter_export.onnx_backend.base.external import is_large

    if not is_large(base.model):
        cases = input_cases(base.inputs, seed=_GOLDEN_SEED, max_tokens=longest)
        if longest is None:
            _try(references, cases)
        return cases
    short = min(longest or _FEW_TOKENS, _FEW_TOKENS)
    first, *_, last = input_cases(base.inputs, seed=_GOLDEN_SEED, max_tokens=short)
    return [first, last]


def _try(references: Runner, cases: Sequence[InputCase]) -> None:
    """Whether a base that does not say how many tokens it takes can compute the longest of the inputs."""
    case = max(cases, key=lambda case: max(size for array in case.arrays.values() for size in array.shape))
    try:
        references.run(case.arrays, None)
    except RequestError as error:
        raise RequestError(
            "the base cannot compute an input of this length",
            where=f"`{case.name}`",
            found=error.found,
            fix="if it takes fewer tokens, give their number as `--max-tokens`",
        ) from error


def _text(source: Source, tokenizer: Path | None, max_tokens: int | None) -> str | None:
    from adapter_export.cli.sources import read_tokenizer, require

    text = source.tokenizer
    if tokenizer is not None:
        text = read_tokenizer(tokenizer / "tokenizer.json" if tokenizer.is_dir() else tokenizer)
    if text is None:
        return None
    if max_tokens is None:
        raise UsageError(
            "the base does not say how many tokens it takes",
            expected="`--max-tokens N` beside a tokenizer",
            fix="give the number of positions that the base was trained with",
        )
    require("tokenizers", "text", "a bundle with a tokenizer")
    from adapter_export.text import Tokenizer

    Tokenizer.from_json(text, max_tokens)
    return text


def _kept(source: Source) -> Mapping[str, Path | bytes]:
    """What onnxruntime-genai needs to load the bundle of one of its folders."""
    from adapter_export.bundle.build import GRAPH_FILE
    from adapter_export.cli.sources import OnnxSource

    return source.genai.kept(GRAPH_FILE) if isinstance(source, OnnxSource) and source.genai else {}


def _report(manifest: Manifest, model: Path, output: Path) -> None:
    from adapter_export.cli.output import console, say, size, table

    sizes = {file.path: file.bytes for file in manifest.files}
    rows = [(path, f"the graph: {_FLAVOUR_WORDS[name]}", size(sizes[path])) for name, path in manifest.graphs.items()]
    rows += [(path, f"`{name}`, constant", size(sizes[path])) for name, path in _baked(manifest).items()]
    rows += [
        (
            adapter.onnx_adapter,
            f"`{adapter.name}`, {adapter.kind}, {adapter.parameters:,} parameters",
            size(sizes[adapter.onnx_adapter]),
        )
        for adapter in manifest.adapters
    ]
    rows += [(path, _WEIGHTS_WORDS.get(path, ""), size(sizes[path])) for path in sizes if path.endswith(".bin")]
    rest = sum(sizes.values()) - sum(sizes[path] for path, *_ in rows)
    rows.append(("…", "golden vectors, the same tensors for other programs, the adapters as given", size(rest)))
    console().print(table(f"{output}  {size(sum(sizes.values()))}", ("file", "what", "size"), rows, numbers="llr"))
    say(f"Next: adapter-export check {output} --against {model}")


def _baked(manifest: Manifest) -> Mapping[str, str]:
    return {adapter.name: adapter.baked for adapter in manifest.adapters if adapter.baked is not None}
