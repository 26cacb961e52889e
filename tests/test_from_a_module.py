"""The Python of the documentation takes a module to a bundle; its identity goes with it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from tiers import extended

from adapter_export.format.adapter_files import read_adapter
from adapter_export.format.manifest_json import read_manifest
from adapter_export.onnx_backend.base.onnx_base import open_onnx
from adapter_export.runtime import Bundle
from adapter_export.torch_backend.attach import attach
from adapter_export.torch_backend.base.to_onnx import export_onnx
from adapter_export.torch_backend.base.torch_base import load_base

PAGE = Path(__file__).parents[1] / "docs" / "how-to" / "capture.md"


@pytest.fixture(scope="module")
@extended
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("made")
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.S)
    names: dict[str, Any] = {"__name__": "page"}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        exec(compile(code, "capture.md", "exec"), names)  # noqa: S102 - the page's own lines
    return folder, names


def test_the_bundle_gives_what_the_module_with_its_adapter_gives(made: tuple[Path, dict[str, Any]]) -> None:
    import numpy as np
    import torch

    folder, names = made
    ids = torch.randint(100, (3, 11))
    with torch.inference_mode():
        base = load_base(folder / "model.pt")
        expected = attach(base, read_adapter(folder / "mine")).head(input_ids=ids).numpy()
    plain = names["model"](input_ids=ids)
    assert set(plain) == {"hidden"}, "the module is as it was"
    found = Bundle.open(folder / "bundle").session().run({"input_ids": ids.numpy()}, "mine")
    np.testing.assert_allclose(found["logits"], expected, rtol=0, atol=1e-5)
    assert np.abs(expected).max() > 1e-3


def test_archive_graph_and_bundle_have_one_fingerprint(made: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = made
    base = load_base(folder / "model.pt")
    fingerprint = base.fingerprint
    export_onnx(base, folder / "model.onnx")
    assert open_onnx(folder / "model.onnx").fingerprint == fingerprint
    manifest = read_manifest(folder / "bundle")
    assert manifest.base == fingerprint
    assert [adapter.base for adapter in manifest.adapters] == [fingerprint]
