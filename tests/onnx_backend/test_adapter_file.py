from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from small_disk import small_disk

from adapter_export.errors import WriteError
from adapter_export.runtime.adapter_file import write_adapter_file

TENSORS = {
    "adapter.b.up.weight": np.arange(12, dtype=np.float32).reshape(3, 4),
    "adapter.a.down.bias": np.array([0.25, -1.5], np.float32),
}


def test_onnxruntime_reads_written_adapter_files(tmp_path: Path) -> None:
    write_adapter_file(tmp_path / "a.onnx_adapter", TENSORS, 5)
    read = ort.AdapterFormat.read_adapter(str(tmp_path / "a.onnx_adapter")).get_parameters()
    assert set(read) == set(TENSORS)
    for name, value in read.items():
        np.testing.assert_array_equal(value.numpy(), TENSORS[name])


def test_the_order_of_the_tensors_does_not_change_the_bytes(tmp_path: Path) -> None:
    write_adapter_file(tmp_path / "a", TENSORS, 5)
    write_adapter_file(tmp_path / "b", dict(reversed(TENSORS.items())), 5)
    digests = {hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() for name in "ab"}
    assert len(digests) == 1


def test_missing_folder_raises_a_write_error(tmp_path: Path) -> None:
    with pytest.raises(WriteError):
        write_adapter_file(tmp_path / "none" / "a.onnx_adapter", TENSORS, 5)


@pytest.mark.parametrize("limit", [0, 10_000, 40_000])
def test_full_disk_raises_a_write_error(tmp_path: Path, limit: int) -> None:
    with small_disk(limit), pytest.raises(WriteError):
        write_adapter_file(tmp_path / "a", {"w": np.ones((100, 100), np.float32)}, 5)
