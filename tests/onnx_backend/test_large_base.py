"""A large base is linked and mapped piece by piece, never in memory; see also `benchmarks/large_base.py`."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from tiny_onnx import build_tiny, save_tiny, tiny_model

from adapter_export.errors import HashError
from adapter_export.format.manifest_json import read_manifest, verify_files
from adapter_export.onnx_backend.base.external import readable, write_model
from adapter_export.onnx_backend.base.onnx_base import OnnxBase, open_onnx

PROGRAM = Path(__file__).parents[2] / "benchmarks" / "large_base.py"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.extended
def test_a_bundle_is_built_in_less_memory_than_its_base_takes(tmp_path: Path) -> None:
    """At most one piece of 300 MB is mapped at a time. Time is processor time.

    Two seconds of it open the graph in the sandbox first.
    """
    options = ["--gigabytes", "0.3", "--width", "1024", "--folder", str(tmp_path), "--", "--max-tokens", "2"]
    done = subprocess.run([sys.executable, str(PROGRAM), *options], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "base.bin is a hard link" in done.stdout
    assert _megabytes(done.stdout, "base: ([\\d.]+) GB") * 1000 > 280
    assert 60 < _megabytes(done.stdout, "anonymous memory: (\\d+) MB") < 210
    assert 40 < _megabytes(done.stdout, "of files at most (\\d+) MB") < 240
    assert _megabytes(done.stdout, "of all processors ([\\d.]+) s") < _megabytes(done.stdout, "copy.*: ([\\d.]+) s") + 8
    assert not list(tmp_path.iterdir())


def _megabytes(text: str, pattern: str) -> float:
    found = re.search(pattern, text)
    assert found is not None, text
    return float(found[1])


class TestLinks:
    def test_the_weights_of_one_file_are_linked(self, tmp_path: Path) -> None:
        """Writing into that file is detected; replacing it leaves the bundle unchanged."""
        bundle, data, new = build_tiny(tmp_path), tmp_path / "tiny.onnx.data", tmp_path / "new"
        assert (bundle / "base.bin").samefile(data)
        start = data.read_bytes()[:4]
        with data.open("r+b") as file:
            file.write(b"\x00\x01\x02\x03")
        with pytest.raises(HashError, match=r"base\.bin"):
            verify_files(read_manifest(bundle), bundle)
        with data.open("r+b") as file:
            file.write(start)
        new.write_bytes(b"other weights")
        new.replace(data)
        verify_files(read_manifest(bundle), bundle)

    def test_copies_are_made_on_request(self, base: OnnxBase, tmp_path: Path) -> None:
        write_model(base.model.clone(), tmp_path / "model.onnx", copy_weights=True)
        assert (tmp_path / "base.bin").stat().st_nlink == 1
        _check_same(base, tmp_path / "model.onnx")

    def test_a_file_on_another_file_system_is_copied(
        self, base: OnnxBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*_: object) -> None:
            raise OSError(18, os.strerror(18))

        monkeypatch.setattr(os, "link", refuse)
        write_model(base.model.clone(), tmp_path / "model.onnx")
        _check_same(base, tmp_path / "model.onnx")

    def test_a_file_with_much_besides_is_copied(self, tmp_path: Path) -> None:
        path = save_tiny(tmp_path)
        data = path.with_name("tiny.onnx.data")
        size = data.stat().st_size
        with data.open("ab") as file:
            file.truncate(2 * size)
        base = open_onnx(path)
        write_model(base.model, tmp_path / "model.onnx")
        assert (tmp_path / "base.bin").stat().st_size <= size

    def test_weights_inside_of_the_graph_are_written(self, tmp_path: Path) -> None:
        path = tmp_path / "inside.onnx"
        path.write_bytes(tiny_model().SerializeToString())
        base = open_onnx(path)
        write_model(base.model.clone(), tmp_path / "model.onnx")
        assert (tmp_path / "base.bin").stat().st_nlink == 1
        _check_same(base, tmp_path / "model.onnx")


def _check_same(base: OnnxBase, path: Path) -> None:
    found = ir.load(path).graph.initializers
    for name, value in base.model.graph.initializers.items():
        expected, given = value.const_value, found[name].const_value
        assert expected is not None
        assert given is not None
        np.testing.assert_array_equal(readable(given).numpy(), readable(expected).numpy())
