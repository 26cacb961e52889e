"""The example that pushes, pulls and pins a bundle runs."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
from oci_registry import OciRegistry
from tiny_onnx import tiny_bundle

EXAMPLE = Path(__file__).parents[2] / "examples" / "share.py"


def test_a_tag_moves_and_a_digest_stays(
    registry: OciRegistry,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ADAPTER_EXPORT_CACHE", str(tmp_path / "cache"))
    bundle = tiny_bundle(tmp_path_factory)
    runpy.run_path(str(EXAMPLE))["main"](str(bundle), f"oci://{registry.host}/examples/tiny:now")
    said = capsys.readouterr().out
    assert "a pull contains wide, narrow" in said
    assert said.count("has moved: it was `sha256:") == 2
    assert "a pull that expects the first one fails: does not match the expected digest" in said
    assert "and still has it by its digest: sha256:" in said
