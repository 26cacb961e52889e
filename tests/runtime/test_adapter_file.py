from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from adapter_export.errors import FormatError, TensorError
from adapter_export.runtime.adapter_file import model_version_of, parse_adapter, write_adapter_file

VERSION = 2**31 - 5
TENSORS = {
    "adapter.a.down.weight": np.arange(12, dtype=np.float32).reshape(3, 4),
    "adapter.a.down.bias": np.array([0.25, -1.5], np.float32),
    "adapter.ü.up.weight": np.ones((1, 2, 3), np.float32),
}


@pytest.fixture
def whole(tmp_path: Path) -> bytes:
    write_adapter_file(tmp_path / "a", TENSORS, VERSION)
    return (tmp_path / "a").read_bytes()


def _written(path: Path, tensors: dict[str, np.ndarray]) -> bytes:
    adapter = ort.AdapterFormat()
    adapter.set_parameters({name: ort.OrtValue.ortvalue_from_numpy(value) for name, value in tensors.items()})
    adapter.export_adapter(str(path))
    return path.read_bytes()


def test_files_written_by_onnxruntime_are_read(whole: bytes) -> None:
    found = parse_adapter(whole, "a")
    assert set(found) == set(TENSORS)
    for name, tensor in found.items():
        np.testing.assert_array_equal(tensor, TENSORS[name])
        assert tensor.dtype == np.float32
        assert tensor.flags.aligned
        assert not tensor.flags.writeable  # a view of the bytes that were checked


def test_the_number_of_the_graph_is_read(whole: bytes, tmp_path: Path) -> None:
    assert model_version_of(whole, "a") == VERSION
    assert model_version_of(_written(tmp_path / "a", TENSORS), "a") == 0


def test_empty_adapter_files_are_read(tmp_path: Path) -> None:
    assert parse_adapter(_written(tmp_path / "a", {}), "a") == {}


@pytest.mark.parametrize("dtype", [np.float64, np.int64, np.bool_])
def test_tensors_of_other_types_are_refused(tmp_path: Path, dtype: type) -> None:
    with pytest.raises(TensorError, match="unsupported type"):
        parse_adapter(_written(tmp_path / "a", {"w": np.ones((2, 2), dtype)}), "a")


@pytest.mark.parametrize("shape", [(), (0,), (2, 0)])
def test_scalars_and_empty_tensors_are_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(FormatError):
        parse_adapter(_written(tmp_path / "a", {"w": np.ones(shape, np.float32)}), "a")


def test_shapes_beyond_the_data_are_refused(whole: bytes) -> None:
    """Before 1.24.3, onnxruntime reads past the end of the buffer."""
    old, new = np.array([3, 4], "<i8").tobytes(), np.array([3000, 4000], "<i8").tobytes()
    assert whole.count(old) == 1
    with pytest.raises(TensorError, match=r"\[3000, 4000\] in 48 bytes"):
        parse_adapter(whole.replace(old, new), "a")


def test_negative_shapes_are_refused(whole: bytes) -> None:
    old, new = np.array([3, 4], "<i8").tobytes(), np.array([-3, -4], "<i8").tobytes()
    with pytest.raises(TensorError, match=r"\[-3, -4\]"):
        parse_adapter(whole.replace(old, new), "a")


def test_every_truncation_is_refused(whole: bytes) -> None:
    padding = 4  # zeros behind the last name
    for size in range(len(whole) - padding):
        with pytest.raises(FormatError):
            parse_adapter(whole[:size], "a")


def test_no_damage_raises_anything_but_a_named_error(whole: bytes) -> None:
    rng = random.Random(0)
    refused = 0
    for _ in range(4000):
        damaged = bytearray(whole)
        for _ in range(rng.choice([1, 1, 4])):
            damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        try:
            parse_adapter(bytes(damaged), "a")
        except FormatError:
            refused += 1
    assert refused > 1000


@pytest.mark.parametrize("data", [b"", b"TORT", b"\x00" * 64, b'{"a": 1}', b"\xff\xff\xff\xffTORT"])
def test_files_of_another_format_are_refused(data: bytes) -> None:
    with pytest.raises(FormatError):
        parse_adapter(data, "a")
