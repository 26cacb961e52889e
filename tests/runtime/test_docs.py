"""The Python code of `docs/how-to/runtime-options.md` runs in its order."""

from __future__ import annotations

import re
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from building import build_bundle
from small_media import noise, png
from tiers import extended
from tiny_onnx import random_adapter, save_tiny

from adapter_export.graph.compose import weighted_fusion
from adapter_export.graph.kinds import houlsby
from adapter_export.numerics.sample_inputs import input_cases
from adapter_export.onnx_backend.base.onnx_base import open_onnx
from adapter_export.onnx_backend.onnx_runner import CutRunner

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "runtime-options.md"
SNIPPETS = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text("utf-8"), re.S | re.M)


@pytest.fixture
@extended
def folder(tmp_path: Path, vit_folder: Path) -> Path:
    """`bundle` with `a` and `b`; `c.onnx_adapter`, built for the same graph; `images` of a ViT."""
    shutil.copytree(vit_folder / "bundle", tmp_path / "images")
    (tmp_path / "seven.png").write_bytes(png(noise(8, 8)))
    base = open_onnx(save_tiny(tmp_path))
    labels = {"a": "no,yes", "b": "red,green,blue", "c": "x,y,z"}
    made = {
        name: random_adapter(name, houlsby(), base, bottleneck=3 + index, labels=text.split(","))
        for index, (name, text) in enumerate(labels.items())
    }
    cases = input_cases(base.inputs, seed=0, shapes=[{"batch": 1, "tokens": 3}])
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"?": 0, "How": 1, "far": 2, "moon": 3}, unk_token="?"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    given = {"references": CutRunner(base), "cases": cases, "tokenizer": words.to_str(), "max_tokens": 20}
    made["fused"] = weighted_fusion(made["a"], made["b"], name="fused", head="b")
    build_bundle(base, list(made.values()), tmp_path / "all", variants=[], **given)
    build_bundle(
        base,
        [made[name] for name in ("a", "b", "fused")],
        tmp_path / "bundle",
        variants=["bank", "fanout"],
        **given,
    )
    (tmp_path / "all/adapters/c.onnx_adapter").rename(tmp_path / "c.onnx_adapter")
    return tmp_path


def test_every_snippet_of_runtime_options_runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {}
    for number, snippet in enumerate(SNIPPETS):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "runs on `cpu`", RuntimeWarning)  # where there is no GPU
            exec(compile(snippet, f"docs/how-to/runtime-options.md, snippet {number}", "exec"), names)  # noqa: S102
    assert {"mixed", "weighed", "results", "many", "on_device"} <= names.keys(), "a part of the page has no code"
    assert len(SNIPPETS) == 16


def test_every_public_method_is_on_the_page() -> None:
    from adapter_export.runtime import Session
    from adapter_export.tables import Described

    page = PAGE.read_text("utf-8")
    public = [name for name in vars(Session) if not name.startswith("_") and name not in vars(Described)]
    assert [name for name in public if not re.search(rf"\b{name}\b", page)] == []
