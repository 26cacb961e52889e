"""`build --base-precision` and `--optimize`, and what `check` says about such bundles."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnxruntime.quantization import QuantType, quantize_dynamic
from tiny_onnx import build_tiny, save_tiny

import adapter_export as ae


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "texts.tsv"
    rows = ["how far is the moon", "who wrote this play", "good film", "dull bad film", "fine"] * 4
    path.write_text("sentence\n" + "\n".join(rows) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def int8_bundle(cli, hf_folder: Path, graph: Path, adapters: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("int8") / "bundle"
    both = f"{adapters / 'topic'},{adapters / 'tone'}"
    text = ("--tokenizer", hf_folder, "--max-tokens", 80)
    found = cli.done("build", graph, *text, "--adapters", both, "--base-precision", "int8", "-o", path)
    assert "converting the base to int8" in found.stderr
    said = re.search(
        r"`last_hidden_state` is (\w+) \w+ the original base: minimum cosine (\S+), largest .*", found.stderr
    )
    assert said is not None
    assert ", without padding" in said[0]
    assert (said[1] == "far") is (float(said[2]) < 0.95)
    compared = f"compare {adapters / 'topic'} {adapters / 'tone'} --base {graph} --precisions fp32,int8 --data FILE"
    assert f"adapter-export {compared}" in found.stderr
    return path


def test_a_bundle_is_held_against_the_model_in_its_own_precision(
    cli, model: Path, int8_bundle: Path, texts: Path
) -> None:
    found = cli.json("check", int8_bundle, "--against", model, "--data", texts, "--text", "sentence", "--quick")
    assert found["verdict"] == "passed"
    assert "int8 for the base" in found["reference"]
    assert found["agreements"]["original"].startswith("torch ")
    assert found["agreements"]["inputs"] == "20 texts"
    logits = {result["adapter"]: result for result in found["agreements"]["results"] if result["output"] == "logits"}
    assert {name: result["rows"] for name, result in logits.items()} == {"topic": 20, "tone": 20}
    assert all(result["agree"] >= 15 for result in logits.values())


def test_inspect_warns_of_rows_that_depend_on_each_other(cli, int8_bundle: Path, tmp_path: Path) -> None:
    """They do so in a base that another tool brought into dynamic int8, and not in one of ours."""
    quantize_dynamic(save_tiny(tmp_path), tmp_path / "dynamic.onnx", weight_type=QuantType.QInt8)
    dynamic = build_tiny(tmp_path, model=onnx.load(tmp_path / "dynamic.onnx"))
    assert "int8; the rows of a batch depend on each other" in cli.done("inspect", dynamic).stdout
    found = cli.done("inspect", int8_bundle).stdout
    assert "int8" in found
    assert "depend on each other" not in found


def test_check_table_shows_the_cost_of_the_precision(cli, graph: Path, int8_bundle: Path) -> None:
    found = cli.done("check", int8_bundle, "--against", graph, "--only", "tone", "--quick", "--verbose")
    assert "same class" in found.stdout
    assert "on random inputs" in found.stdout
    assert "passed" in found.stdout


def test_check_without_the_model_uses_golden_vectors_of_its_precision(cli, int8_bundle: Path) -> None:
    found = cli.json("check", int8_bundle, "--quick")
    assert (found["verdict"], found["agreements"]) == ("passed", None)


def test_a_float32_bundle_agrees_on_texts(cli, model: Path, bundle: Path, texts: Path) -> None:
    options = ("--only", "topic", "--data", texts, "--text", "sentence", "--quick")
    found = cli.json("check", bundle, "--against", model, *options)
    logits = next(result for result in found["agreements"]["results"] if result["output"] == "logits")
    assert (logits["agree"], logits["rows"]) == (20, 20)


def test_build_quantizes_weights_and_embeddings(cli, graph: Path, adapters: Path, tmp_path: Path) -> None:
    options = ("--base-precision", "int4-weights", "--int8-embeddings")
    made = cli.json("build", graph, "--adapters", adapters / "tone", *options, "-o", tmp_path / "bundle")
    assert made["manifest"]["base_precision"] == "int4-weights"
    assert made["manifest"]["batch_invariant"] is True
    assert "4-bit weights" in made["manifest"]["golden"]["reference"]
    cli.done("check", tmp_path / "bundle", "--against", graph, "--quick")


def test_optimize_fuses_operators_and_passes_check(cli, graph: Path, adapters: Path, tmp_path: Path) -> None:
    found = cli.done("build", graph, "--adapters", adapters / "topic", "--optimize", "-o", tmp_path / "bundle")
    assert "2 bias_gelu" in found.stderr
    assert "is close to the original base: minimum cosine 1.0000" in found.stderr
    assert "--precisions" not in found.stderr
    assert "passed" in cli.done("check", tmp_path / "bundle", "--against", graph, "--quick").stdout


def test_fused_integer_operators_are_batch_invariant(cli, model: Path, adapters: Path, tmp_path: Path) -> None:
    """The reference is the base in 8 bits before anything was fused, and a row is the same in any batch."""
    options = ("--base-precision", "int8", "--optimize", "--variants", "slots,bank")
    made = cli.json("build", model, "--adapters", adapters / "topic", *options, "-o", tmp_path / "bundle")["manifest"]
    assert (made["base_precision"], made["batch_invariant"]) == ("int8", True)
    attends = tuple(map(int, ort.__version__.split(".")[:2])) >= (1, 24)  # by the standard's operator
    assert made["minimum_onnxruntime"] == ("1.24" if attends else "1.22")
    found = cli.json("check", tmp_path / "bundle", "--against", model, "--case", "batch3_sequence7_padded")
    assert found["verdict"] == "passed"
    constants = {one["status"] for one in found["findings"] if one["check"] == "constant"}
    assert constants == {"exact"}  # the graph was made again, in both steps
    session = ae.open_bundle(tmp_path / "bundle").session()
    ids = np.random.default_rng(0).integers(4, 16, (5, 7))
    together = session.run(arrays(ids))
    for at in range(len(ids)):
        alone = session.run(arrays(ids[at : at + 1]))
        assert all(np.array_equal(alone[name][0], value[at]) for name, value in together.items())


def arrays(ids: np.ndarray) -> dict[str, np.ndarray]:
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--int8-embeddings",), "requires quantised weights"),
        (("--int8-embeddings", "--base-precision", "fp16"), "requires quantised weights"),
        (("--base-precision", "int2"), "'int2' is not one of"),
    ],
)
def test_conflicting_precision_options_are_refused(
    cli, model: Path, adapters: Path, tmp_path: Path, options: tuple[str, ...], words: str
) -> None:
    cli.refused(2, words, "build", model, "--adapters", adapters / "tone", *options, "-o", tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("options", [("--data", "t.tsv"), ("--text", "a"), ("--data", "t.tsv", "--text", "a")])
def test_texts_need_their_column_and_a_model(cli, bundle: Path, options: tuple[str, ...]) -> None:
    cli.refused(2, "belong together", "check", bundle, *options)
