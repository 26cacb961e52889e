"""Layouts of a bundle for model-serving platforms.

The fields of Triton's `config.pbtxt` are those of `inference.ModelConfig` (`protobuf/model_config.proto` in its
repository `common`). Its ONNX Runtime backend treats overridable initializers as inputs with `optional: true` if
`max_batch_size` is 0. It also accepts calls with only some of them, so all tensors of an adapter are one input.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from string import Template
from tempfile import TemporaryDirectory
from typing import Literal

import numpy as np
import onnx_ir as ir

from adapter_export.bundle.variants.bank_variant import BANK_FILE
from adapter_export.dtypes import Weights, widened
from adapter_export.errors import FormatError, UsageError
from adapter_export.format.manifest import Axis, Manifest, SlotRecord
from adapter_export.format.manifest_json import UNLISTED, open_whole, read_manifest, verify_files
from adapter_export.format.tensors import read_tensors
from adapter_export.onnx_backend.base.external import read_model
from adapter_export.plugins.ship.transformers_js import (
    check_for_transformers_js,
    copied_for_transformers_js,
    write_for_transformers_js,
)
from adapter_export.runtime.strength import STRENGTH_KEY
from adapter_export.safe_io.output import Output
from adapter_export.safe_io.regular_files import read_bytes
from adapter_export.tables import Described
from adapter_export.version import __version__
from adapter_export.words import argument

Layout = Literal["triton", "kserve", "ray", "docker", "transformers.js"]
"""Target platform: NVIDIA Triton, KServe, Ray Serve, containers, or transformers.js in Node and browsers."""

_FILES = Path(__file__).with_name("files")
_PROGRAMS = (".py", ".mjs")
"""Suffixes of files that are copied; the others are templates."""

_BUNDLE_AT = {"kserve": "storage/{name}", "ray": "bundle", "docker": "bundle"}
_NAME = r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?"
"""Pattern of Kubernetes service names (RFC 1035), which all platforms accept as model names."""

ADAPTER_INPUT = "adapter"
"""Name of the input with all tensors of an adapter, float32 [numbers]."""

_TYPES = {
    **{f"float{bits}": f"TYPE_FP{bits}" for bits in (16, 32, 64)},
    **{f"int{bits}": f"TYPE_INT{bits}" for bits in (8, 16, 32, 64)},
    **{f"uint{bits}": f"TYPE_UINT{bits}" for bits in (8, 16, 32, 64)},
    "bool": "TYPE_BOOL",
}
_ANY = -1


@dataclass(frozen=True, repr=False)
class Shipped(Described):
    """A written layout.

    Attributes:
        folder: its location.
        layout: the platform.
        name: of the service or model.
        files: sorted paths in the folder, without those of the bundle.
    """

    folder: Path
    layout: Layout
    name: str
    files: tuple[str, ...]

    def described(self) -> Mapping[str, object]:
        """Return the facts of `repr` and notebooks."""
        return {"folder": self.folder, "layout": self.layout, "name": self.name, "files": len(self.files)}


def write_layout(bundle: Path, layout: Layout, output: Output, *, name: str) -> Shipped:
    """Write the files with which a platform serves a bundle, and a copy of the bundle or its graphs.

    Raises:
        UsageError: the name is not valid on all platforms, or the bundle lacks something, such as a tokenizer.
        FileError, FormatError: the bundle is damaged.
        OutputExistsError, WriteError: the folder cannot be written.
    """
    read_manifest(bundle)  # a missing bundle is reported before an invalid name
    if not re.fullmatch(_NAME, name):
        raise UsageError(
            "invalid service name",
            where=argument("name"),
            found=f"`{name}`",
            expected="at most 63 lower-case letters, digits and `-`, starting with a letter",
            fix="pass one, such as `film`; the default is the name of the bundle's folder",
        )
    with output.folder() as temporary:
        manifest = open_whole(bundle, partial(_copy_part, bundle, layout, temporary, name))
        words = {"name": name, "version": __version__, "minimum": manifest.minimum_onnxruntime, **_extras(manifest)}
        words["first"] = next((record.name for record in manifest.adapters if record.task is not None), "NAME")
        files = []
        for source in sorted((_FILES / layout).rglob("*")):
            if source.is_file() and source.suffix != ".pyc":
                path = source.relative_to(_FILES / layout)
                text = source.read_text("utf-8")
                place = temporary / path
                place.parent.mkdir(parents=True, exist_ok=True)
                filled = text if path.suffix in _PROGRAMS else Template(text).substitute(words)
                place.write_text(filled, encoding="utf-8")
                files.append(path.as_posix())
        written = [*(temporary / "model_repository").rglob("*.*"), *(temporary / "adapters").glob("*")]
        written += [*temporary.glob("*.json"), *(temporary / "onnx").glob("*")]
        files += [path.relative_to(temporary).as_posix() for path in written]
    return Shipped(output.path, layout, name, tuple(sorted(files)))


def _extras(manifest: Manifest) -> dict[str, str]:
    """Return the extras of the runtime and of `adapter-export` that read images and texts."""
    extra = None if manifest.media is None else manifest.media.modality.extra
    files = [] if extra is None else [extra]
    runtime = [*files, *([] if manifest.text is None else ["text"])]
    return {"runtime": f"[{','.join(runtime)}]" if runtime else "", "serve": f"[{','.join([*files, 'serve'])}]"}


def _copy_part(bundle: Path, layout: Layout, folder: Path, name: str, manifest: Manifest) -> Manifest:
    """Copy the layout's part of a bundle; the copied bytes are compared with their SHA-256."""
    if layout == "triton":
        _write_repository(bundle, folder / "model_repository", name, manifest)
        _write_adapters(bundle, folder / "adapters", manifest)
        return manifest
    if layout == "transformers.js":
        check_for_transformers_js(bundle, manifest)
        with TemporaryDirectory(dir=folder) as copy:
            _copy(bundle, manifest, copied_for_transformers_js(manifest), Path(copy) / "read")
            write_for_transformers_js(Path(copy) / "read", folder, manifest)
        return manifest
    if layout == "ray" and manifest.text is None:
        fix = "pass " + argument("layout", "docker") + ", or build it again with " + argument("tokenizer")
        raise UsageError("has no tokenizer, which the application for Ray needs", where=bundle, fix=fix)
    place = folder / _BUNDLE_AT[layout].format(name=name)
    _copy(bundle, manifest, [file.path for file in manifest.files], place)
    for path in UNLISTED:
        if (bundle / path).is_file():
            (place / path).write_bytes(read_bytes(bundle / path))
    if read_manifest(place) != manifest:  # `open_whole` then retries
        raise FormatError("was replaced while it was copied", where=bundle, fix="try again")
    return manifest


def _write_repository(bundle: Path, folder: Path, name: str, manifest: Manifest) -> None:
    """Write the models: calls of `slots` send an adapter's tensors, and rows of `bank` choose adapters."""
    weights = [file.path for file in manifest.files if "/" not in file.path and file.path.endswith(".bin")]
    variants: list[Literal["slots", "bank"]] = ["slots", "bank"] if "bank" in manifest.graphs else ["slots"]
    for variant in variants:
        model = name if variant == "slots" else f"{name}-{variant}"
        needed = [file for file in weights if variant == "bank" or file != BANK_FILE]
        graph = manifest.graphs[variant]
        _copy(bundle, manifest, [graph, *needed], folder / model / "1")
        scaled = _take_in_one(folder / model / "1" / graph, manifest, bundle / graph) if variant == "slots" else None
        config = model_config(manifest, variant, model, scaled)
        (folder / model / "config.pbtxt").write_text(config, encoding="utf-8")


def _take_in_one(path: Path, manifest: Manifest, where: Path) -> str | None:
    """Rewrite a graph for one adapter input, and return its metadata of strengths."""
    model = read_model(path, lambda reason: FormatError("is not an ONNX model", where=where, found=reason))
    take_in_one(model, manifest)
    ir.save(model, path)
    return model.metadata_props.get(STRENGTH_KEY)


def _write_adapters(bundle: Path, folder: Path, manifest: Manifest) -> None:
    """Write the input of each adapter as bytes, little-endian float32."""
    files = [record.safetensors for record in manifest.adapters]
    with TemporaryDirectory(dir=folder.parent) as copy:
        _copy(bundle, manifest, files, Path(copy) / "read")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for record in manifest.adapters:
            numbers = in_one(
                manifest, widened(read_tensors(Path(copy) / "read" / record.safetensors)), f"adapter `{record.name}`"
            )
            (folder / f"{record.name}.bin").write_bytes(numbers.astype("<f4").tobytes())


def _copy(bundle: Path, manifest: Manifest, paths: Sequence[str], folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)  # left by an attempt during which the bundle was replaced
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
    verify_files(manifest, bundle, copied=paths, into=folder)


def model_config(manifest: Manifest, variant: Literal["slots", "bank"], name: str, scaled: str | None) -> str:
    """Return the configuration of the graph `slots` or `bank`, in protobuf's text format.

    The model runs on the CPU, where the bundle's golden vectors were compared. `scaled` is the graph's metadata of
    strengths, which clients cannot read from the model.
    """
    tensors = [_tensor(record.name, record.dtype, record.axes) for record in manifest.inputs]
    if variant == "bank":
        assert manifest.bank is not None
        tensors.append(_tensor(manifest.bank.ids, "int64", ("batch",)))
    else:
        tensors.append(_tensor(ADAPTER_INPUT, "float32", ("numbers",), optional=True))
    results = [_tensor(record.name, record.dtype, record.axes) for record in manifest.outputs]
    lines = [
        f"name: {json.dumps(name)}",
        'backend: "onnxruntime"',
        f"default_model_filename: {json.dumps(manifest.graphs[variant])}",
        "max_batch_size: 0",
        *(f"input {tensor}" for tensor in tensors),
        *(f"output {tensor}" for tensor in results),
        "instance_group { kind: KIND_CPU }",
    ]
    if scaled is not None:
        lines.append(f'parameters {{ key: "{STRENGTH_KEY}" value {{ string_value: {json.dumps(scaled)} }} }}')
    return "\n".join(lines) + "\n"


def in_one(manifest: Manifest, tensors: Weights, where: str) -> np.ndarray:
    """Return the tensors of an adapter as one, float32 [numbers].

    A header contains the number of elements of each slot, then the lengths of further free axes of slots with several
    ones. The tensors follow in the same order, in row-major layout.

    Raises:
        UsageError: a tensor has more numbers than float32 can count exactly.
    """
    ordered = [tensors[slot.name] for slot in manifest.slots]
    lengths = [
        tensor.shape[place]
        for slot, tensor in zip(manifest.slots, ordered, strict=True)
        for place in _chosen_together(slot)
    ]
    header = np.array([*(tensor.size for tensor in ordered), *lengths], np.int64)
    if header.max(initial=0) > 2**24:  # float32 represents all integers up to here
        largest = max(zip(manifest.slots, ordered, strict=True), key=lambda pair: pair[1].size)[0].name
        raise UsageError(
            "is too large for one input of Triton",
            where=where,
            found=f"`{largest}`",
            expected="at most 2²⁴ numbers",
        )
    return np.concatenate([header.astype(np.float32), *(tensor.ravel() for tensor in ordered)])


def take_in_one(model: ir.Model, manifest: Manifest) -> None:
    """Replace the slots of a graph by one overridable initializer, `ADAPTER_INPUT`, whose default is neutral.

    If lengths do not match the header, ONNX Runtime raises an error (`Split`, opset 13).
    """
    graph, slots = model.graph, manifest.slots
    neutral = {slot.name: np.full(slot.neutral, slot.neutral_value, np.float32) for slot in slots}
    default = in_one(manifest, neutral, "the base")
    packed = ir.Value(
        name=ADAPTER_INPUT,
        type=ir.TensorType(ir.DataType.FLOAT),
        shape=ir.Shape([f"{ADAPTER_INPUT}.numbers"]),
        const_value=ir.Tensor(default, name=ADAPTER_INPUT),
    )
    tape = ir.tape.Tape()

    def op(kind: str, *inputs: ir.Value, **attributes: int) -> ir.Value:
        return tape.op(kind, inputs, attributes)

    def integers(*values: int) -> ir.Value:
        return tape.op("Constant", [], {"value_ints": list(values)})

    chosen = [(slot.name, place) for slot in slots for place in _chosen_together(slot)]
    last = len(slots) + len(chosen)
    header = op("Cast", op("Slice", packed, integers(0), integers(last)), to=ir.DataType.INT64)
    sizes = op("Concat", integers(last), op("Slice", header, integers(0), integers(len(slots))), axis=0)
    parts = [ir.Value(name=f"{ADAPTER_INPUT}/header"), *(ir.Value(name=f"{slot.name}/numbers") for slot in slots)]
    tape.op_multi_out("Split", [packed, sizes], {"axis": 0}, outputs=parts)
    for slot, part in zip(slots, parts[1:], strict=True):
        shape = integers(*(axis if isinstance(axis, int) else -1 for axis in slot.graph_axes))
        for place in _chosen_together(slot):
            at = len(slots) + chosen.index((slot.name, place))
            shape = op("ScatterElements", shape, integers(place), op("Slice", header, integers(at), integers(at + 1)))
        old = graph.initializers.pop(slot.name)
        graph.inputs.remove(old)
        new = ir.Value(name=slot.name, type=old.type, shape=old.shape)
        old.replace_all_uses_with(new)
        tape.op("Reshape", [part, shape], output=new)
    graph.inputs.append(packed)
    graph.initializers[ADAPTER_INPUT] = packed
    graph.insert_before(graph[0], tape.nodes)


def _chosen_together(slot: SlotRecord) -> list[int]:
    """Return the free axes of a slot after the first, whose lengths its number of elements does not determine."""
    return [place for place, axis in enumerate(slot.graph_axes) if isinstance(axis, str)][1:]


def _tensor(name: str, dtype: str, axes: Sequence[Axis], *, optional: bool = False) -> str:
    dims = [axis if isinstance(axis, int) else _ANY for axis in axes]
    shape = f"dims: {dims}" if dims else "dims: [1] reshape { shape: [] }"
    return f"{{ name: {json.dumps(name)} data_type: {_TYPES[dtype]} {shape}{' optional: true' if optional else ''} }}"
