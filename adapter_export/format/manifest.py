"""The bundle's manifest: what a client in any language needs to know, as data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal, get_args

from adapter_export.dtypes import AdapterPrecision
from adapter_export.format.generation import GenerationRecord
from adapter_export.format.lengths import Bounds, Fit, Lengths, axis_lengths
from adapter_export.format.media import MediaRecord
from adapter_export.format.precision import PrecisionName
from adapter_export.format.records import (
    SEMVER,
    Count,
    FileName,
    NotEmpty,
    NotNegative,
    OneOf,
    OrAbsent,
    Positive,
    RelativePath,
    Sha256,
)
from adapter_export.graph.tasks import HeadOutput, Task

VariantName = Literal["slots", "inputs", "bank", "fanout", "baked"]
"""A variant of the exported graph: one way in which it receives the tensors of adapters."""

VARIANT_NAMES: tuple[VariantName, ...] = get_args(VariantName)
"""Every variant, each after those that it is made of."""

BAKED: VariantName = "baked"
"""The variant of which each adapter has a graph of its own, named in its record."""

TENSORS_OF_ADAPTERS: Mapping[str, str] = {
    "slots": "optional inputs; their defaults are the base",
    "inputs": "required inputs",
    "bank": "rows of a table; each row of a batch names its own",
    "fanout": "those of `bank`; each row names its text, too",
    "baked": "constants",
}
"""The form of an adapter's tensors in each variant, for tables."""

GRAPH_VARIANTS = tuple(name for name in VARIANT_NAMES if name != BAKED)
"""The variants that `Manifest.graphs` may name."""

Axis = Positive | str
"""The length of an axis: a number, the name of a dynamic axis such as `batch`, or a sum such as `past + sequence`."""

Names = Annotated[tuple[str, ...], NotEmpty()]


@dataclass(frozen=True)
class InputRecord:
    """One data input of the graph.

    Attributes:
        name: its name in the graph.
        dtype: its element type by NumPy's name, such as `int64`.
        axes: its shape: for each axis its length, or a name where the length is free. Axes of one name have one length
            within a call. Names with ` + ` between them stand for the sum of their lengths.
        role: `ids` indexes an embedding; `mask` says which tokens are real (1) and which are padding (0); `cache` is
            what a decoder keeps of the tokens before: of length 0 along the axis of the past in the first call of a
            text, and the output `next` of the call before in every other; `values` is anything else.
        limit: for `ids`, the number of rows of that embedding: valid ids are 0 to limit - 1. Null where not known.
        next: for a `cache`, the output that it is in the next call. Null for all other inputs.
    """

    name: str
    dtype: str
    axes: tuple[Axis, ...]
    role: Literal["ids", "mask", "cache", "values"]
    limit: Positive | None = None
    next: str | None = None


def token_axis(inputs: Sequence[InputRecord]) -> Axis | None:
    """Return the axis of the tokens of a text: that of `input_ids`, or the only one that ids have; else none.

    Where there are no ids, vectors [batch, tokens, width] stand for them.
    """
    ids = {record.name: record.axes[1] for record in inputs if record.role == "ids" and len(record.axes) == 2}
    if not ids:
        shapes = (record.axes for record in inputs if record.role == "values" and len(record.axes) == 3)
        vectors = {tokens for _, tokens, width in shapes if isinstance(tokens, str) and isinstance(width, int)}
        return vectors.pop() if len(vectors) == 1 else None
    return ids.get("input_ids", next(iter(ids.values())) if len(set(ids.values())) == 1 else None)


def token_lengths(inputs: Sequence[InputRecord], lengths: Bounds) -> Lengths:
    """Return the number of tokens that a text may have; any number if the inputs have no such axis."""
    axis = token_axis(inputs)
    return Lengths() if axis is None else axis_lengths(axis, lengths)


@dataclass(frozen=True)
class OutputRecord:
    """One output of the graph.

    Attributes:
        name: its name in the graph.
        dtype: its element type by NumPy's name.
        axes: its shape, as that of an input.
    """

    name: str
    dtype: str
    axes: tuple[Axis, ...]


@dataclass(frozen=True)
class SiteRecord:
    """A place of the base at which an adapter can act.

    Attributes:
        name: canonical, such as `layers.3.attention` or `layers.3.attention.query`.
        role: what is there: `attention`, `cross_attention`, `ffn`, `linear` or `embeddings`.
        layer: the number of its layer, from 0; null for the embeddings.
        width: the width `d` of the tensor `h` there: at a sublayer that of the residual stream.
        path: the module path in the torch model; null if not known.
        tensor: the tensor of the ONNX graph that an adapter replaces.
    """

    name: str
    role: str
    layer: Count | None
    width: Positive
    path: str | None
    tensor: str


@dataclass(frozen=True)
class SlotRecord:
    """A tensor of the graph that an adapter fills: an overridable initializer, float32.

    Attributes:
        name: its name in the graph, under which it is fed.
        site: the site it belongs to, `head`, or `shared` for what several sites have in common.
        graph: the name of the adapter graph that it belongs to.
        parameter: its name in that graph.
        axes: its shape. A name, such as `b`, is a width that each adapter chooses; within one adapter, one site and one
            graph, one name has one length.
        neutral: the shape of its default, which leaves the base as it is. It may be shorter than `axes` where these are
            numbers: a tensor has either shape, the shorter one only if it is the default.
        neutral_value: the number of which the default is full.
    """

    name: str
    site: str
    graph: str
    parameter: str
    axes: tuple[Axis, ...]
    neutral: tuple[Positive, ...]
    neutral_value: float = 0.0

    @property
    def graph_axes(self) -> tuple[Axis, ...]:
        """Its axes as the graph has them: one of two lengths is free there."""
        free = f"{self.parameter}.width"
        both = zip(self.axes, self.neutral, strict=True)
        return tuple(axis if isinstance(axis, str) or axis == idle else free for axis, idle in both)


@dataclass(frozen=True)
class BankTensor:
    """A tensor of a bank.

    Attributes:
        name: its name in the graph `bank`.
        slot: the slot whose tensors it holds, one adapter after the other, narrower ones filled up with zeros. Null for
            a mask, which is added to an output: 0 for the classes that an adapter has, a number below -1e30 for those
            that it lacks.
        axes: `adapters`, then the axes of the slot.
    """

    name: str
    slot: str | None
    axes: tuple[Axis, ...]


@dataclass(frozen=True)
class BankRecord:
    """All adapters in one graph, for batches whose rows run through different ones.

    Its tensors are overridable initializers: where the binding can feed them, any number of adapters of any widths may
    be fed at run time.

    Attributes:
        ids: the input of the graph `bank`, int64 [batch]: for each row of the batch, a position in `rows`. Others are
            an error; a client never passes on a number from outside.
        rows: the adapter in each row of the bank; null is the base, and the first.
        fillable: whether zeros behind the tensors of any adapter change nothing, so that a bank that is fed at run time
            may hold adapters of different widths. `build` has tried it out.
        tensors: the tensors of the bank.
    """

    ids: str
    rows: Annotated[tuple[str | None, ...], NotEmpty()]
    fillable: bool
    tensors: tuple[BankTensor, ...]


@dataclass(frozen=True)
class FanoutRecord:
    """The bank cut in two below its first adapter, so that a text is computed once up to there, for all adapters.

    Attributes:
        prefix: an ONNX file: from the data inputs of any number of texts to `values`. No adapter has a part in it, so
            that a client may keep what it gives for a text for as long as it likes.
        rows: the input of the graph `fanout`, int64 [rows]: for each row of its outputs, the row of its data inputs and
            of `values` that it continues. `bank.ids`, int64 [rows] there, is the adapter that it runs through.
        values: what `prefix` gives and `fanout` takes beside the data inputs. One axis of each has the name that the
            first axis of the data inputs has: that of the texts.
    """

    prefix: RelativePath
    rows: str
    values: Annotated[tuple[OutputRecord, ...], NotEmpty()]


@dataclass(frozen=True)
class PartRecord:
    """One fault in applying an adapter, and how an output shows it where the budget of single elements is too wide.

    Its value is `factor` times the sum of weight times (found - expected): 0 in a right program, near 1 with the fault.

    Attributes:
        fault: what is wrong then, such as `layers.5.ffn off`.
        output: the output that shows it best.
        factor: makes the value 1 for the fault, as ONNX Runtime computed it when the bundle was built.
        limit: the largest absolute value that passes.
    """

    fault: str
    output: str
    factor: float
    limit: NotNegative


@dataclass(frozen=True)
class PartsRecord:
    """Golden parts of an adapter: inputs that show faults which its golden vectors do not.

    Attributes:
        path: a safetensors file with tensors `<case>.input.<input>`, `<case>.output.<output>` for the outputs of
            `parts`, and `<case>.part.<number>`, int8 weights in the shape of the output of that part, counted from 0.
            A case without weights of a part does not count for it.
        cases: the names of the cases.
        parts: the faults.
    """

    path: RelativePath
    cases: Names
    parts: Annotated[tuple[PartRecord, ...], NotEmpty()]


@dataclass(frozen=True)
class NearestRecord:
    """The adapter of the bundle whose outputs are nearest to those of another.

    Attributes:
        adapter: its name.
        separation: how clearly golden data of the other adapter show it in its place.
    """

    adapter: str
    separation: NotNegative


@dataclass(frozen=True)
class SeparationRecord:
    """The separation of golden data: how clearly they show an adapter that is applied in part, or another in its place.

    The separation of a fault is its largest deviation over the allowed one, or its value over the limit of its golden
    part, whichever is larger. Below 1 the fault goes unnoticed. `build` tries each site and each layer with neutral
    tensors, and no adapter at all. No separation is more than 1e6.

    Attributes:
        least: the smallest separation.
        fault: the fault that has it, such as `layers.5.ffn off`.
        outputs: by output: the smallest separation by this output alone, of all faults but a missing head.
        weak: the faults whose separation is below 2, the weakest first.
        nearest: the adapter that golden data show least in its place. Null where no other adapter has other tensors.
    """

    least: NotNegative
    fault: str
    outputs: Mapping[str, NotNegative]
    weak: tuple[str, ...] = ()
    nearest: NearestRecord | None = None


@dataclass(frozen=True)
class RecordedRuns:
    """Runs of ONNX Runtime itself when the bundle was built, to be compared bit for bit.

    The digests are in `recorded` of golden vectors. They hold where the version and the provider are these, and the
    digest of the base in the same graph is the recorded one: it is the witness that the processor and the build of the
    runtime round alike. Elsewhere they say nothing.

    Attributes:
        runtime: the version of ONNX Runtime.
        provider: its execution provider.
        processor: the instruction set that the runs were made on, such as `x86_64`.
        features: the extensions of the instruction set that the processor has.
        cases: the golden cases that were recorded: those that give the same bits with any number of threads.
    """

    runtime: str
    provider: str
    processor: str
    features: tuple[str, ...]
    cases: Names


@dataclass(frozen=True)
class WrittenRecord:
    """A text that a reference writes, by the likeliest token at each step.

    Attributes:
        prompt: the tokens that it reads.
        tokens: those that it writes, up to the one that ends the text, or to the first whose logit is so near to
            another one that rounding could decide; at most 12.
    """

    prompt: Annotated[tuple[Count, ...], NotEmpty()]
    tokens: Annotated[tuple[Count, ...], NotEmpty()]


@dataclass(frozen=True)
class GoldenRecord:
    """Inputs and reference outputs by which any program can prove itself.

    Attributes:
        path: a safetensors file with tensors `<case>.input.<input>` and `<case>.output.<output>`.
        cases: the names of the cases.
        absolute: by output name: a case passes if every element of every output named here differs from the stored one
            by at most this.
        reference: what computed the outputs, such as `torch 2.13.0 float32`; never the exported graph.
        reasons: by output name: where the number in `absolute` comes from, a sentence for people.
        separation: how clearly these golden data and `parts` show faults of the adapter. Null for the base, for an
            adapter that fills no slot, and where it was not measured.
        parts: golden parts, where golden vectors alone do not show every fault. Null elsewhere.
        recorded: by graph (a variant, or `baked`): the sha256 of the outputs of ONNX Runtime in the cases of the
            manifest's `recorded`. It covers the little-endian bytes of all outputs in `absolute`, case by case, sorted
            by name within a case. In a graph whose rows choose adapters, all rows run through this one.
        written: texts that the reference writes with `generation` of the manifest. Empty without that.
    """

    path: RelativePath
    cases: Names
    absolute: Mapping[str, NotNegative]
    reference: str
    reasons: Mapping[str, str] = field(default_factory=dict)
    separation: SeparationRecord | None = None
    parts: PartsRecord | None = None
    recorded: Mapping[str, Sha256] = field(default_factory=dict)
    written: tuple[WrittenRecord, ...] = ()

    @property
    def files(self) -> tuple[str, ...]:
        """The files that hold these golden data."""
        return (self.path,) if self.parts is None else (self.path, self.parts.path)


@dataclass(frozen=True)
class MixRecord:
    """The weights that a request may give to a weighted fusion.

    The adapter adds the sum of weight times what each member adds. A request with weights of its own feeds one float32
    tensor, [1, members] for all rows of its batch or [batch, members] for each row its own, to every slot named here,
    instead of the adapter's tensors; all other slots get the adapter's tensors as always. Any finite numbers are
    allowed.

    Attributes:
        slots: the slots that get the weights: all of them, and the same.
        members: what each column weighs, by the name that the member had when it was fused. The bundle need not hold
            it.
    """

    slots: Names
    members: Names


@dataclass(frozen=True)
class AdapterRecord:
    """One adapter of the bundle.

    Attributes:
        name: what users call it.
        kind: the published kind of its graphs. For people.
        parameters: how many numbers it has, idle slots not counted.
        onnx_adapter: ONNX Runtime's own adapter file. It holds a tensor for every slot of the graph; idle ones have
            their neutral values, so that nothing of an adapter that was active before can stay behind.
        safetensors: the same tensors in a safetensors file.
        source: the folder with the adapter as it was given: adapter_graph.json and weights.safetensors.
        base: the fingerprint of the base that it was trained on; differs from the bundle's only where the build was
            told to allow it.
        golden: golden vectors of the base with this adapter.
        task: the type and labels of its answers, and how text becomes its inputs. Null without a head, or if it is
            unknown: a client then returns the result of the head as it is, and no answer.
        output: the output that holds the result of its head, while it is active. Null without a head.
        baked: the graph in which the adapter is constant: it has no slots, and its outputs are the adapter's. Null if
            there is none.
        mix: the weights that a request may give it. Null if it is no weighted fusion.
        precision: how its files store its tensors. They are float32 numbers, rounded once: a float16 is one of these,
            and an int8 is one times the factor for its place along the last axis, `<name>.scale`.
    """

    name: FileName
    kind: str
    parameters: Count
    onnx_adapter: RelativePath
    safetensors: RelativePath
    source: RelativePath
    base: str
    golden: GoldenRecord
    task: Task | None = None
    output: str | None = None
    baked: RelativePath | None = None
    mix: MixRecord | None = None
    precision: AdapterPrecision = "float32"


@dataclass(frozen=True)
class HeadRecord:
    """One topology of prediction head.

    Attributes:
        graph: its name, which slots of the site `head` give as their `graph`.
        output: the output of the graph that it fills.
        result: what that holds: logits or numbers [batch, classes], logits [batch, tokens, classes], or vectors
            [batch, width].
    """

    graph: str
    output: str
    result: HeadOutput


@dataclass(frozen=True)
class TextRecord:
    """The tokenizer that turns text into inputs.

    Attributes:
        tokenizer: a `tokenizer.json` of the Hugging Face tokenizers library.
        digest: the sha256 of what that file says of ids: its JSON without `truncation` and `padding`, with sorted keys.
            An adapter whose task names another digest was trained on other ids, and its texts are refused. Lengths that
            the tokenizer's file itself fixes are ignored: those of `lengths` hold.
    """

    tokenizer: RelativePath
    digest: Sha256


@dataclass(frozen=True)
class FileRecord:
    """A file of the bundle.

    Attributes:
        path: from the bundle's folder.
        sha256: of its bytes.
        bytes: its size.
    """

    path: RelativePath
    sha256: Sha256
    bytes: Count


@dataclass(frozen=True)
class Manifest:
    """A bundle: one ONNX graph of a base model whose adapters are filled in as small files.

    This is `manifest.json`. Paths are relative to the folder of this file. Specified in docs/reference/format.md.

    Attributes:
        version: the version of this format. A reader refuses another major version.
        producer: the tool and the version that wrote the bundle. For people.
        minimum_onnxruntime: the oldest ONNX Runtime that loads the graphs.
        opset: the version of the standard ONNX operators that the graphs use.
        base: the fingerprint of the base model's weights, as they were before the precision was changed. Adapters that
            were trained on another base do not fit.
        base_precision: how the graphs compute the base: in float32, in float16, with weights and activations of 8 bits,
            or with weights of 8 or 4 bits and float32 activations. Inputs, outputs, adapters and heads are float32 in
            any case.
        batch_invariant: whether a row's outputs do not depend on the other rows of its batch: not at all on what they
            say, and on their number by rounding alone. `build` has tried it out. False where activations are quantised
            by one scale for the whole batch: then rows of different users do not belong into one call.
        padding_neutral: whether tokens that a mask hides change nothing in the base, rounding aside, so that requests
            of different lengths may share a batch; false as well where nothing can be padded. `build` has tried it out.
        counts_padding: the graphs of adapters (`graph` of slots) in whose slots such tokens do change something, unless
            an adapter lies idle there.
        graphs: ONNX files by variant. In `slots`, every slot is an overridable initializer: it is fed like an input,
            and where it is not fed its neutral default is used. In `inputs`, every slot must be fed. In `bank`, each
            row of the batch runs through an adapter of its own, chosen by the input that `bank.ids` names. `fanout` is
            the upper part of `bank`, above what `fanout.prefix` computes.
        inputs: the data inputs of the graph, in the order of the base. All of them must be fed.
        lengths: by the name of a dynamic axis, or by a sum of names as `axes` has it: the lengths that it may have. An
            axis that is not here may have any. A reader refuses inputs of other lengths; of texts, longer ones are cut
            at the largest length, and rows of a length that is not here are padded to the next one that is, if the base
            takes a mask and `padding_neutral` holds, else refused.
        outputs: the outputs of the graph: those of the base, then those of the heads.
        sites: every sublayer of the base, and the other places that have slots, in the order of evaluation.
        slots: every tensor of the graph that an adapter fills.
        adapters: the adapters that were built in. Their names differ in more than upper and lower case.
        golden: golden vectors of the base alone.
        text: how text becomes inputs; null if that is not known.
        files: every file of the bundle but this one. Every path that stands elsewhere in this file is listed here.
        heads: every topology of prediction head. Those that share an output are added up in the graph; those of
            adapters that are not active give zeros there.
        model_version: the `model_version` of the graph and of every adapter file that was made for it: 31 bits of a
            digest over the base, the topology of the slots and the site map. A reader refuses an adapter file with
            another.
        bank: what the graph `bank` holds. Null without it.
        fanout: how the graph `fanout` is fed. Null without it.
        head: the adapter that is the base head and nothing else: it gives the base's answers. Null without one.
        golden_texts: texts, the ids that the tokenizer makes of them, and the answers of the adapters; null in a bundle
            without a tokenizer.
        golden_batches: requests of several rows with different lengths and adapters, and the reference's answer to each
            row alone. Null if an input is a cache or takes other numbers than integers, or if every answer is large.
        media: how images or audio become the input; null if the base reads none, or that is not known.
        derivation: the origin of each constant in the graph with slots, as tensors of the model; null in a bundle of
            an older release.
        recorded: where the runs were made whose digests golden vectors have. Null where none were made.
        checksums: the output, float32 [batch, slots], that holds a checksum of each slot's tensor as the graph received
            it, in the order of `slots`. Golden vectors have the right ones, which are compared exactly. Null in a
            bundle that was built without them.
        generation: how the base writes texts. Null for a base that writes none, or of which that is unknown.
        checksum: the sha256 of this file's bytes in which every occurrence of these 64 digits is replaced by 64 zeros.
    """

    version: Annotated[str, SEMVER]
    producer: str
    minimum_onnxruntime: str
    opset: Positive
    base: str
    base_precision: PrecisionName
    batch_invariant: bool
    padding_neutral: bool
    counts_padding: tuple[str, ...]
    graphs: Annotated[Mapping[Annotated[str, OneOf(GRAPH_VARIANTS)], RelativePath], NotEmpty()]
    inputs: tuple[InputRecord, ...]
    lengths: Mapping[str, Lengths]
    outputs: tuple[OutputRecord, ...]
    sites: tuple[SiteRecord, ...]
    slots: tuple[SlotRecord, ...]
    adapters: tuple[AdapterRecord, ...]
    golden: GoldenRecord
    text: TextRecord | None
    files: tuple[FileRecord, ...]
    heads: tuple[HeadRecord, ...]
    model_version: Positive
    bank: BankRecord | None = None
    fanout: FanoutRecord | None = None
    head: str | None = None
    golden_texts: RelativePath | None = None
    golden_batches: RelativePath | None = None
    media: MediaRecord | None = None
    derivation: RelativePath | None = None
    recorded: RecordedRuns | None = None
    checksums: str | None = None
    generation: GenerationRecord | None = None
    checksum: OrAbsent[Sha256] = field(default=None, compare=False)

    @property
    def tokens(self) -> Lengths:
        """The number of tokens that a text may have."""
        return token_lengths(self.inputs, self.lengths)

    @property
    def max_tokens(self) -> int | None:
        """The most tokens that a text may have, special tokens included; known where there is a tokenizer."""
        return self.tokens.maximum

    @property
    def fit(self) -> Fit | None:
        """The number of tokens to which a text is padded; `None` for a base that takes every length."""
        return None if self.tokens.unbroken else Fit(self.tokens, self.padding_neutral)

    @property
    def base_outputs(self) -> tuple[OutputRecord, ...]:
        """The outputs that are neither those of heads nor checksums."""
        others = {self.checksums, *(head.output for head in self.heads)}
        return tuple(output for output in self.outputs if output.name not in others)
