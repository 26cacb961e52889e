"""Bundles: build one from a base and its adapters, add adapters and remove them, open it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from adapter_export.api.adapters.adapters import adapters_of
from adapter_export.api.bundles.prepared_base import golden_cases, model_of, origin_of, prepared, same_precision
from adapter_export.api.models.base import Base, PathLike, open_base, require
from adapter_export.errors import AdapterError, UsageError, argument
from adapter_export.format.precision import PRECISION_NAMES, Precision, PrecisionName
from adapter_export.option import Option
from adapter_export.reporting import SILENT, Reporter
from adapter_export.safe_io.output import Output

if TYPE_CHECKING:
    from adapter_export.api.adapters.adapters import Adapters
    from adapter_export.dtypes import AdapterPrecision
    from adapter_export.format.manifest import VariantName
    from adapter_export.graph.adapter import Adapter
    from adapter_export.onnx_backend.slots import Reserved
    from adapter_export.runtime import Bundle
    from adapter_export.sites.site import SiteMap

ADAPTER_PRECISIONS: tuple[AdapterPrecision, ...] = ("float32", "float16", "int8")

AdapterPrecisionOption = Annotated[
    "AdapterPrecision",
    Option(
        "How the files of adapters store them. In fewer bits they are rounded once, and computed with in float32.",
        choices=ADAPTER_PRECISIONS,
    ),
]
AllowBaseMismatch = Annotated[bool, "Take adapters that were trained on other weights of the base."]


def open_bundle(bundle: Bundle | PathLike, *, verify: bool = True) -> Bundle:
    """Open a bundle and compare every file with its hash.

    Args:
        bundle: its folder.
        verify: without it, damage goes unseen: most damaged weights run.

    Raises:
        FileError: a file is missing, or a link leads out of the folder.
        FormatError: the manifest breaks the format, or a file is damaged; `HashError` and `VersionError` are kinds of
            it.
    """
    from adapter_export.runtime import Bundle

    return bundle if isinstance(bundle, Bundle) else Bundle.open(bundle, verify=verify)


def folder_of(bundle: Bundle | PathLike) -> Path:
    """Return where a bundle lies."""
    return Path(bundle) if isinstance(bundle, str | Path) else bundle.folder


def build(
    base: Base | PathLike,
    adapters: Adapters,
    output: PathLike,
    *,
    without_base_head: Annotated[bool, "Leave out the base head, which is built as one more adapter."] = False,
    tokenizer: Annotated[
        PathLike | None, Option("A `tokenizer.json`, or a folder with one. Default: that of the model.", "PATH")
    ] = None,
    max_tokens: Annotated[
        int | None, Option("Maximum tokens of a text. Default: as many as the model takes.", least=1)
    ] = None,
    allow_base_mismatch: AllowBaseMismatch = False,
    base_precision: Annotated[
        PrecisionName,
        Option(
            "How the base computes: floats, integers (`int8`), or floats with weights of 8 or 4 bits. Adapters and "
            "heads stay in float32.",
            choices=PRECISION_NAMES,
        ),
    ] = "fp32",
    adapter_precision: AdapterPrecisionOption = "float32",
    int8_embeddings: Annotated[bool, "Keep embeddings in 8 bits beside weights of 8 or 4 bits."] = False,
    float32_activations: Annotated[
        bool, "Take activations in float32 beside weights of 8 or 4 bits, not in 8 bits: more exact, and slower."
    ] = False,
    optimize: Annotated[bool, "Fuse attention and activations before the slots go in."] = False,
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
        Option("Also write a graph in which this adapter is constant, for a device with no other. Repeatable.", "NAME"),
    ] = (),
    reserve: Annotated[
        tuple[str, ...],
        Option(
            "Slots for adapters that will be added: kinds, such as `lora`, `houlsby:relu` for another activation, "
            "`all` for every kind with its own, and `head:mean` or `head:first` for classifiers. Idle slots take time.",
            "A,B,…",
        ),
    ] = (),
    checksums: Annotated[
        bool,
        "Add an output with a checksum of each slot's tensor, by which golden vectors show whether a client feeds the "
        "right tensors. It adds compute to each call.",
    ] = False,
    copy_weights: Annotated[
        bool,
        "Copy the base's weights into the bundle. By default they are hard-linked (no extra disk or time), so that "
        "editing either file in place changes both.",
    ] = False,
    force: Annotated[bool, "Replace what is at the output's place."] = False,
    reporter: Reporter = SILENT,
) -> Bundle:
    """Export a base and its adapters as one bundle, and prove it before it is put in its place.

    Args:
        base: the base, or where it is.
        adapters: adapters, their folders, or names looked up in the current folder, beside the base and in
            `./adapters`. The keys of a mapping rename them. There may be none for a base with a base head.
        output: the folder to make; if anything fails, nothing is left behind.
        reporter: receives each step, and notes such as why there is no bank.

    Raises:
        UsageError: arguments do not go together.
        AdapterError: an adapter does not fit; `BaseMismatchError` is a kind of it.
        BaseModelError: the base cannot be exported.
        ParityError: the exported graph does not compute what the reference computes.
        OutputExistsError, WriteError: the bundle cannot be written.
    """
    from adapter_export.bundle.build_plan import BuildPlan, GraphOptions, ModelFacts
    from adapter_export.bundle.variants import VARIANTS
    from adapter_export.bundle.write import check_bases
    from adapter_export.runtime import Bundle

    out = Output(Path(output), force)
    precision = Precision.of(base_precision, int8_embeddings=int8_embeddings, float32_activations=float32_activations)
    if optimize:
        require("onnxscript", "torch", argument("optimize", True))
    out.ensure_writable(folder=True, sources=[base, adapters, tokenizer])
    opened = open_base(base)
    chosen = adapters_of(adapters, opened)
    own = None if without_base_head else opened.base_head
    if own is not None:
        _check_apart(own, chosen)
        chosen = (*chosen, own)
    check_bases(chosen, opened.fingerprint, allow_mismatch=allow_base_mismatch)  # the export takes long
    if max_tokens is None:
        opened = opened.with_probed_lengths(reporter)
    known = opened.max_tokens
    longest = max_tokens or known
    if longest is not None and known is not None and longest > known:
        where, most = argument("max_tokens"), f"at most {known}"
        raise UsageError("more tokens than the base takes", where=where, found=longest, expected=most)
    text, wanted = _tokenizer(opened, tokenizer, longest), _variants(variants, opened)
    preparing = prepared(opened, precision, optimize, allow_base_mismatch, reporter)
    with preparing as (graph, references):
        plan = BuildPlan(
            graph,
            chosen,
            references,
            golden_cases(graph, longest, references),
            GraphOptions(wanted, bake, reserved_by(reserve, graph.sites), checksums, copy_weights),
            ModelFacts(
                base_head=own.name if own and own.head and own.head.task else None,  # without a task it answers nothing
                tokenizer=text,
                max_tokens=longest,
                texts=opened.texts,
                media=opened.media,
                companions=opened.companions(VARIANTS["slots"].file),
                origin=origin_of(opened, base_precision, optimized=optimize),
            ),
            precisions={one.name: adapter_precision for one in chosen if one is not own},
            allow_base_mismatch=allow_base_mismatch,
        )
        manifest = plan.run(out, reporter)
    return Bundle(out.path, manifest, verified=True)


def reserved_by(names: Sequence[str], sites: SiteMap) -> list[Reserved]:
    """Return the graphs that names such as `houlsby:relu` and `head:first` reserve."""
    from adapter_export.graph.adapter import HEAD
    from adapter_export.graph.heads import classification_head
    from adapter_export.graph.kinds import KINDS, kind_named
    from adapter_export.onnx_backend.slots import Reserved, reserved_kinds

    kinds, heads = [], []
    for name in dict.fromkeys(one for given in names for one in (KINDS if given == "all" else (given,))):
        kind, _, choice = name.partition(":")
        if kind == HEAD:
            heads.append(Reserved(HEAD, HEAD, classification_head(choice or "mean")))
        else:
            kinds.append(kind_named(kind).changed(**({"activation": choice} if choice else {})))
    return [*reserved_kinds(kinds, sites), *heads]


def _check_apart(own: Adapter, others: Sequence[Adapter]) -> None:
    """Refuse an adapter that has the name of the base head."""
    if own.name in [adapter.name.casefold() for adapter in others]:
        rename = argument("adapters", {"other": own.name}, words=f"other={own.name}")
        raise AdapterError(
            "an adapter has the name of the base head",
            where=argument("adapters"),
            found=f"`{own.name}`",
            fix=f"rename it: {rename}; or leave the base's out with {argument('without_base_head', True)}",
        )


def _tokenizer(base: Base, given: PathLike | None, max_tokens: int | None) -> str | None:
    from adapter_export.text import Tokenizer, read_tokenizer

    text = base.tokenizer if given is None else read_tokenizer(Path(given))
    if text is None:
        return None
    if max_tokens is None:
        raise UsageError(
            "the base does not say how many tokens it takes",
            expected=f"{argument('max_tokens', words='N')} beside a tokenizer",
            fix="give the number of positions that the base was trained with",
        )
    require("tokenizers", "text", "a bundle with a tokenizer")
    Tokenizer.from_json(text, max_tokens)
    return text


def _variants(given: Sequence[str] | None, base: Base) -> Sequence[VariantName] | None:
    """Return the chosen variants, or those that the form of the base has by default."""
    from adapter_export.bundle.variants import VARIANTS
    from adapter_export.format.manifest import GRAPH_VARIANTS

    if given is None:
        return base.default_variants
    names = set(GRAPH_VARIANTS) if tuple(given) == ("all",) else set(given)
    unknown = ", ".join(sorted(names - set(GRAPH_VARIANTS)))
    if unknown:
        expected = f"`all`, or some of {', '.join(GRAPH_VARIANTS)}"
        raise UsageError("unknown variants", where=argument("variants"), found=unknown, expected=expected)
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


def add(
    bundle: Bundle | PathLike,
    adapters: Adapters,
    *,
    against: Base | PathLike,
    allow_base_mismatch: AllowBaseMismatch = False,
    adapter_precision: AdapterPrecisionOption = "float32",
    reporter: Reporter = SILENT,
) -> Bundle:
    """Add adapters to a bundle without a new export; if anything fails, it is as it was.

    Args:
        bundle: the bundle, or its folder.
        adapters: as in `build`; what they compute must be what an adapter computes that the bundle was built with.
        against: the model that the bundle was built from. It computes the golden vectors of the new adapters, which the
            bundle itself must not do.
        allow_base_mismatch: take adapters that were trained on other weights of the base.
        reporter: receives each step, and notes of adapters that change nothing and of a signature that is gone.

    Raises:
        AdapterError: a name is taken, or the graph has no slots for an adapter.
        BaseModelError: the model is another one.
        ParityError: the bundle with the new adapters does not compute what the reference computes.
        InputError, WriteError: the bundle cannot be read or changed; `BusyError` if another process changes it.
    """
    from adapter_export.bundle.change import add_adapters
    from adapter_export.bundle.opened import OpenedBundle
    from adapter_export.runtime import Bundle
    from adapter_export.safe_io.output import locked

    opened = OpenedBundle.open(folder_of(bundle), copy=False)
    base = model_of(opened.manifest, against)
    chosen, slots = adapters_of(adapters, base), opened.numerics.precision
    matching = same_precision(base, slots)
    with locked(opened.folder.resolve()), matching as (references, _):
        after = add_adapters(
            opened,
            chosen,
            references=references,
            site_map=None if base.given is None else base.given.digest,
            allow_base_mismatch=allow_base_mismatch,
            precision=adapter_precision,
            reporter=reporter,
        )
    return Bundle(opened.folder, after, verified=True)


def remove(
    bundle: Bundle | PathLike,
    adapters: Sequence[str],
    *,
    reporter: Reporter = SILENT,
) -> Bundle:
    """Remove adapters from a bundle: their files, golden vectors, rows of the bank and baked graphs.

    The slots stay, so that adapters that compute the same can be added later. If anything fails, the bundle is as it
    was.

    Raises:
        AdapterError: there is no adapter of a name, or none would be left.
        InputError, WriteError, ParityError: as `add`.
    """
    from adapter_export.bundle.change import remove_adapters
    from adapter_export.runtime import Bundle

    folder = folder_of(bundle)
    after = remove_adapters(folder, adapters, reporter=reporter)
    return Bundle(folder, after, verified=True)
