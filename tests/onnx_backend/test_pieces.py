"""Pieces: a graph split between its nodes computes the same as the whole graph."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import numpy_helper, parser
from tiny_onnx import build_tiny, token_inputs

from adapter_export.bundle.bundle_reader import OpenedBundle
from adapter_export.bundle.proof.prove import prove_new
from adapter_export.errors import ParityError, RequestError
from adapter_export.format.manifest import Manifest
from adapter_export.format.manifest_json import read_manifest
from adapter_export.format.tensors import read_tensors
from adapter_export.numerics.runner import Arrays
from adapter_export.onnx_backend import onnx_runner as pieces
from adapter_export.onnx_backend.base.onnx_base import OnnxBase
from adapter_export.onnx_backend.model_session import open_session
from adapter_export.onnx_backend.onnx_runner import Pieces
from adapter_export.runtime.graphs import run_session

SMALL = 2560
"""Size of the largest tensor of the tiny base."""

_BRANCHES = """<ir_version: 8, opset_import: ["" : 17]>
    branches (float[rows, 8] x, bool choice) => (float[rows, 8] y, float[rows, 8] early) {
        early = MatMul(x, one)
        late = MatMul(early, two)
        either = If (choice) <
            then_branch = first () => (float[rows, 8] a) { a = MatMul(early, three) },
            else_branch = second () => (float[rows, 8] b) { b = Add(late, x) }
        >
        y = MatMul(either, four)
    }"""


_OPTIONAL = """<ir_version: 8, opset_import: ["" : 17]>
    optional (float[rows, 8] x, float[8] first, float[8] second) => (float[rows, 8] y)
    <float[8] first = {0, 0, 0, 0, 0, 0, 0, 0}, float[8] second = {0, 0, 0, 0, 0, 0, 0, 0}> {
        lower = Add(x, first)
        product = MatMul(lower, one)
        y = Add(product, second)
    }"""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny(tmp_path_factory.mktemp("bundle"))


def test_pieces_give_the_bits_of_the_whole_graph(base: OnnxBase) -> None:
    whole = open_session(base.model, base.folder, optimize=False, pack=False)
    parts = Pieces(base.model, base.folder, optimize=False, size=SMALL)
    assert len(parts) > 3
    requests = [token_inputs(1), token_inputs(5, 3, 7)]
    for inputs, found in zip(requests, parts.run_all(requests), strict=True):
        expected = run_session(whole, inputs)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_array_equal(found[name], value)


def test_nodes_shared_by_requests_are_computed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Faults of one case share its arrays: the layers below the first fault need not run again."""
    parts = Pieces(_with_weights(_BRANCHES, tmp_path), tmp_path, optimize=False, size=256)
    x = np.random.default_rng(0).standard_normal((3, 8), np.float32)
    requests = [{"x": x, "choice": np.array(choice)} for choice in (True, False, True)]
    expected = [parts.run(feeds) for feeds in requests]
    ran = list[list[str]]()

    def counted(session: ort.InferenceSession, feeds: Arrays, *, options: ort.RunOptions | None) -> Arrays:
        ran.append(sorted(feeds))
        return run_session(session, feeds, options=options)

    monkeypatch.setattr(pieces, "run_session", counted)
    outputs = parts.run_all(requests)
    assert [feeds for feeds in ran if "choice" not in feeds][:2] == [["x"], ["early"]]  # early and late, once
    assert len(ran) == 2 + 2 * len(requests)
    for values, reference in zip(outputs, expected, strict=True):
        assert values.keys() == reference.keys()
        for name, value in reference.items():
            np.testing.assert_array_equal(values[name], value)


def test_one_array_for_two_inputs_is_two_requests() -> None:
    """An adapter may have one array at two sites, and another adapter only at one of them."""
    model = parser.parse_model(_OPTIONAL)
    weight = np.random.default_rng(0).standard_normal((8, 8), np.float32)
    model.graph.initializer.append(numpy_helper.from_array(weight, "one"))
    x, change = np.ones((3, 8), np.float32), np.full(8, 2, np.float32)
    requests = [{"x": x, name: change} for name in ("first", "second")]
    parts = Pieces(ir.from_proto(model), Path(), optimize=False)
    expected = [parts.run(feeds)["y"] for feeds in requests]
    assert not np.array_equal(*expected)
    for values, each in zip(parts.run_all(requests), expected, strict=True):
        np.testing.assert_array_equal(values["y"], each)


def test_pieces_stay_within_their_size_limit(base: OnnxBase) -> None:
    parts = Pieces(base.model, base.folder, size=SMALL)
    assert max(_bytes(model) for model in parts._models) <= SMALL
    assert sum(_bytes(model) for model in parts._models) >= _bytes(base.model)


def test_weights_that_fit_are_one_piece(base: OnnxBase) -> None:
    assert len(Pieces(base.model, base.folder)) == 1


def test_slots_are_fed_in_each_piece(bundle: Path) -> None:
    model, manifest = ir.load(bundle / "model.onnx"), read_manifest(bundle)
    parts = Pieces(model, bundle, optimize=False, size=SMALL)
    assert len(parts) > 3
    whole, inputs = open_session(model, bundle, optimize=False, pack=False), token_inputs(4, 6)
    for record in manifest.adapters:
        feeds = {**inputs, **read_tensors(bundle / record.safetensors)}
        expected, found = run_session(whole, feeds), parts.run(feeds)
        for name, value in expected.items():
            np.testing.assert_array_equal(found[name], value)


@pytest.mark.parametrize("choice", [True, False])
def test_outer_values_of_a_branch_are_passed_between_pieces(tmp_path: Path, choice: bool) -> None:
    model = _with_weights(_BRANCHES, tmp_path)
    parts = Pieces(model, tmp_path, optimize=False, size=256)
    assert len(parts) == 4
    feeds = {"x": np.random.default_rng(0).standard_normal((3, 8), np.float32), "choice": np.array(choice)}
    expected = run_session(open_session(model, tmp_path, optimize=False, pack=False), feeds)
    found = parts.run(feeds)
    assert found.keys() == expected.keys() == {"y", "early"}
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value)


def test_values_of_unknown_type_are_not_cut(tmp_path: Path) -> None:
    model = _with_weights(_BRANCHES, tmp_path)
    for node in model.graph:
        for value in node.outputs:
            value.type = ir.TensorType(ir.DataType.FLOAT) if value.is_graph_output() else None
    assert len(Pieces(model, tmp_path, size=256)) == 2


def test_a_missing_input_is_named(base: OnnxBase) -> None:
    inputs = token_inputs(3)
    inputs.pop("attention_mask")
    with pytest.raises(RequestError, match="attention_mask"):
        Pieces(base.model, base.folder, size=SMALL).run(inputs)


class TestSelfCheck:
    """Self-check of a bundle with many weights, which here means more than a few kilobytes."""

    @pytest.fixture(autouse=True)
    def _small_pieces(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(pieces, "PIECE_BYTES", SMALL)

    def test_a_good_bundle_passes(self, bundle: Path) -> None:
        manifest = read_manifest(bundle)
        prove_new(OpenedBundle.open_staged(bundle, manifest))

    def test_rows_of_unchanged_adapters_in_the_bank_are_compared(self, bundle: Path, tmp_path: Path) -> None:
        """The bank is written anew with each adapter, so its old rows are not hashed files."""
        folder = shutil.copytree(bundle, tmp_path / "bundle")
        manifest = read_manifest(folder)
        names = {record.name for record in manifest.adapters}
        bank = np.fromfile(folder / "bank.bin", "<f4")
        (folder / "bank.bin").unlink()
        (bank * np.float32(1.01)).tofile(folder / "bank.bin")
        for added in names:
            with pytest.raises(ParityError, match="bank"):
                prove_new(OpenedBundle.open_staged(folder, manifest), unchanged={None, *names} - {added})

    def test_files_of_one_adapter_that_differ_are_found(self, bundle: Path, tmp_path: Path) -> None:
        folder = shutil.copytree(bundle, tmp_path / "bundle")
        manifest = read_manifest(folder)
        shutil.copy(folder / manifest.adapters[0].onnx_adapter, folder / manifest.adapters[1].onnx_adapter)
        with pytest.raises(ParityError, match=r"narrow: .*the two files differ.*adapter files: narrow"):
            prove_new(OpenedBundle.open_staged(folder, manifest))

    def test_other_weights_are_found(self, bundle: Path, tmp_path: Path) -> None:
        folder, manifest = _with_other_weights(bundle, tmp_path)
        with pytest.raises(ParityError, match=r"no adapter.*deviation"):
            prove_new(OpenedBundle.open_staged(folder, manifest))

    def test_unchanged_adapters_do_not_run_again(self, bundle: Path, tmp_path: Path) -> None:
        """`add` runs what it adds: the golden vectors of everything else cost as much as a build."""
        folder, manifest = _with_other_weights(bundle, tmp_path)
        names = {record.name for record in manifest.adapters}
        with pytest.raises(ParityError, match=r"`narrow`.*deviation") as failure:
            prove_new(OpenedBundle.open_staged(folder, manifest), unchanged={None, *names} - {"narrow"})
        assert "no adapter" not in str(failure.value)
        with pytest.raises(ParityError, match=r"no adapter.*deviation"):  # as for `remove`, which adds nothing
            prove_new(OpenedBundle.open_staged(folder, manifest), unchanged={None, *names})


def _with_other_weights(bundle: Path, parent: Path) -> tuple[Path, Manifest]:
    folder = shutil.copytree(bundle, parent / "bundle")
    weights = np.fromfile(folder / "base.bin", "<f4")
    (folder / "base.bin").unlink()  # a hard link to the base's file
    (weights * np.float32(1.01)).tofile(folder / "base.bin")
    return folder, read_manifest(folder)


def _bytes(model: ir.Model) -> int:
    tensors = (value.const_value for value in model.graph.initializers.values())
    return sum(tensor.nbytes for tensor in tensors if isinstance(tensor, ir.ExternalTensor))


def _with_weights(text: str, folder: Path) -> ir.Model:
    model = parser.parse_model(text)
    rng = np.random.default_rng(0)
    for name in ("one", "two", "three", "four"):
        model.graph.initializer.append(numpy_helper.from_array(rng.standard_normal((8, 8), np.float32), name))
    path = folder / "model.onnx"
    onnx.save(
        onnx.shape_inference.infer_shapes(model), path, save_as_external_data=True, location="data", size_threshold=0
    )
    return ir.load(path)
