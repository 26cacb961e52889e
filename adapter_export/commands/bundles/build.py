"""Export a model and its adapters as one bundle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from adapter_export.address import Address, PathLike, locate
from adapter_export.bases.adapters import adapters_of
from adapter_export.bases.base import Base, OpenOptions
from adapter_export.bases.opening import base_for, unopened
from adapter_export.bases.prepared_base import golden_cases, open_prepared_base, origin_of
from adapter_export.bundle.open_bundle import AdapterPrecisionOption, AllowBaseMismatch
from adapter_export.commands.command import Command, Screen, next_line
from adapter_export.errors import AdapterError, UsageError
from adapter_export.extras import require
from adapter_export.format.precision import PRECISION_NAMES, Precision, PrecisionName
from adapter_export.option import SITE_MAP, TOKENIZER, TRUST_PICKLE, Force, Option
from adapter_export.reporting import SILENT, Reporter
from adapter_export.safe_io.output import Output
from adapter_export.tables import Table, number_of, size
from adapter_export.words import argument

if TYPE_CHECKING:
    from adapter_export.format.generation import CapturedChat
    from adapter_export.format.manifest import VariantName
    from adapter_export.graph.adapter import Adapter
    from adapter_export.graph.graph import AdapterGraph
    from adapter_export.graph.kinds import Kind
    from adapter_export.onnx_backend.slots import Reserved
    from adapter_export.runtime import Bundle
    from adapter_export.sites.site import SiteMap


_WEIGHTS_WORDS = {"base.bin": "the base's weights", "bank.bin": "the adapters of the bank"}


def build(
    base: Annotated[Base | Address, Option(metavar="MODEL")],
    adapters: Annotated[
        Sequence[Adapter | Address] | Mapping[str, Adapter | Address],
        Option(
            "Adapter folders, or names to look up in the current folder, next to the model and in `./adapters`. "
            "`NAME=FOLDER` renames one. Not needed for a model with a base head.",
            "A,B,…",
            "--adapters",
            commas=True,
            required=False,
        ),
    ],
    output: Annotated[PathLike, Option("Bundle folder to write.", "PATH", "-o")],
    *,
    without_base_head: Annotated[bool, "Omit the base head, which is otherwise built as an adapter."] = False,
    tokenizer: Annotated[Address | None, TOKENIZER] = None,
    chat_template: Annotated[
        Address | None,
        Option("A chat template in jinja2, or a tokenizer's folder with one. Default: the model's.", "PATH"),
    ] = None,
    max_tokens: Annotated[int | None, Option("Maximum tokens per text. Default: the model's maximum.", least=1)] = None,
    allow_base_mismatch: AllowBaseMismatch = False,
    base_precision: Annotated[
        PrecisionName,
        Option(
            "Arithmetic of the base: floats, integers (`int8`), or floats with weights of 8 or 4 bits. Adapters and "
            "heads stay in float32.",
            choices=PRECISION_NAMES,
        ),
    ] = "fp32",
    adapter_precision: AdapterPrecisionOption = "float32",
    int8_embeddings: Annotated[bool, "Store embeddings in 8 bits (with weights of 8 or 4 bits)."] = False,
    float32_activations: Annotated[
        bool, "Compute activations in float32 instead of 8 bits (with weights of 8 or 4 bits): more exact, but slower."
    ] = False,
    optimize: Annotated[bool, "Fuse attention and activations before slots are inserted."] = False,
    variants: Annotated[
        tuple[str, ...] | None,
        Option(
            "Graph variants to write: slots, inputs, bank, fanout, or `all`. Default: the first three, without bank "
            "where the model cannot have one. `slots` is always written; `fanout` needs `bank`.",
            "A,B,…",
        ),
    ] = None,
    bake: Annotated[
        Sequence[str],
        Option("Also write a graph with this adapter as constants, for single-adapter devices. Repeatable.", "NAME"),
    ] = (),
    reserve: Annotated[
        tuple[str, ...],
        Option(
            "Slots for adapters that will be added: kinds, such as `lora`, `houlsby:relu` for another activation, "
            "`all` for every kind with its own, and `head:mean` or `head:first` for classifiers. Every reserved slot "
            "adds compute to each call.",
            "A,B,…",
        ),
    ] = (),
    checksums: Annotated[
        bool,
        "Add an output with a checksum of each slot's tensor, so that golden vectors reveal a client that feeds "
        "other tensors. It adds compute to each call.",
    ] = False,
    copy_weights: Annotated[
        bool,
        "Copy the base's weights into the bundle. By default they are hard-linked (no extra disk or time), so that "
        "editing either file in place changes both.",
    ] = False,
    site_map: Annotated[PathLike | None, SITE_MAP] = None,
    trust_pickle: Annotated[bool, TRUST_PICKLE] = False,
    force: Force = False,
    reporter: Reporter = SILENT,
) -> Bundle:
    """Export MODEL and its adapters as one verified bundle.

    MODEL is a torch archive, a Hugging Face folder, an ONNX file or an onnxruntime-genai folder; a bundle of the
    latter is an onnxruntime-genai folder, too. The base head of a captured classifier or sentence encoder becomes the
    adapter `base-head`. The bundle contains one ONNX graph with slots, the base's weights once, a small file per
    adapter, golden vectors computed by the reference, and a manifest. It is verified before it gets its name; if
    anything fails, nothing is left behind.

    Args:
        base: the base, or its path or Hub id.
        adapters: adapters, their folders, or names to look up in the current folder, next to the base and in
            `./adapters`. The keys of a mapping rename them. Optional for a base with a base head.
        output: the folder to write.
        site_map: the sites of the base.
        trust_pickle: load the base even if it could run code.
        force: replace an existing bundle.
        reporter: receives each step, and notes such as the reason for a missing bank.

    Raises:
        UsageError: arguments exclude each other.
        AdapterError: an adapter does not fit; its subclass `BaseMismatchError`: it belongs to another base.
        BaseModelError: the base cannot be exported.
        ParityError: the results of the exported graph differ from the reference.
        OutputExistsError, WriteError: the bundle cannot be written.
    """
    out = Output(Path(output), force)
    precision = Precision.of(base_precision, int8_embeddings=int8_embeddings, float32_activations=float32_activations)
    if optimize:
        require("onnxscript", "torch", argument("optimize", True))
    out.ensure_writable(folder=True, sources=[base, adapters, tokenizer, chat_template])
    options = OpenOptions(site_map, trust_pickle)
    chosen = adapters_of(adapters, unopened(base, options))
    _kinds_and_heads(reserve)
    _check_variants(variants)
    from adapter_export.bundle.build_plan import BuildPlan, GraphOptions, ModelFacts
    from adapter_export.bundle.variants import VARIANTS
    from adapter_export.bundle.write import check_bases
    from adapter_export.runtime import Bundle

    reporter.step(f"opening {base}" if isinstance(base, str | Path) else "opening the base")
    opened = base_for(base, options, reporter)
    base_head = None if without_base_head else opened.base_head
    if base_head is not None:
        _check_apart(base_head, chosen)
        chosen = (*chosen, base_head)
    check_bases(chosen, opened.fingerprint, allow_mismatch=allow_base_mismatch)  # before the export, which takes long
    if max_tokens is None:
        opened = opened.with_probed_lengths(reporter)
    longest = _longest_text(opened.max_tokens, max_tokens, chosen)
    text, wanted = _tokenizer(opened, tokenizer, longest), _variants(variants, opened)
    chat = _chat(opened, chat_template, text, longest)
    preparing = open_prepared_base(opened, precision, optimize, allow_base_mismatch, reporter)
    with preparing as (graph, references):
        plan = BuildPlan(
            graph,
            chosen,
            references,
            golden_cases(graph, longest, references),
            GraphOptions(wanted, bake, reserved_by(reserve, graph.sites), checksums, copy_weights),
            ModelFacts(
                base_head=base_head.name
                if base_head and base_head.head and base_head.head.task
                else None,  # an adapter without a task cannot answer
                tokenizer=text,
                max_tokens=longest,
                texts=opened.texts,
                media=opened.media,
                companions=opened.companions(VARIANTS["slots"].file),
                generation=opened.generation,
                chat=chat,
                origin=origin_of(opened, base_precision, optimized=optimize),
            ),
            precisions={adapter.name: adapter_precision for adapter in chosen if adapter is not base_head},
            allow_base_mismatch=allow_base_mismatch,
        )
        manifest = plan.run(out, reporter)
    return Bundle(out.path, manifest, verified=True)


def _longest_text(known: int | None, requested: int | None, adapters: Sequence[Adapter]) -> int | None:
    """Return the maximum tokens of a text; the longest prefix takes some of those that the base has positions for."""
    from adapter_export.onnx_backend.slots import longest_prefix

    prefix = longest_prefix(adapters)
    most = None if known is None else known - prefix
    if most is not None and (requested or 1) > most:
        what = "exceeds the base's maximum length"
        what += f", of which {number_of(prefix, 'token')} belong to a prefix" if prefix else ""
        raise UsageError(what, where=argument("max_tokens"), found=requested or 1, expected=f"at most {most}")
    return requested or most


def reserved_by(names: Sequence[str], sites: SiteMap) -> list[Reserved]:
    """Return the adapter graphs reserved by names such as `houlsby:relu` and `head:first`."""
    from adapter_export.graph.adapter import HEAD
    from adapter_export.onnx_backend.slots import Reserved, reserved_kinds

    kinds, heads = _kinds_and_heads(names)
    return [*reserved_kinds(kinds, sites), *(Reserved(HEAD, HEAD, head) for head in heads)]


def _kinds_and_heads(names: Sequence[str]) -> tuple[list[Kind], list[AdapterGraph]]:
    """Resolve names to kinds and heads; raise `UsageError` for an unknown name."""
    from adapter_export.graph.adapter import HEAD
    from adapter_export.graph.heads import classification_head
    from adapter_export.graph.kinds import KINDS, kind_named

    kinds, heads = [], []
    for name in dict.fromkeys(
        expanded for requested in names for expanded in (KINDS if requested == "all" else (requested,))
    ):
        kind, _, choice = name.partition(":")
        if kind == HEAD:
            heads.append(classification_head(choice or "mean"))
        else:
            kinds.append(kind_named(kind).changed(**({"activation": choice} if choice else {})))
    return kinds, heads


def _check_apart(base_head: Adapter, others: Sequence[Adapter]) -> None:
    """Refuse an adapter named like the base head."""
    if base_head.name in [adapter.name.casefold() for adapter in others]:
        rename = argument("adapters", {"other": base_head.name}, words=f"other={base_head.name}")
        raise AdapterError(
            "an adapter has the base head's name",
            where=argument("adapters"),
            found=f"`{base_head.name}`",
            fix="rename it: " + rename + "; or omit the base head with " + argument("without_base_head", True),
        )


def _tokenizer(base: Base, address: Address | None, max_tokens: int | None) -> str | None:
    from adapter_export.text import Tokenizer, read_tokenizer

    text = base.tokenizer if address is None else read_tokenizer(locate(address, "tokenizer").path)
    if text is None:
        return None
    if max_tokens is None:
        raise UsageError(
            "the base has no recorded maximum length",
            expected=argument("max_tokens", words="N") + " beside a tokenizer",
            fix="give the number of positions the base was trained with",
        )
    require("tokenizers", "text", "a bundle with a tokenizer")
    Tokenizer.from_json(text, max_tokens)
    return text


def _chat(base: Base, address: Address | None, tokenizer: str | None, max_tokens: int | None) -> CapturedChat | None:
    """Return the chat templates of the base, or those of an address."""
    if address is None:
        return None if tokenizer is None else base.chat
    from adapter_export.bases.chat_files import captured_templates, file_templates

    if not any(record.role == "cache" for record in base.inputs):
        raise UsageError(
            "the base does not generate text, and has no use for a chat template", where=argument("chat_template")
        )
    templates = file_templates(locate(address, "tokenizer").path, base.tokenizer_config)
    return captured_templates(templates, tokenizer, max_tokens)


def _check_variants(requested: Sequence[str] | None) -> set[str]:
    """Check variant names; raise `UsageError` for an unknown one."""
    from adapter_export.format.manifest import GRAPH_VARIANTS

    names = set[str](GRAPH_VARIANTS if requested is not None and tuple(requested) == ("all",) else requested or ())
    unknown = ", ".join(sorted(names - set(GRAPH_VARIANTS)))
    if unknown:
        expected = f"`all`, or some of {', '.join(GRAPH_VARIANTS)}"
        raise UsageError("unknown variants", where=argument("variants"), found=unknown, expected=expected)
    return names


def _variants(names_given: Sequence[str] | None, base: Base) -> Sequence[VariantName] | None:
    """Return the chosen variants, or the defaults for this form of base."""
    from adapter_export.bundle.variants import VARIANTS

    if names_given is None:
        return base.default_variants
    names = _check_variants(names_given)
    chosen = [variant for variant in VARIANTS.values() if variant.name in names]
    for variant in chosen:
        if variant.needs not in (None, *names):
            raise UsageError(
                f"`{variant.name}` is made from `{variant.needs}`",
                where=argument("variants"),
                found=", ".join(sorted(names)),
                fix=f"add `{variant.needs}`",
            )
    return [variant.name for variant in chosen]


def _show(bundle: Bundle, screen: Screen) -> None:
    from adapter_export.bundle.variants import VARIANTS

    manifest = bundle.manifest
    sizes = {file.path: file.bytes for file in manifest.files}
    what = {file: f"the graph: {variant.summary}" for variant in VARIANTS.values() for file in variant.files(manifest)}
    what |= {
        each.onnx_adapter: f"`{each.name}`, {each.kind}, {number_of(each.parameters, 'parameter')}"
        for each in manifest.adapters
    }
    what |= {path: _WEIGHTS_WORDS.get(path, "") for path in sizes if path.endswith(".bin")}
    rows = [(path, words, size(sizes[path])) for path, words in what.items()]
    rest = sum(sizes.values()) - sum(sizes[path] for path in what)
    rows.append(("…", "golden vectors, adapter tensors as safetensors, source adapters", size(rest)))
    title = f"{bundle.folder}  {size(sum(sizes.values()))}"
    screen.show(Table(("file", "what", "size"), rows, title, numbers="llr"))
    base = screen.given["base"]
    screen.report(f"Next: {next_line('check', bundle.folder, '--against', base)}  # every claim, a minute or more")
    screen.report(f"  or: {next_line('verify', bundle.folder)}  # golden vectors, seconds")
    precision = screen.given.get("base_precision", "fp32")
    if precision != "fp32":
        adapters = [str(address).rpartition("=")[2] for address in screen.given.get("adapters", ())]
        compared = f"{' '.join(adapters)} --base {base}" if adapters else str(base)
        screen.report(f"On your own rows: adapter-export compare {compared} --precisions fp32,{precision} --data FILE")


def _document(bundle: Bundle, _: Screen) -> Mapping[str, object]:
    return {"bundle": str(bundle.folder), "manifest": asdict(bundle.manifest)}


COMMAND = Command(
    build,
    _show,
    document=_document,
    examples=(
        "adapter-export build model.pt --adapters trec,sentiment -o bundle",
        "adapter-export build huggingface-folder --adapters adapters/trec -o bundle",
        "adapter-export build model.onnx --adapters a --tokenizer tokenizer.json --max-tokens 512 -o bundle",
        "adapter-export build model.pt --adapters trec --base-precision int8-weights --int8-embeddings -o bundle",
        "adapter-export build model.pt --adapters old=runs/1/trec,new=runs/2/trec -o bundle --force",
    ),
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
        "texts": ("tokenizer", "chat_template", "max_tokens"),
        "graphs": ("variants", "bake", "reserve", "checksums", "copy_weights"),
    },
)
