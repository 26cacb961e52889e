"""`ship --layout transformers.js`: the folder, and its answers in Node and Chromium against golden data."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from clients import Client, alike, last_line
from safetensors.numpy import load_file
from small_bundle import LENGTHS, build_small, small_tokenizer
from transformers_js import HERE, LAYOUT, TransformersJs

import adapter_export as ae
from adapter_export.errors import UsageError

OTHERWISE = re.compile("[\0\u0085\ufeff]")
SINGLE = ("topic", "tags", "vector")
"""Adapters of `text_folder` that answer single texts: by a label, by labels that apply, by a vector."""


def test_the_graph_gives_the_bits_of_the_bank(bundle: Path, tmp_path: Path) -> None:
    folder = ae.ship(bundle, tmp_path / "out", layout=LAYOUT).folder
    assert sorted(path.name for path in (folder / "onnx").iterdir()) == ["model.onnx", "model.onnx_data"]
    manifest = json.loads((bundle / "manifest.json").read_text())
    found, expected = (ort.InferenceSession(path) for path in (folder / "onnx/model.onnx", bundle / "model.bank.onnx"))
    adapters = json.loads((folder / "adapters.json").read_text())
    for record in manifest["adapters"]:
        golden = load_file(bundle / record["golden"]["path"])
        row = adapters[record["name"]]["row"]
        assert manifest["bank"]["rows"][row] == record["name"]
        for case in record["golden"]["cases"]:
            feeds = {one["name"]: golden[f"{case}.input.{one['name']}"] for one in manifest["inputs"]}
            feeds["adapter_ids"] = np.full(len(feeds["input_ids"]), row)
            for one, other in zip(found.run(None, feeds), expected.run(None, feeds), strict=True):
                assert one.tobytes() == other.tobytes()


def test_config_records_whether_rows_mix(bundle: Path, counted: Path, tmp_path: Path) -> None:
    facts = [
        json.loads((ae.ship(one, tmp_path / str(at), layout=LAYOUT).folder / "config.json").read_text())
        for at, one in enumerate((bundle, counted))
    ]
    assert [one["adapter_export"]["mixes_rows"] for one in facts] == [True, False]
    assert all(one["transformers.js_config"]["use_external_data_format"] for one in facts)


@pytest.mark.parametrize(
    ("variants", "tokenizer", "words"), [(["inputs"], True, "no graph"), (None, False, "no token")]
)
def test_a_bundle_without_a_bank_or_a_tokenizer_is_refused(
    variants: list[str] | None, tokenizer: bool, words: str, tmp_path: Path
) -> None:
    text = small_tokenizer() if tokenizer else None
    plain = build_small(tmp_path, variants, ("input_ids", "attention_mask"), text).folder
    with pytest.raises(UsageError, match=words):
        ae.ship(plain, tmp_path / "out", layout=LAYOUT)
    assert not (tmp_path / "out").exists()


def test_fixed_lengths_are_padded_or_refused(tmp_path: Path) -> None:
    folder = build_small(tmp_path, None, ("input_ids", "attention_mask"), small_tokenizer(), lengths=LENGTHS[1]).folder
    config = json.loads((ae.ship(folder, tmp_path / "out", layout=LAYOUT).folder / "config.json").read_text())
    assert config["adapter_export"]["padded_to"] == 40


def _golden_rows(bundle: Path, names: Iterable[str]) -> list[dict[str, Any]]:
    """Return golden texts and answers of adapters whose tokenization in JavaScript equals that of other clients."""
    sets = {one["adapter"]: one for one in json.loads((bundle / "golden" / "texts.json").read_text())["sets"]}
    return [
        {**golden, "adapter": name, "absolute": sets[name]["absolute"]}
        for name in names
        for golden in sets[name]["texts"]
        if golden["answer"] is not None and golden["pair"] is None and not OTHERWISE.search(golden["text"])
    ]


def _compare(found: list[dict[str, Any]], rows: list[dict[str, Any]]) -> None:
    """Compare numbers with golden answers within their budget, and labels that rounding cannot change."""
    assert len(found) == len(rows)
    for answer, row in zip(found, rows, strict=True):
        expected: Mapping[str, Any] = row["answer"]
        own = {key: answer[key] for key in answer if key not in ("adapter", "task", "cut")}
        if not row["decided"]:
            own, expected = ({key: one[key] for key in one if not key.startswith("label")} for one in (own, expected))
        alike(own, expected, row["absolute"])


def _asked(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, str]]:
    return [{"text": row["text"], "adapter": row["adapter"]} for row in rows]


@pytest.mark.extended
def test_node_answers_rows_of_different_adapters_in_one_call(
    text_folder: Path, transformers_js: TransformersJs
) -> None:
    rows = _golden_rows(text_folder / "bundle", SINGLE)
    assert any("Σ" in row["text"] for row in rows)
    _compare(transformers_js.answer(text_folder / "bundle", _asked(rows)), rows)


@pytest.mark.extended
@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"text": "a", "adapter": "nothing"}, "no adapter `nothing`: expected one of topic"),
        ({"text": "a", "adapter": "place"}, "answers no single texts (task span, input pair)"),
        ({"text": "a\ufeff", "adapter": "topic"}, "a character"),
        ({"text": "a \ud800", "adapter": "topic"}, "a character"),
    ],
)
def test_unanswerable_rows_raise_errors(
    row: Mapping[str, str], words: str, text_folder: Path, transformers_js: TransformersJs
) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        transformers_js.answer(text_folder / "bundle", [row])


@pytest.mark.extended
def test_a_page_answers_in_webassembly_and_on_webgpu(
    text_folder: Path, transformers_js: TransformersJs, browser_client: Client, tmp_path: Path
) -> None:
    golden = _golden_rows(text_folder / "bundle", SINGLE)
    # few, as SwiftShader is slow
    rows = [row for name in SINGLE for row in [one for one in golden if one["adapter"] == name][:3]]
    (tmp_path / "rows.json").write_text(json.dumps(_asked(rows)))
    node, program = browser_client.command
    script = Client((node,), browser_client.variants, browser_client.environment)
    folder = transformers_js.ship(text_folder / "bundle")
    words = [HERE / "page.mjs", Path(program).parent, folder.parent, folder.name, tmp_path / "rows.json"]
    done = script.call(*words, "wasm", "webgpu")
    assert done.returncode == 0, last_line(done)
    found = json.loads(done.stdout)
    assert found["wasm"] != found["webgpu"]  # each rounds in its own way
    for answers in found.values():
        _compare(answers, rows)
