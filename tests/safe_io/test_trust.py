"""Inputs that once hung the tool, or ended it with a traceback: each is a named error."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper
from safetensors.numpy import save

from adapter_export.bundle.golden.golden_vectors import read_golden
from adapter_export.commands.bundles._run_rows import read_arrays
from adapter_export.errors import (
    AdapterError,
    BaseModelError,
    DataError,
    FormatError,
    TensorError,
    TrainingError,
)
from adapter_export.format.manifest import GoldenRecord, InputRecord
from adapter_export.format.tabular.table_files import open_table
from adapter_export.graph.adapter import check_name
from adapter_export.onnx_backend.base.onnx_base import open_onnx
from adapter_export.runtime.adapter_file import model_version_of, parse_adapter
from adapter_export.torch_backend.base.pickles import _pickles, read_torch_file
from adapter_export.training.loop.checkpoint import read_checkpoint


def test_an_empty_tensor_with_huge_dimensions_is_read(tmp_path: Path) -> None:
    torch.save({"a": torch.empty(0, 2**40, 5)}, tmp_path / "a.bin")
    assert read_torch_file(tmp_path / "a.bin")["a"].shape == (0, 2**40, 5)


def test_old_pickles_with_invalid_keys_are_refused(tmp_path: Path) -> None:
    file = io.BytesIO()
    torch.save({"a": torch.ones(1)}, file, _use_new_zipfile_serialization=False)
    data = file.getvalue()
    *others, keys = _pickles(data)
    start = sum(map(len, others))
    (tmp_path / "a.bin").write_bytes(data[:start] + b"\x80\x02]q\x00]q\x01a." + data[start + len(keys) :])
    with pytest.raises(FormatError):
        read_torch_file(tmp_path / "a.bin")


def test_a_field_table_outside_of_the_file_is_refused(tmp_path: Path) -> None:
    adapter = ort.AdapterFormat()
    adapter.set_model_version(7)
    adapter.set_parameters({"a": ort.OrtValue.ortvalue_from_numpy(np.ones(2, np.float32))})
    adapter.export_adapter(str(tmp_path / "a"))
    data = bytearray((tmp_path / "a").read_bytes())
    root = int.from_bytes(data[:4], "little")
    fields = root - int.from_bytes(data[root : root + 4], "little", signed=True)
    data[fields + 8 : fields + 10] = (0xFFF0).to_bytes(2, "little")  # where `model_version` is
    parse_adapter(bytes(data), "a")
    with pytest.raises(FormatError, match="is truncated or damaged"):
        model_version_of(bytes(data), "a")


def _npz(method: int = zipfile.ZIP_STORED, content: bytes | None = None) -> bytes:
    array, packed = io.BytesIO(), io.BytesIO()
    np.save(array, np.ones((2, 3), np.float32))
    with zipfile.ZipFile(packed, "w", method) as archive:
        archive.writestr("a.npy", array.getvalue() if content is None else content)
    return packed.getvalue()


def _encrypted() -> bytes:
    data = bytearray(_npz())
    for mark, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(mark) + at] |= 1
    return bytes(data)


def _odd_compression() -> bytes:
    data = bytearray(_npz())
    for mark, at in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
        data[data.index(mark) + at] = 97
    return bytes(data)


@pytest.mark.parametrize(
    "data",
    [
        _npz(content=b"\x93NUMPY\x01\x00\x08\x00{'a': (}"),
        _npz(content=b"\x93NUMPY\x01\x00\xff\xff{"),
        _npz(content=b"\x93NUMPY\x09\x09"),
        _encrypted(),
        _odd_compression(),
        b"PK\x03\x04",
        b"",
    ],
)
def test_damaged_npz_files_are_refused(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(data)
    with pytest.raises(FormatError, match=r"is not an `\.npz` file of arrays"):
        read_arrays(tmp_path / "a.npz")


def test_golden_inputs_of_a_wrong_rank_are_refused(tmp_path: Path) -> None:
    arrays = {"one.input.ids": np.ones(3, np.int64), "one.output.y": np.ones((1, 3), np.float32)}
    (tmp_path / "g.safetensors").write_bytes(save(arrays))
    record = GoldenRecord("g.safetensors", ("one",), {"y": 1e-5}, "torch")
    with pytest.raises(TensorError, match=r"do not match their cases.*`one.input.ids` \[3\], expected 2 axes"):
        read_golden(tmp_path, None, record, [InputRecord("ids", "int64", ("batch", "tokens"), "ids")])


@pytest.mark.parametrize("value", ["1" * 5000, "[" * 100_000, '"\\ud800', "nul"])
def test_unreadable_table_lines_are_named(value: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(f'{{"text": "a"}}\n{{"n": {value}}}\n')
    table = open_table(tmp_path / "a.jsonl")
    assert [cells for _, cells in table.rows([])] == [{"text": "a"}]
    with pytest.raises(DataError, match="line 2: is not JSON"):
        table.faults.check()


@pytest.mark.parametrize("state", ["[]", "3", "null", '{"history": 1}', "{", '{"history": [{"validation": []}]}'])
def test_damaged_checkpoint_states_are_refused(state: str, tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    path.write_bytes(save({"weights/a": np.ones(1, np.float32)}, {"run": "{}", "state": state}))
    with pytest.raises(TrainingError, match="the checkpoint is damaged"):
        read_checkpoint(path, {})


@pytest.mark.parametrize("name", ["CON", "con", "NUL.v1", "com7", "LPT9"])
def test_a_name_that_windows_gives_to_devices(name: str) -> None:
    with pytest.raises(AdapterError, match="no file may have on Windows"):
        check_name(name)
    assert check_name("console") == "console"


@pytest.mark.parametrize("where", ["weight", "input"])
def test_dimensions_beyond_memory_are_refused(where: str, tmp_path: Path) -> None:
    """`free some space` is not what helps here."""
    most = 2**40
    weight = helper.make_tensor("w", TensorProto.FLOAT, [8, 8], bytes(256), raw=True)
    weight.dims[0] = most if where == "weight" else 8
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", most if where == "input" else 3, 8])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3, 8])
    nodes = [helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("Add", ["m", "x"], ["y"])]
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(
        helper.make_model(helper.make_graph(nodes, "g", [x], [y], [weight]), opset_imports=opsets), tmp_path / "a.onnx"
    )
    with pytest.raises(BaseModelError) as caught:
        open_onnx(tmp_path / "a.onnx")
    assert "space" not in str(caught.value)
