"""The bundle's manifest: all facts that a client in any language needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal, get_args

from adapter_export.dtypes import AdapterPrecision
from adapter_export.format.generation import ChatRecord, GenerationRecord
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
from adapter_export.format.sketch import SketchRecord
from adapter_export.graph.tasks import HeadOutput, Task

VariantName = Literal["slots", "inputs", "bank", "fanout", "baked"]
"""A variant of the exported graph, defined by how it receives the tensors of adapters."""

VARIANT_NAMES: tuple[VariantName, ...] = get_args(VariantName)
"""All variants, each after those it is derived from."""

BAKED: VariantName = "baked"
"""The variant with one graph for each adapter, named in the adapter's record."""

TENSORS_OF_ADAPTERS: Mapping[str, str] = {
    "slots": "optional inputs; the defaults are the base",
    "inputs": "required inputs",
    "bank": "rows of a table, selected by each row of a batch",
    "fanout": "as in `bank`; each row also selects its text",
    "baked": "constants",
}
"""Form of an adapter's tensors in each variant, for tables."""

GRAPH_VARIANTS = tuple(name for name in VARIANT_NAMES if name != BAKED)
"""Variants in `Manifest.graphs`."""

Axis = Positive | str
"""The length of an axis: a number, the name of a dynamic axis such as `batch`, or a sum such as `past + sequence`."""

Names = Annotated[tuple[str, ...], NotEmpty()]


@dataclass(frozen=True)
class InputRecord:
    """One data input of the graph.

    Attributes:
        name: name in the graph.
        dtype: element type by NumPy's name, such as `int64`.
        axes: shape: the length of each axis, or the name of a dynamic axis. Axes with equal names have equal lengths
            within a call. Names joined by ` + ` represent the sum of their lengths.
        role: `ids` indexes an embedding; `mask` marks tokens (1) and padding (0); `cache` is a decoder's state of
            earlier tokens: length 0 along the past axis in the first call for a text, then the output `next` of the
            previous call; `values` is any other input.
        limit: for `ids`, the number of rows of the embedding: valid ids are 0 to limit - 1; null if unknown.
        next: for `cache`, the output to feed in the next call; null for other inputs.
    """

    name: str
    dtype: str
    axes: tuple[Axis, ...]
    role: Literal["ids", "mask", "cache", "values"]
    limit: Positive | None = None
    next: str | None = None


def token_axis(inputs: Sequence[InputRecord]) -> Axis | None:
    """Return the token axis of a text: that of `input_ids`, or the only token axis of ids, or else `None`.

    Without ids, vectors [batch, tokens, width] are used instead.
    """
    ids = {record.name: record.axes[1] for record in inputs if record.role == "ids" and len(record.axes) == 2}
    if not ids:
        shapes = (record.axes for record in inputs if record.role == "values" and len(record.axes) == 3)
        vectors = {tokens for _, tokens, width in shapes if isinstance(tokens, str) and isinstance(width, int)}
        return vectors.pop() if len(vectors) == 1 else None
    return ids.get("input_ids", next(iter(ids.values())) if len(set(ids.values())) == 1 else None)


def token_lengths(inputs: Sequence[InputRecord], lengths: Bounds) -> Lengths:
    """Return the supported numbers of tokens of a text; any number if the inputs have no token axis."""
    axis = token_axis(inputs)
    return Lengths() if axis is None else axis_lengths(axis, lengths)


@dataclass(frozen=True)
class OutputRecord:
    """One output of the graph.

    Attributes:
        name: name in the graph.
        dtype: element type by NumPy's name.
        axes: shape, as for inputs.
    """

    name: str
    dtype: str
    axes: tuple[Axis, ...]


@dataclass(frozen=True)
class SiteRecord:
    """A site of the base, where adapters can act.

    Attributes:
        name: canonical name, such as `layers.3.attention` or `layers.3.attention.query`.
        role: `attention`, `cross_attention`, `ffn`, `linear`, `lookup` or `embeddings`.
        layer: layer number, from 0; null outside of layers.
        width: width `d` of the tensor `h`; at a sublayer, that of the residual stream.
        path: module path in the torch model; null if unknown.
        tensor: tensor of the ONNX graph that an adapter replaces.
    """

    name: str
    role: str
    layer: Count | None
    width: Positive
    path: str | None
    tensor: str


@dataclass(frozen=True)
class SlotRecord:
    """A tensor of the graph that an adapter fills: an overridable float32 initializer.

    Attributes:
        name: name in the graph, under which it is fed.
        site: site of the slot, `head`, or `shared` for tensors shared by several sites.
        graph: name of its adapter graph.
        parameter: name in the adapter graph.
        axes: shape. A name, such as `b`, is a width that each adapter chooses; within one adapter, site and graph,
            equal names have equal lengths.
        neutral: shape of the default, which leaves the base unchanged. It may be shorter than `axes` along numeric
            axes: a tensor has either shape, the shorter one only for the default.
        neutral_value: fill value of the default.
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
        """Axes in the graph, where an axis with two possible lengths is dynamic."""
        free = f"{self.parameter}.width"
        both = zip(self.axes, self.neutral, strict=True)
        return tuple(axis if isinstance(axis, str) or axis == idle else free for axis, idle in both)


@dataclass(frozen=True)
class BankTensor:
    """A tensor of a bank.

    Attributes:
        name: name in the graph `bank`.
        slot: slot whose tensors it contains, stacked by adapter and padded with zeros to the widest. Null for a mask,
            which is added to an output: 0 for classes of the adapter, a number below -1e30 for the others.
        axes: `adapters`, then the axes of the slot.
    """

    name: str
    slot: str | None
    axes: tuple[Axis, ...]


@dataclass(frozen=True)
class BankRecord:
    """All adapters in one graph, for batches that mix adapters.

    Its tensors are overridable initializers: if the language binding can feed them, any number of adapters of any
    widths can be set at run time.

    Attributes:
        ids: input of the graph `bank`, int64 [batch]: index in `rows` for each row of the batch. Other values are an
            error; clients must not pass unchecked numbers.
        rows: adapter in each row of the bank; the first is null, the base.
        fillable: whether zero padding of tensors has no effect, so that a bank set at run time may mix widths. Tested
            by `build`.
        tensors: tensors of the bank.
    """

    ids: str
    rows: Annotated[tuple[str | None, ...], NotEmpty()]
    fillable: bool
    tensors: tuple[BankTensor, ...]


@dataclass(frozen=True)
class FanoutRecord:
    """The bank split below its first adapter, so that the lower part is computed once per text for all adapters.

    Attributes:
        prefix: ONNX file that maps the data inputs of any number of texts to `values`. It is independent of adapters,
            so clients may cache its results.
        rows: input of the graph `fanout`, int64 [rows]: for each output row, the row of the data inputs and of `values`
            to continue. `bank.ids`, int64 [rows] in this graph, selects the adapter.
        values: outputs of `prefix`, which are inputs of `fanout` in addition to the data inputs. One axis of each is
            the text axis, the first axis of the data inputs.
    """

    prefix: RelativePath
    rows: str
    values: Annotated[tuple[OutputRecord, ...], NotEmpty()]


@dataclass(frozen=True)
class PartRecord:
    """A fault in applying an adapter, and a weighted sum of an output that detects it below the budget per element.

    Its value is `factor` times the sum of weight times (found - expected): 0 in a correct program, near 1 with the
    fault.

    Attributes:
        fault: name of the fault, such as `layers.5.ffn off`.
        output: output that shows the fault best.
        factor: scale that makes the value 1 for the fault, measured with ONNX Runtime during the build.
        limit: maximum absolute value to pass.
    """

    fault: str
    output: str
    factor: float
    limit: NotNegative


@dataclass(frozen=True)
class PartsRecord:
    """Golden parts of an adapter: inputs that detect faults missed by its golden vectors.

    Attributes:
        path: safetensors file with the inputs and the outputs of `parts`, named and stored as in golden vectors, and
            `<case>.part.<number>`, int8 weights in the shape of the stored output, numbered from 0. A case without
            weights of a part is not used for it.
        cases: names of the cases.
        parts: faults.
    """

    path: RelativePath
    cases: Names
    parts: Annotated[tuple[PartRecord, ...], NotEmpty()]


@dataclass(frozen=True)
class NearestRecord:
    """The adapter of the bundle with the most similar outputs.

    Attributes:
        adapter: its name.
        separation: separation of the two adapters by the golden data.
    """

    adapter: str
    separation: NotNegative


@dataclass(frozen=True)
class SeparationRecord:
    """Separation of golden data: their sensitivity to a partly applied adapter or a swapped adapter.

    The separation of a fault is the larger of its deviation over the allowed one, and its value over the limit of its
    golden part. A fault below 1 is not detected. `build` tests each site and layer with neutral tensors, and the base
    without the adapter. Separations are capped at 1e6.

    Attributes:
        least: the smallest separation.
        fault: its fault, such as `layers.5.ffn off`.
        outputs: by output: the smallest separation of all faults except a missing head, measured only with this output.
        weak: faults with a separation below 2, in ascending order.
        nearest: the adapter hardest to distinguish from this one; null if no other adapter has different tensors.
    """

    least: NotNegative
    fault: str
    outputs: Mapping[str, NotNegative]
    weak: tuple[str, ...] = ()
    nearest: NearestRecord | None = None


@dataclass(frozen=True)
class RecordedRuns:
    """Runs of ONNX Runtime during the build, for bitwise comparison.

    The digests are in `recorded` of golden vectors. They apply if version and provider match, and the digest of the
    base in the same graph matches, which shows that processor and runtime build round identically. Otherwise they are
    not comparable.

    Attributes:
        runtime: version of ONNX Runtime.
        provider: execution provider.
        processor: instruction set, such as `x86_64`.
        features: instruction set extensions of the processor.
        cases: recorded golden cases: those with bit-identical results for any number of threads.
    """

    runtime: str
    provider: str
    processor: str
    features: tuple[str, ...]
    cases: Names


@dataclass(frozen=True)
class WrittenRecord:
    """A text generated greedily by the reference.

    Attributes:
        prompt: input tokens. For an encoder of sound or images, all tokens that the decoder reads before the text.
        tokens: generated tokens, at most 12, up to the end token, or before the first token that rounding could change.
        fill: seed of the input of an encoder of sound or images, as `fill` of golden vectors; null for others.
    """

    prompt: Annotated[tuple[Count, ...], NotEmpty()]
    tokens: Annotated[tuple[Count, ...], NotEmpty()]
    fill: Count | None = None


@dataclass(frozen=True)
class GoldenRecord:
    """Inputs and reference outputs to verify any program.

    Attributes:
        path: safetensors file with tensors `<case>.input.<input>` and `<case>.output.<output>`, the latter a sketch for
            an output in `sketches` of the manifest. Instead of an input of floats there may be `<case>.fill.<input>`,
            int64: a seed, then the shape. Element i of the input is then (mix(seed + i) >> 24) / 64 - 2, with the hash
            of sketches.
        cases: names of the cases.
        absolute: by output name: maximum deviation of each element, or of each number of its sketch. A case passes if
            all outputs listed here are within it.
        reference: program that computed the outputs, such as `torch 2.13.0 float32`; never the exported graph.
        reasons: by output name: derivation of `absolute`, a sentence for readers.
        separation: sensitivity of these golden data and `parts` to faults of the adapter. Null for the base, for an
            adapter without slots, and if not measured.
        parts: golden parts, if golden vectors do not detect every fault; null otherwise.
        recorded: by graph (a variant, or `baked`): SHA-256 of the outputs of ONNX Runtime in the cases of the
            manifest's `recorded`. It covers the little-endian bytes of all outputs in `absolute`, case by case, sorted
            by name within a case. In a graph whose rows select adapters, all rows use this one.
        written: texts generated by the reference with the manifest's `generation`; empty without it.
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
        """Files of these golden data."""
        return (self.path,) if self.parts is None else (self.path, self.parts.path)


@dataclass(frozen=True)
class MixRecord:
    """Member weights of a weighted fusion, which a request may override.

    The adapter adds the weighted sum of its members' updates. A request with its own weights feeds one float32 tensor,
    [1, members] for the whole batch or [batch, members] per row, to every slot listed here, and the adapter's tensors
    to all other slots. Any finite numbers are allowed.

    Attributes:
        slots: slots that receive the weights.
        members: member of each column, by its name at the time of fusion. It need not be in the bundle.
    """

    slots: Names
    members: Names


@dataclass(frozen=True)
class AdapterRecord:
    """An adapter of the bundle.

    Attributes:
        name: the adapter's name.
        kind: published kind of its graphs. Informative.
        parameters: number of parameters, excluding idle slots.
        onnx_adapter: ONNX Runtime adapter file. It contains a tensor for every slot of the graph; idle slots have
            neutral values, so that no tensor of a previous adapter remains.
        safetensors: the same tensors in a safetensors file.
        source: folder of the source adapter: adapter_graph.json and weights.safetensors.
        base: fingerprint of the base it was trained on; differs from the bundle's only if the build allowed it.
        golden: golden vectors of the base with this adapter.
        task: task type, labels and preprocessing of text. Null without a head, or if unknown: clients then return the
            raw result of the head instead of an answer.
        output: output with the result of its head while active; null without a head.
        baked: graph with the adapter as constants and without slots; null if there is none.
        mix: member weights that a request may override; null unless it is a weighted fusion.
        precision: type of the tensors in its files. They represent float32 numbers, rounded once: float16 directly,
            int8 times the factor `<name>.scale` for its index along the last axis.
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
    """A topology of prediction heads.

    Attributes:
        graph: name of the topology, the `graph` of slots of the site `head`.
        output: output with its result.
        result: logits or numbers [batch, classes], logits [batch, tokens, classes], or vectors [batch, width].
    """

    graph: str
    output: str
    result: HeadOutput


@dataclass(frozen=True)
class TextRecord:
    """The tokenizer.

    Attributes:
        tokenizer: `tokenizer.json` of the Hugging Face tokenizers library.
        digest: SHA-256 of its JSON without `truncation` and `padding`, with sorted keys. An adapter whose task has
            another digest was trained with other ids, and its texts are rejected. `lengths` overrides the lengths in
            the file.
    """

    tokenizer: RelativePath
    digest: Sha256


@dataclass(frozen=True)
class FileRecord:
    """A file of the bundle.

    Attributes:
        path: path relative to the bundle.
        sha256: SHA-256 of the contents.
        bytes: size in bytes.
    """

    path: RelativePath
    sha256: Sha256
    bytes: Count


@dataclass(frozen=True)
class Manifest:
    """A bundle: one ONNX graph of a base model, and small files with the tensors of adapters.

    This is `manifest.json`. Paths are relative to the folder of this file. Specified in docs/reference/format.md.

    Attributes:
        version: the version of this format. Readers reject another major version.
        producer: tool and version that wrote the bundle. Informative.
        minimum_onnxruntime: the oldest ONNX Runtime that loads the graphs.
        opset: ONNX opset of the graphs.
        base: fingerprint of the base model's weights, before any change of precision. Adapters trained on another base
            do not fit.
        base_precision: arithmetic of the base: float32, float16, 8-bit weights and activations, or 8-bit or 4-bit
            weights and float32 activations. Inputs, outputs, adapters and heads are always float32.
        batch_invariant: whether a row's outputs are independent of the contents of other rows of its batch, and depend
            on their number only by rounding. Tested by `build`. False if activations are quantised with one scale per
            batch: then rows of different users must not share a call.
        padding_neutral: whether masked tokens have no effect in the base except rounding, so that requests of different
            lengths may share a batch; false if the inputs cannot be padded. Tested by `build`.
        counts_padding: adapter graphs (`graph` of slots) whose active slots are affected by masked tokens.
        graphs: ONNX files by variant. In `slots`, every slot is an overridable initializer: it may be fed like an
            input, and defaults to its neutral value. In `inputs`, every slot must be fed. In `bank`, the input
            `bank.ids` selects an adapter for each row of the batch. `fanout` is the upper part of `bank`, which
            continues from `fanout.prefix`.
        inputs: data inputs of the graph, in the order of the base. All must be fed.
        lengths: supported lengths by the name of a dynamic axis, or a sum of names as in `axes`. Other axes are
            unrestricted. Readers reject inputs of other lengths. Texts are truncated to the largest length; rows of an
            unsupported length are padded to the next supported one if the base has a mask and `padding_neutral` is
            true, and rejected otherwise.
        outputs: outputs of the graph: those of the base, then those of the heads.
        sites: every sublayer of the base, and other sites with slots, in order of evaluation.
        slots: all tensors of the graph that adapters fill.
        adapters: adapters of the bundle. Names are unique regardless of case.
        golden: golden vectors of the base.
        text: the tokenizer; null if unknown.
        files: all files of the bundle except this one, including every path in this file.
        heads: all topologies of prediction heads. The graph sums heads that share an output; inactive heads contribute
            zeros.
        model_version: `model_version` of the graph and of its adapter files: 31 bits of a digest of the base, the slot
            topology and the site map. Readers reject adapter files with another value.
        bank: contents of the graph `bank`; null without it.
        fanout: inputs of the graph `fanout`; null without it.
        head: the adapter that consists only of the base head and returns the base's answers; null without one.
        golden_texts: file of golden texts: texts, token ids and answers; null without a tokenizer.
        golden_batches: file of golden batches: multi-row requests of different lengths and adapters, and the
            reference's answer to each single row. Null if an input is a cache or not an integer, or if every answer is
            large.
        media: preprocessing of images or audio; null if the base reads none, or if unknown.
        derivation: file with the origin of each constant in the graph with slots; null in bundles of older releases.
        recorded: environment of the runs whose digests are in golden vectors; null without recorded runs.
        checksums: output, float32 [batch, slots], with a checksum of each slot's tensor as received by the graph, in
            the order of `slots`. Golden vectors contain the expected values, which are compared exactly. Null in a
            bundle built without checksums.
        generation: settings of text generation; null for a base that does not generate text, or if unknown.
        chat: chat templates; null without any, or for a base that does not generate text.
        sketches: form of wide outputs of the base in golden vectors and golden parts, by output. Others are stored
            whole.
        checksum: SHA-256 of this file with every occurrence of these 64 digits replaced by 64 zeros.
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
    chat: ChatRecord | None = None
    sketches: Mapping[str, SketchRecord] = field(default_factory=dict)
    checksum: OrAbsent[Sha256] = field(default=None, compare=False)

    @property
    def tokens(self) -> Lengths:
        """Supported numbers of tokens of a text."""
        return token_lengths(self.inputs, self.lengths)

    @property
    def max_tokens(self) -> int | None:
        """Maximum number of tokens of a text, including special tokens; known with a tokenizer."""
        return self.tokens.maximum

    @property
    def fit(self) -> Fit | None:
        """Padded length of a text; `None` for a base that supports every length."""
        return None if self.tokens.unbroken else Fit(self.tokens, self.padding_neutral)

    @property
    def base_outputs(self) -> tuple[OutputRecord, ...]:
        """Outputs other than those of heads and checksums."""
        others = {self.checksums, *(head.output for head in self.heads)}
        return tuple(output for output in self.outputs if output.name not in others)
