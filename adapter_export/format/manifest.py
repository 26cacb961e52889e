"""The bundle's manifest: what a client in any language needs to know, as data."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sized
from dataclasses import dataclass, field
from typing import Annotated, Literal

from adapter_export.errors import FormatError
from adapter_export.graph.adapter import check_name
from adapter_export.graph.tasks import HeadOutput, Task

# Rules for single values of a manifest: each a function that raises where the value breaks the rule.

_SHA256 = re.compile(r"[0-9a-f]{64}")
_PATH_PART = re.compile(r"[^\x00-\x1f\x7f/\\:]+")


def check_path(text: str) -> None:
    """A path that stays in its folder on every operating system: `a/b.c`, never `../a`, `/a` or `C:a`."""
    parts = text.split("/")
    if not all(_PATH_PART.fullmatch(part) for part in parts) or {".", ".."} & set(parts):
        raise FormatError(
            "a path that may leave its folder",
            found=f"`{text}`",
            expected="a relative path with `/` between its parts, without `.`, `..`, `:` and `\\`",
        )


def check_sha256(text: str) -> None:
    """64 lower-case hexadecimal digits."""
    if not _SHA256.fullmatch(text):
        raise FormatError("no sha256", found=f"`{text}`", expected="64 lower-case hexadecimal digits")


def check_positive(number: int) -> None:
    """At least 1."""
    if number < 1:
        raise FormatError("a number that is too small", found=number, expected="at least 1")


def check_not_negative(number: float) -> None:
    """At least 0."""
    if number < 0:
        raise FormatError("a number that is too small", found=number, expected="at least 0")


def check_not_empty(values: Sized) -> None:
    """At least one value."""
    if not values:
        raise FormatError("nothing here", expected="at least one value")


Count = Annotated[int, check_not_negative]
Positive = Annotated[int, check_positive]
RelativePath = Annotated[str, check_path]
"""From the bundle's folder, with `/` between parts."""

Precision = Literal["fp32", "fp16", "int8", "int8-weights", "int4-weights"]
"""How a base computes its products: in floats, in integers (`int8`), or in floats with weights of so many bits."""

Flavour = Literal["slots", "inputs", "bank"]
"""A form of the exported graph."""

Axis = Positive | str
"""The length of an axis: a number, the name of a dynamic axis such as `batch`, or a sum such as `past + sequence`."""


@dataclass(frozen=True)
class InputRecord:
    """One data input of the graph.

    Attributes:
        name: its name in the graph.
        dtype: NumPy's name of its type, such as `int64`.
        axes: its shape.
        role: `ids` if it indexes an embedding, `mask` if it says which tokens are real, `cache` if it is what a decoder
            keeps of the tokens before, else `values`.
        limit: for `ids`, the number of rows of that embedding; valid ids are 0 to limit − 1.
        next: for `cache`, the output that it is in the next call; in the first one it is empty.
    """

    name: str
    dtype: str
    axes: tuple[Axis, ...]
    role: Literal["ids", "mask", "cache", "values"]
    limit: Positive | None = None
    next: str | None = None


@dataclass(frozen=True)
class OutputRecord:
    """One output of the graph."""

    name: str
    dtype: str
    axes: tuple[Axis, ...]


@dataclass(frozen=True)
class SiteRecord:
    """A place of the base at which an adapter can act.

    Attributes:
        name: canonical, such as `layers.3.attention` or `layers.3.attention.query`.
        role: `attention`, `ffn`, `linear` or `embeddings`.
        layer: counted from 0; none for the embeddings.
        width: the width of the tensor `h` there: at a sublayer that of the residual stream.
        path: the module path in the torch model, if known.
        tensor: the tensor of the ONNX graph that the adapter replaces.
    """

    name: str
    role: str
    layer: Count | None
    width: Positive
    path: str | None
    tensor: str


@dataclass(frozen=True)
class SlotRecord:
    """One overridable initializer.

    Attributes:
        name: its name in the graph, `adapter.<site>.<parameter>`.
        site: the site it belongs to, `head`, or `shared` for what several sites have in common.
        graph: the name of the adapter graph it belongs to.
        parameter: its name in that graph.
        axes: its shape; the names are those of the adapter's widths (`b`, `classes`), free per adapter.
        neutral: the shape of its default, with which it does nothing.
    """

    name: str
    site: str
    graph: str
    parameter: str
    axes: tuple[Axis, ...]
    neutral: tuple[Positive, ...]
    neutral_value: float = 0.0


@dataclass(frozen=True)
class BankTensor:
    """One tensor of a bank: an overridable initializer.

    Attributes:
        name: its name in the graph `bank`.
        slot: the slot whose tensors it holds; none for what masks the classes that an adapter lacks, which is to be
            added to an output: 0, and a very low number for them.
        axes: its shape: `adapters`, then those of the slot. The names are free; narrower adapters are filled up with
            zeros.
    """

    name: str
    slot: str | None
    axes: tuple[Axis, ...]


@dataclass(frozen=True)
class BankRecord:
    """All adapters in one graph, for batches whose rows run through different ones.

    Attributes:
        ids: the input of the graph `bank`, int64 [batch]: for each row a position in `rows`.
        rows: the adapter that each row of the bank holds; null is the base.
        tensors: the tensors of the bank.
    """

    ids: str
    rows: tuple[str | None, ...]
    tensors: tuple[BankTensor, ...]


@dataclass(frozen=True)
class GoldenRecord:
    """Inputs and reference outputs by which any program can prove itself.

    The file holds tensors `<case>.input.<input>` and `<case>.output.<output>`. A program passes a case when every
    element of every output differs from the stored one by at most `absolute`.

    Attributes:
        path: the safetensors file.
        cases: the names of the cases.
        absolute: the allowed absolute deviation of each output, by output name.
        reference: what computed the outputs, such as `torch 2.13.0 float32`; never the exported graph.
        reasons: where each number of `absolute` comes from, a sentence for people.
    """

    path: RelativePath
    cases: Annotated[tuple[str, ...], check_not_empty]
    absolute: Mapping[str, Annotated[float, check_not_negative]]
    reference: str
    reasons: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class MixRecord:
    """The weights of a weighted fusion, which each request may give.

    Attributes:
        slots: where they go, in the place of the adapter's own tensors: the same float32 [1, members] or [batch,
            members] to every one of them.
        members: what each column weighs, by the names that the members had when they were fused.
    """

    slots: Annotated[tuple[str, ...], check_not_empty]
    members: Annotated[tuple[str, ...], check_not_empty]


@dataclass(frozen=True)
class AdapterRecord:
    """One adapter of the bundle.

    Attributes:
        name: what `run` calls it.
        kind: the kind of its graphs.
        labels: the classes in the order of the logits; none for an adapter whose head has no classes, or without one.
        parameters: how many numbers it has, the idle slots not counted.
        onnx_adapter: ONNX Runtime's adapter file: a tensor for every slot, idle ones at their neutral values.
        safetensors: the same tensors, for everyone else.
        source: the folder with the adapter as it was given.
        base: the fingerprint of the base that it was trained on; differs from the bundle's only where the build was
            told to allow it.
        golden: its golden vectors.
        task: what its head is for; none without a head.
        output: the output of the graph that holds the result of its head; none without one.
        baked: the graph in which it is constant, if there is one.
        mix: the weights that a request may give it; none if it is no weighted fusion.
    """

    name: Annotated[str, check_name]
    kind: str
    labels: Annotated[tuple[str, ...], check_not_empty] | None
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


@dataclass(frozen=True)
class HeadRecord:
    """One topology of prediction head.

    Attributes:
        graph: its name, as slots of the site `head` say it.
        output: the output of the graph that it fills.
        result: what that holds.
    """

    graph: str
    output: str
    result: HeadOutput


@dataclass(frozen=True)
class TextRecord:
    """How text becomes inputs.

    Attributes:
        tokenizer: a `tokenizer.json` of the tokenizers library.
        max_tokens: longer texts are cut to this many tokens; the most that the base takes.
    """

    tokenizer: RelativePath
    max_tokens: Positive


@dataclass(frozen=True)
class FileRecord:
    """A file of the bundle, by its path from the bundle's folder with `/` between parts."""

    path: RelativePath
    sha256: Annotated[str, check_sha256]
    bytes: Count


@dataclass(frozen=True)
class Manifest:
    """A bundle.

    Attributes:
        version: of the manifest format, semver.
        producer: the tool and version that wrote it.
        minimum_onnxruntime: the oldest runtime that loads it.
        opset: of the ONNX domain.
        base: the fingerprint of the base, as it was before its precision was changed: what adapters are trained on.
        base_precision: how the graphs compute the base; adapters and heads are float32 in any case.
        batch_invariant: whether a row's outputs do not depend on the other rows of its batch, rounding aside. Where
            they do, the rows of different users do not belong into one call.
        graphs: the ONNX files by flavour: `slots` has overridable initializers, `inputs` required inputs in their
            place, `bank` an adapter for each row of the batch.
        inputs: the data inputs, in the order of the base.
        outputs: the base's outputs, then the heads'.
        sites: every sublayer of the base, and the other sites that have slots.
        slots: every overridable initializer.
        adapters: the adapters.
        golden: golden vectors of the base alone.
        text: how text becomes inputs, if known.
        files: every file of the bundle but the manifest itself.
        heads: every topology of prediction head.
        bank: what the graph `bank` holds; none without it.
        model_version: the number that the graph and every adapter file for it carry.
    """

    version: str
    producer: str
    minimum_onnxruntime: str
    opset: Positive
    base: str
    base_precision: Precision
    batch_invariant: bool
    graphs: Annotated[Mapping[str, RelativePath], check_not_empty]
    inputs: tuple[InputRecord, ...]
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

    @property
    def base_outputs(self) -> tuple[OutputRecord, ...]:
        """The outputs that are not those of heads."""
        heads = {head.output for head in self.heads}
        return tuple(output for output in self.outputs if output.name not in heads)
