"""A bundle that does not match its manifest is rejected before it runs, even with correct hashes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from counted import Counted
from onnx import numpy_helper
from tampering import edit_adapter, rehash

from adapter_export.bundle.proof.proof_plan import plan_check
from adapter_export.bundle.proof.prove import prove
from adapter_export.bundle.report import Report
from adapter_export.errors import AdapterError, FormatError, HashError, InputError, TensorError, VersionError
from adapter_export.format.files import canonical_json
from adapter_export.format.tensors import read_tensors
from adapter_export.safe_io.documents import read_json

Change = Callable[[onnx.ModelProto], object]

DOWN = "adapter.layers.0.attention.down.weight"
BANK_DOWN = "bank.layers.0.attention.down.weight"


def _verify(folder: Path) -> Report:
    counted = Counted()
    plan = plan_check(folder, quick=True)
    found = prove(plan, None, reporter=counted)
    assert counted.ended
    return found


def _edit_graph(folder: Path, file: str, change: Change) -> None:
    model = onnx.load(folder / file, load_external_data=False)
    change(model)
    onnx.save(model, folder / file)
    rehash(folder)


def _initializer(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    return next(tensor for tensor in model.graph.initializer if tensor.name == name)


def _input(model: onnx.ModelProto, name: str) -> onnx.ValueInfoProto:
    return next(value for value in model.graph.input if value.name == name)


def _weight(model: onnx.ModelProto) -> onnx.TensorProto:
    return next(tensor for tensor in model.graph.initializer if tensor.external_data)


def _relocate(model: onnx.ModelProto, key: str, value: str) -> None:
    tensor = _weight(model)
    facts = {entry.key: entry.value for entry in tensor.external_data} | {key: value}
    del tensor.external_data[:]
    for name, text in facts.items():
        tensor.external_data.add(key=name, value=text)


def _fixed(model: onnx.ModelProto) -> None:
    _input(model, DOWN).type.tensor_type.shape.dim[0].dim_value = 17


def _nudged(model: onnx.ModelProto) -> None:
    tensor = _initializer(model, DOWN)
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) + 1, DOWN))


def _of_another_base(model: onnx.ModelProto) -> None:
    for prop in model.metadata_props:
        if prop.key == "adapter_export.base_fingerprint":
            prop.value = "sha256:other"


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        ("model.onnx", lambda m: m.graph.input.remove(_input(m, DOWN)), f"missing input `{DOWN}`"),
        ("model.onnx", lambda m: m.graph.initializer.remove(_initializer(m, DOWN)), "cannot be overridden"),
        ("model.onnx", _fixed, rf"input `{DOWN}` float32 \[17, "),
        ("model.onnx", _nudged, "a default other than"),
        ("model.onnx", _of_another_base, "base sha256:other"),
        ("model.onnx", lambda m: setattr(m, "model_version", 7), "`model_version` 7"),
        ("model.onnx", lambda m: m.graph.output.pop(), "missing output `logits`"),
        ("model.onnx", lambda m: _relocate(m, "location", "../base.bin"), "in `../base.bin`, which is not in"),
        ("model.onnx", lambda m: _relocate(m, "location", "/etc/passwd"), "in `/etc/passwd`"),
        ("model.onnx", lambda m: _relocate(m, "location", "manifest.json"), "in `manifest.json`"),
        ("model.onnx", lambda m: _relocate(m, "offset", "999999999"), "extends past the end of `base.bin`"),
        ("model.inputs.onnx", lambda m: m.graph.input.remove(_input(m, "mask")), "missing input `mask`"),
        ("model.bank.onnx", lambda m: m.graph.input.remove(_input(m, "adapter_ids")), "missing input `adapter_ids`"),
        ("model.bank.onnx", lambda m: m.graph.input.remove(_input(m, BANK_DOWN)), f"missing input `{BANK_DOWN}`"),
    ],
)
def test_a_graph_that_contradicts_the_manifest_is_refused(copy: Path, file: str, change: Change, words: str) -> None:
    _edit_graph(copy, file, change)
    with pytest.raises(FormatError, match=words) as caught:
        plan_check(copy)
    assert caught.value.where == str(copy / file)


@pytest.mark.parametrize("data", [b"", b"no graph at all", b"\x08\x09"])
def test_a_file_that_is_not_a_graph_is_refused(copy: Path, data: bytes) -> None:
    (copy / "model.onnx").write_bytes(data)
    rehash(copy)
    with pytest.raises(FormatError) as caught:
        plan_check(copy)
    assert caught.value.where == str(copy / "model.onnx")


def _manifest(change: Callable[[dict], object]) -> Callable[[Path], None]:  # type: ignore[type-arg]
    def apply(folder: Path) -> None:
        path = folder / "manifest.json"
        document = read_json(path)
        assert isinstance(document, dict)
        change(document)
        document.pop("checksum", None)
        path.write_bytes(canonical_json(document))

    return apply


def _twice(document: dict) -> None:  # type: ignore[type-arg]
    document["adapters"].append({**document["adapters"][0], "name": document["adapters"][0]["name"].upper()})


def _like_an_input(document: dict) -> None:  # type: ignore[type-arg]
    document["slots"][0]["name"] = "mask"


def _bytes(path: str, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        (folder / path).write_bytes(change((folder / path).read_bytes()))

    return apply


def _linked(folder: Path) -> None:
    outside = folder.parent / "outside.bin"
    (folder / "base.bin").rename(outside)
    (folder / "base.bin").symlink_to(outside)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (_bytes("base.bin", lambda data: data[:-1] + bytes([data[-1] ^ 1])), HashError, r"base\.bin: has been changed"),
        (
            _bytes("golden/tone.safetensors", lambda data: data[:-1]),
            FormatError,
            "does not match its recorded size",
        ),
        (
            _bytes("adapters/tone.onnx_adapter", lambda data: data + b"\0" * 4096),
            FormatError,
            "does not match its recorded size",
        ),
        (_bytes("manifest.json", lambda data: data[: len(data) // 2]), FormatError, r"manifest\.json"),
        (
            lambda folder: (folder / "tokens.txt").write_bytes(b"more"),
            FormatError,
            r"found `tokens\.txt`",
        ),
        (lambda folder: (folder / "model.onnx").unlink(), InputError, r"model\.onnx: is missing"),
        (lambda folder: (folder / "manifest.json").unlink(), InputError, "is not a bundle"),
        (_linked, InputError, r"base\.bin: is a link to a file outside"),
        (_manifest(lambda d: d["graphs"].update(slots="/etc/passwd")), FormatError, r"graphs\.slots.*leave its folder"),
        (_manifest(lambda d: d["golden"].update(path="../golden.safetensors")), FormatError, "golden.path.*leave its"),
        (_manifest(lambda d: d["files"][0].update(path="a/../b")), FormatError, r"files\[0\].*leave its folder"),
        (_manifest(lambda d: d["files"][0].update(path="C:/b")), FormatError, r"files\[0\].*leave its folder"),
        (_manifest(_twice), FormatError, r"\$\.adapters`: a name occurs twice; found `topic`"),
        (_manifest(_like_an_input), FormatError, r"\$\.slots`: has the name of a data input; found `mask`"),
        (_manifest(lambda d: d["bank"].update(ids="ids")), FormatError, r"\$\.bank`: has the name of a data input"),
        (_manifest(lambda d: d.update(version="2.0.0")), VersionError, r"2\.0\.0"),
        (
            _manifest(lambda d: d["adapters"][0].update(base="sha256:other")),
            AdapterError,
            "does not match the manifest in its base",
        ),
    ],
)
def test_bundles_that_contradict_their_manifest_are_refused(
    copy: Path, change: Callable[[Path], None], error: type[InputError], words: str
) -> None:
    change(copy)
    with pytest.raises(error, match=words):
        plan_check(copy)


def test_an_adapter_file_of_another_base_is_refused(copy: Path) -> None:
    """Names, shapes and hashes match: only the number in the file reveals it."""
    path = copy / "adapters/tone.onnx_adapter"
    native = ort.AdapterFormat()
    native.set_model_version(99)
    tensors = read_tensors(copy / "adapters/tone.safetensors")
    native.set_parameters({name: ort.OrtValue.ortvalue_from_numpy(value) for name, value in tensors.items()})
    native.export_adapter(str(path))
    rehash(copy)
    with pytest.raises(AdapterError, match=r"tone\.onnx_adapter: was made for another bundle"):
        _verify(copy)


def test_a_tensor_named_like_a_data_input_is_refused(copy: Path) -> None:
    def rename(tensors: dict[str, np.ndarray]) -> None:
        tensors["ids"] = tensors.pop(DOWN)

    edit_adapter(copy, "tone", rename)
    with pytest.raises(TensorError, match=r"tone\.onnx_adapter.*`ids` is the name of a data input"):
        _verify(copy)
