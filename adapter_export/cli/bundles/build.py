"""`adapter-export build`: a base and its adapters become one bundle."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import adapter_export as ae
from adapter_export.cli.options import Json, SiteMapFile, TrustPickle, command
from adapter_export.option import Option

if TYPE_CHECKING:
    from adapter_export.format.manifest import Manifest

_WEIGHTS_WORDS = {"base.bin": "the base's weights", "bank.bin": "the adapters of the bank"}


@command(
    "adapter-export build model.pt --adapters trec,sentiment -o bundle",
    "adapter-export build huggingface-folder --adapters adapters/trec -o bundle",
    "adapter-export build model.onnx --adapters a --tokenizer tokenizer.json --max-tokens 512 -o bundle",
    "adapter-export build model.pt --adapters trec --base-precision int8-weights --int8-embeddings -o bundle",
    "adapter-export build model.pt --adapters old=runs/1/trec,new=runs/2/trec -o bundle --force",
    like=ae.build,
    sections={
        "base": (
            *(
                "without_base_head",
                "allow_base_mismatch",
                "base_precision",
                "adapter_precision",
                "int8_embeddings",
                "float32_activations",
                "optimize",
            ),
            *("site_map", "trust_pickle"),
        ),
        "texts": ("tokenizer", "max_tokens"),
        "graphs": ("variants", "bake", "reserve", "checksums", "copy_weights"),
    },
)
def build(
    model: Path,
    *,
    adapters: Annotated[
        str | None,
        Option(
            "Adapter folders, or names looked up in the current folder, beside the model and in `./adapters`. "
            "`NAME=FOLDER` renames one. Not needed for a base with a base head.",
            "A,B,…",
        ),
    ] = None,
    output: Annotated[Path, Option("The bundle to write.", "PATH", "-o")],
    site_map: SiteMapFile = None,
    trust_pickle: TrustPickle = False,
    as_json: Json = False,
    **options: Any,
) -> None:
    """Export MODEL and its adapters as one bundle.

    MODEL is a torch archive, a Hugging Face folder, an ONNX file or an onnxruntime-genai folder; the bundle of such a
    folder is one as well. The base head of a captured classifier or sentence encoder becomes the adapter `base-head`.
    The bundle holds one ONNX graph with slots, the base's weights once, a small file per adapter, golden vectors
    computed by the reference, and a manifest. It is compared with its golden vectors before it is put in its place; if
    anything fails, nothing is left behind.
    """
    from adapter_export.cli.bases import listed, opened
    from adapter_export.cli.output import emit_json
    from adapter_export.cli.reporter import TerminalReporter

    with TerminalReporter("build") as reporter:
        reporter.step(f"opening {model}")
        base = opened(model, site_map, trust_pickle)
        bundle = ae.build(
            base,
            [] if adapters is None else listed(adapters),
            output,
            reporter=reporter,
            **options,
        )
    if as_json:
        emit_json({"bundle": str(output), "manifest": asdict(bundle.manifest)})
    else:
        _report(bundle.manifest, model, output)


def _report(manifest: Manifest, model: Path, output: Path) -> None:
    from adapter_export.bundle.variants import VARIANTS
    from adapter_export.cli.output import say, show, size
    from adapter_export.tables import Table

    sizes = {file.path: file.bytes for file in manifest.files}
    what = {file: f"the graph: {one.summary}" for one in VARIANTS.values() for file in one.files(manifest)}
    what |= {
        each.onnx_adapter: f"`{each.name}`, {each.kind}, {each.parameters:,} parameters" for each in manifest.adapters
    }
    what |= {path: _WEIGHTS_WORDS.get(path, "") for path in sizes if path.endswith(".bin")}
    rows = [(path, words, size(sizes[path])) for path, words in what.items()]
    rest = sum(sizes.values()) - sum(sizes[path] for path in what)
    rows.append(("…", "golden vectors, the same tensors for other programs, the adapters as given", size(rest)))
    show(Table(("file", "what", "size"), rows, f"{output}  {size(sum(sizes.values()))}", numbers="llr"))
    say(f"Next: adapter-export check {output} --against {model}")
