from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from tiny_onnx import token_inputs

from adapter_export.errors import AdapterExportError, FileError, FormatError, HashError, UsageError, VersionError
from adapter_export.format.manifest_json import write_manifest
from adapter_export.runtime import Bundle

FILES = (
    "model.onnx",
    "base.bin",
    "adapters/wide.onnx_adapter",
    "adapters/wide.safetensors",
    "adapters/wide/adapter_graph.json",
    "adapters/wide/weights.safetensors",
    "golden/base.safetensors",
    "golden/wide.safetensors",
)


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _link_out(path: Path) -> None:
    outside = next(folder.parent for folder in path.parents if folder.name == "bundle") / path.name
    path.rename(outside)
    path.symlink_to(outside)


class TestDamage:
    @pytest.mark.parametrize("name", FILES)
    @pytest.mark.parametrize(
        ("change", "error"),
        [(_flip, HashError), (_cut, FormatError), (Path.unlink, FileError), (_link_out, FileError)],
        ids=["flipped", "cut", "removed", "linked"],
    )
    def test_every_file_is_held_against_its_hash(
        self, copy: Path, name: str, change: Callable[[Path], None], error: type[AdapterExportError]
    ) -> None:
        Bundle.open(copy)
        change(copy / name)
        with pytest.raises(error, match=Path(name).name):
            Bundle.open(copy)

    def test_open_accepts_only_the_expected_bundle(self, copy: Path) -> None:
        digest = hashlib.sha256((copy / "manifest.json").read_bytes()).hexdigest()
        assert Bundle.open(copy, expect=digest).verified
        with pytest.raises(HashError, match="expected"):
            Bundle.open(copy, expect="0" * 64)

    def test_unverified_damaged_graphs_still_raise_errors(self, copy: Path) -> None:
        _cut(copy / "model.onnx")
        with pytest.raises(FormatError, match="cannot open the graph"):
            Bundle.open(copy, verify=False).session()
        (copy / "base.bin").unlink()
        with pytest.raises(FormatError, match="cannot open the graph"):
            Bundle.open(copy, verify=False).session()

    def test_invalid_manifests_are_refused(self, copy: Path) -> None:
        (copy / "manifest.json").write_text("{")
        with pytest.raises(FormatError, match="not valid JSON"):
            Bundle.open(copy)

    def test_folder_without_a_bundle_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(FileError, match="is not a bundle"):
            Bundle.open(tmp_path)


class TestRuntimeVersion:
    def test_bundles_for_a_newer_runtime_are_refused(self, copy: Path) -> None:
        manifest = Bundle.open(copy).manifest
        write_manifest(replace(manifest, minimum_onnxruntime="99.1"), copy)
        with pytest.raises(VersionError, match=r"expected 99\.1 or newer"):
            Bundle.open(copy)

    @pytest.mark.parametrize("version", ["1.21", "1.9.9", "1.21.0"])
    def test_numbers_are_compared_as_numbers(self, copy: Path, version: str) -> None:
        manifest = Bundle.open(copy).manifest
        write_manifest(replace(manifest, minimum_onnxruntime=version), copy)
        Bundle.open(copy)


class TestProviders:
    def test_cuda_matches_the_cpu_or_is_refused(self, bundle: Bundle) -> None:
        """With or without CUDA, a session never falls back to the CPU silently."""
        if "CUDAExecutionProvider" not in ort.get_available_providers():
            with pytest.raises(UsageError, match=r"`cuda` is not available here.*CPUExecutionProvider"):
                bundle.session(provider="cuda")
            return
        inputs = token_inputs(5, 3)
        cpu, cuda = bundle.session(), bundle.session(provider="cuda")
        for name in (None, *cpu.adapters):
            for output, expected in cpu.run(inputs, name).items():
                np.testing.assert_allclose(cuda.run(inputs, name)[output], expected, rtol=0, atol=1e-4)

    def test_unknown_providers_are_refused(self, bundle: Bundle) -> None:
        with pytest.raises(UsageError, match=r"`gpu`.*cpu, cuda"):
            bundle.session(provider="gpu")  # type: ignore[arg-type]

    def test_unknown_optimization_levels_are_refused(self, bundle: Bundle) -> None:
        with pytest.raises(UsageError, match=r"`most`.*all, basic, none"):
            bundle.session(optimization="most")  # type: ignore[arg-type]

    @pytest.mark.parametrize("threads", [0, -1])
    def test_sessions_without_threads_are_refused(self, bundle: Bundle, threads: int) -> None:
        with pytest.raises(UsageError, match="thread"):
            bundle.session(threads=threads)


@pytest.mark.extended
def test_opening_a_session_logs_nothing(built: Path) -> None:
    """ONNX Runtime writes one warning for each slot unless the log level is changed."""
    code = f"from adapter_export.runtime import Bundle; Bundle.open({str(built)!r}).session()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


@pytest.mark.extended
def test_a_call_that_fails_is_raised_and_not_logged(built: Path) -> None:
    code = f"""
import numpy as np
from adapter_export.errors import RequestError
from adapter_export.runtime import Bundle
session = Bundle.open({str(built)!r}).session()
try:
    session._graphs.single().session.run_with_ort_values(["hidden"], {{}})
except ValueError:
    pass
ids = np.zeros((1, 3), np.int64)
try:
    session.run({{"input_ids": ids, "attention_mask": ids[:, :2]}})
except RequestError as error:
    print("refused")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("refused\n", "")
