from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from tiny_onnx import VOCABULARY, WIDTH, save_tiny, tiny_model, token_inputs

from adapter_export.errors import BaseModelError, FileError, InputError
from adapter_export.format.manifest import InputRecord, OutputRecord
from adapter_export.onnx_backend.base.onnx_base import FINGERPRINT_KEY, OnnxBase, open_onnx
from adapter_export.onnx_backend.onnx_runner import CutRunner


class TestDescription:
    def test_inputs_of_the_base_have_their_roles(self, base: OnnxBase) -> None:
        assert base.inputs == (
            InputRecord("input_ids", "int64", ("batch", "tokens"), "ids", VOCABULARY),
            InputRecord("attention_mask", "int64", ("batch", "tokens"), "mask"),
        )
        assert base.mask == "attention_mask"

    def test_outputs_keep_their_names_and_axes(self, base: OnnxBase) -> None:
        assert base.outputs == (OutputRecord("hidden", "float32", ("batch", "tokens", WIDTH)),)

    def test_sites_of_every_layer_are_found(self, base: OnnxBase) -> None:
        assert [site.name for site in base.sites.sublayers] == [
            f"layers.{i}.{role}" for i in (0, 1) for role in ("attention", "ffn")
        ]

    def test_an_id_behind_a_cast_counts_as_one(self, tmp_path: Path) -> None:
        model = tiny_model(inputs="int32[batch, tokens] input_ids, bool[batch, tokens] attention_mask")
        gather = next(node for node in model.graph.node if node.op_type == "Gather")
        gather.input[1] = "wide"
        model.graph.node.insert(0, onnx.helper.make_node("Cast", ["input_ids"], ["wide"], to=7))
        ids, mask = open_onnx(save_tiny(tmp_path, model)).inputs
        assert (ids.role, ids.limit, ids.dtype) == ("ids", VOCABULARY, "int32")
        assert (mask.role, mask.dtype) == ("mask", "bool")

    def test_an_axis_without_a_name_gets_one(self, tmp_path: Path) -> None:
        model = tiny_model()
        for value in model.graph.input:
            value.type.tensor_type.shape.dim[0].Clear()
        assert [record.axes for record in open_onnx(save_tiny(tmp_path, model)).inputs] == [
            ("input_ids.0", "tokens")
        ] * 2

    def test_several_masks_are_refused_when_one_is_needed(self, tmp_path: Path) -> None:
        inputs = "int64[batch, tokens] input_ids, int64[batch, tokens] attention_mask, bool[batch, tokens] other"
        base = open_onnx(save_tiny(tmp_path, tiny_model(inputs=inputs)))
        with pytest.raises(BaseModelError, match="`attention_mask`, `other`"):
            _ = base.mask


class TestFingerprint:
    def test_fingerprint_changes_with_the_weights(self, base: OnnxBase, tmp_path: Path) -> None:
        assert open_onnx(save_tiny(tmp_path)).fingerprint == base.fingerprint
        other = save_tiny(tmp_path, tiny_model(seed=1))
        assert open_onnx(other).fingerprint != base.fingerprint

    def test_fingerprint_is_equal_with_weights_in_the_file(self, base: OnnxBase, tmp_path: Path) -> None:
        onnx.save(tiny_model(), tmp_path / "whole.onnx")
        assert open_onnx(tmp_path / "whole.onnx").fingerprint == base.fingerprint

    def test_fingerprint_is_read_from_the_exported_archive(self, tmp_path: Path) -> None:
        model = tiny_model()
        onnx.helper.set_model_props(model, {FINGERPRINT_KEY: "sha256:abc"})
        assert open_onnx(save_tiny(tmp_path, model)).fingerprint == "sha256:abc"


class TestOverridableBase:
    """A base whose weights are also inputs: IR 3 requires it, and some later exporters do it, too."""

    @pytest.mark.parametrize("ir_version", [3, 8])
    def test_overridable_weights_become_constants(self, base: OnnxBase, tmp_path: Path, ir_version: int) -> None:
        model = tiny_model()
        model.ir_version = ir_version
        for tensor in model.graph.initializer:
            model.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
        opened = open_onnx(save_tiny(tmp_path, model))
        assert [value.name for value in opened.model.graph.inputs] == ["input_ids", "attention_mask"]
        assert opened.inputs == base.inputs
        assert opened.model.ir_version >= 4


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def _remove_data(path: Path) -> None:
    path.with_name("tiny.onnx.data").unlink()


def _cut_data(path: Path) -> None:
    _cut(path.with_name("tiny.onnx.data"))


def _relocate(location: str) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        model = onnx.load(path, load_external_data=False)
        for tensor in model.graph.initializer:
            for entry in tensor.external_data:
                entry.value = location if entry.key == "location" else entry.value
        path.write_bytes(model.SerializeToString())

    return change


def _link_outside(path: Path) -> None:
    data = path.with_name("tiny.onnx.data")
    outside = path.parent.parent / "outside.data"
    data.rename(outside)
    data.symlink_to(outside)


class TestBadFiles:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda path: path.write_bytes(b""), "not an ONNX model"),
            (lambda path: path.write_bytes(b"PK\x03\x04" + bytes(100)), "not an ONNX model"),
            (lambda path: path.write_text("<html>not found</html>"), "not an ONNX model"),
            (_cut, "not an ONNX model"),
            (_remove_data, "is missing, but contains weights of the model"),
            (_cut_data, "is truncated"),
            (_relocate("/etc/passwd"), "outside its folder"),
            (_relocate("../tiny.onnx.data"), "outside its folder"),
            (_link_outside, "outside its folder"),
        ],
        ids=["empty", "zip", "text", "cut", "no-data", "cut-data", "absolute", "parent", "link"],
    )
    def test_invalid_model_files_are_refused_by_name(
        self, tmp_path: Path, change: Callable[[Path], None], message: str
    ) -> None:
        (tmp_path / "model").mkdir()
        path = save_tiny(tmp_path / "model")
        change(path)
        with pytest.raises(BaseModelError, match=message):
            open_onnx(path)

    def test_missing_model_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(FileError, match="does not exist"):
            open_onnx(tmp_path / "none.onnx")

    def test_every_truncation_is_an_error_of_this_package(self, tmp_path: Path) -> None:
        whole = save_tiny(tmp_path).read_bytes()
        path = tmp_path / "cut.onnx"
        for size in range(0, len(whole) - 1, 97):
            path.write_bytes(whole[:size])
            with pytest.raises(InputError):
                open_onnx(path)


class TestLinks:
    def test_a_cache_may_keep_model_and_data_as_links_into_one_folder(self, base: OnnxBase, tmp_path: Path) -> None:
        (tmp_path / "blobs").mkdir()
        (tmp_path / "snapshot").mkdir()
        save_tiny(tmp_path / "blobs")
        for name in ("tiny.onnx", "tiny.onnx.data"):
            (tmp_path / "snapshot" / name).symlink_to(tmp_path / "blobs" / name)
        linked = open_onnx(tmp_path / "snapshot" / "tiny.onnx")
        assert linked.fingerprint == base.fingerprint
        inputs = token_inputs(4, 2)
        found = CutRunner(linked).run(inputs, None)["hidden"]
        np.testing.assert_array_equal(found, CutRunner(base).run(inputs, None)["hidden"])

    def test_data_with_a_second_hard_link_are_read(self, base: OnnxBase, tmp_path: Path) -> None:
        path = save_tiny(tmp_path)
        os.link(tmp_path / "tiny.onnx.data", tmp_path / "second")
        assert open_onnx(path).fingerprint == base.fingerprint


def test_the_weights_stay_on_disk(tmp_path: Path) -> None:
    """A weight of 400 MB, never read: the file is sparse."""
    model = tiny_model()
    onnx.helper.set_model_props(model, {FINGERPRINT_KEY: "sha256:abc"})
    path = save_tiny(tmp_path, model)
    large = numpy_helper.from_array(np.zeros(1, np.float32), "large")
    model = onnx.load(path, load_external_data=False)
    large.dims[:] = [100_000_000]
    large.ClearField("raw_data")
    large.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", "hole"), ("offset", "0"), ("length", "400000000")):
        large.external_data.add(key=key, value=value)
    model.graph.initializer.append(large)
    path.write_bytes(model.SerializeToString())
    with (tmp_path / "hole").open("wb") as file:
        file.truncate(400_000_000)
    before = _resident_bytes()
    open_onnx(path)
    assert _resident_bytes() - before < 50_000_000


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1]) if Path("/proc/self/statm").exists() else 0
    return pages * os.sysconf("SC_PAGE_SIZE")
