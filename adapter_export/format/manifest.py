"""The bundle's manifest: what a client in any language needs to know, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Axis = int | str
"""The length of an axis: a number, or the name of a dynamic axis such as `batch`."""


@dataclass(frozen=True)
class InputRecord:
    """One data input of the graph.

    Attributes:
        name: its name in the graph.
        dtype: NumPy's name of its type, such as `int64`.
        axes: its shape.
        role: `ids` if it indexes an embedding, `mask` if it says which tokens are real, else `values`.
        limit: for `ids`, the number of rows of that embedding; valid ids are 0 to limit − 1.
    """

    name: str
    dtype: str
    axes: tuple[Axis, ...]
    role: Literal["ids", "mask", "values"]
    limit: int | None = None


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
        name: canonical, such as `layers.3.attention`.
        role: `attention` or `ffn`.
        layer: counted from 0.
        width: the width of the residual stream.
        path: the module path in the torch model, if known.
        tensor: the tensor of the ONNX graph that the adapter replaces.
    """

    name: str
    role: str
    layer: int
    width: int
    path: str | None
    tensor: str


@dataclass(frozen=True)
class SlotRecord:
    """One overridable initializer.

    Attributes:
        name: its name in the graph, `adapter.<site>.<parameter>`.
        site: the site it belongs to, or `head`.
        graph: the name of the adapter graph it belongs to.
        parameter: its name in that graph.
        axes: its shape; the names are those of the adapter's widths (`b`, `classes`), free per adapter.
        neutral: the shape of its default, which is all zeros.
    """

    name: str
    site: str
    graph: str
    parameter: str
    axes: tuple[Axis, ...]
    neutral: tuple[int, ...]


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
    """

    path: str
    cases: tuple[str, ...]
    absolute: Mapping[str, float]
    reference: str


@dataclass(frozen=True)
class AdapterRecord:
    """One adapter of the bundle.

    Attributes:
        name: what `run` calls it.
        kind: the kind of its graphs.
        labels: the classes in the order of the logits; none for an adapter without a head.
        parameters: how many numbers it has, the idle slots not counted.
        onnx_adapter: ONNX Runtime's adapter file: a tensor for every slot, idle ones at their neutral values.
        safetensors: the same tensors, for everyone else.
        source: the folder with the adapter as it was given.
        base: the fingerprint of the base that it was trained on; differs from the bundle's only where the build was
            told to allow it.
        golden: its golden vectors.
    """

    name: str
    kind: str
    labels: tuple[str, ...] | None
    parameters: int
    onnx_adapter: str
    safetensors: str
    source: str
    base: str
    golden: GoldenRecord


@dataclass(frozen=True)
class TextRecord:
    """How text becomes inputs.

    Attributes:
        tokenizer: a `tokenizer.json` of the tokenizers library.
        max_tokens: longer texts are cut to this many tokens; the most that the base takes.
    """

    tokenizer: str
    max_tokens: int


@dataclass(frozen=True)
class FileRecord:
    """A file of the bundle, by its path from the bundle's folder with `/` between parts."""

    path: str
    sha256: str
    bytes: int


@dataclass(frozen=True)
class Manifest:
    """A bundle.

    Attributes:
        version: of the manifest format, semver.
        producer: the tool and version that wrote it.
        minimum_onnxruntime: the oldest runtime that loads it.
        opset: of the ONNX domain.
        base: the fingerprint of the base.
        graphs: the ONNX files by flavour; `slots` has overridable initializers.
        inputs: the data inputs, in the order of the base.
        outputs: the base's outputs, then the head's.
        head_output: the name of the head's output, logits [batch, classes]; none if no adapter has a head.
        sites: every site of the base.
        slots: every overridable initializer.
        adapters: the adapters.
        golden: golden vectors of the base alone.
        text: how text becomes inputs, if known.
        files: every file of the bundle but the manifest itself.
    """

    version: str
    producer: str
    minimum_onnxruntime: str
    opset: int
    base: str
    graphs: Mapping[str, str]
    inputs: tuple[InputRecord, ...]
    outputs: tuple[OutputRecord, ...]
    head_output: str | None
    sites: tuple[SiteRecord, ...]
    slots: tuple[SlotRecord, ...]
    adapters: tuple[AdapterRecord, ...]
    golden: GoldenRecord
    text: TextRecord | None
    files: tuple[FileRecord, ...]
