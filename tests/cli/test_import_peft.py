"""`import peft`: from the folder that PEFT wrote to a bundle that computes the same."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from peft_bases import peft_base
from peft_folders import FIXTURES, TENSORS, adapter_folder, changed, expected, refused_folder

from adapter_export.errors import RequestError
from adapter_export.format.adapter_files import read_adapter
from adapter_export.format.tensors import read_tensors
from adapter_export.graph.tasks import Task
from adapter_export.runtime import Bundle

BASE = FIXTURES / "bases" / "bert"


@pytest.fixture(scope="module")
def onnx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base as an ONNX graph, whose tensors and paths must do as well."""
    return peft_base(tmp_path_factory, "bert") / "model.onnx"


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return peft_base(tmp_path_factory, "llama") / "model.onnx"


def test_imported_adapters_are_built_run_and_exported_again(cli, onnx: Path, tmp_path: Path) -> None:
    names = ("bert_lora_classify", "bert_lora_bias_all", "bert_ia3_classify", "bert_lora_tag", "bert_lora_regress")
    for name in names:
        made = cli.json("import", "peft", adapter_folder(name), "--base", onnx, "-o", tmp_path / name)
        assert made["name"] == name
        assert made["kind"] in ("lora", "ia3")
    folders = ",".join(str(tmp_path / name) for name in names)
    cli.done("build", onnx, "--adapters", folders, "--max-tokens", 32, "-o", tmp_path / "bundle")
    session = Bundle.open(tmp_path / "bundle").session()
    for name in (*names, names[0]):
        record = expected(name)
        inputs = {key.removeprefix("input."): record[key] for key in record if key.startswith("input.")}
        inputs["token_type_ids"] = np.zeros_like(inputs["input_ids"])
        outputs = session.run(inputs, name)
        tokens = outputs.get("token_logits") if name == "bert_lora_tag" else None
        real = inputs["attention_mask"] == 1 if tokens is not None else slice(None)
        found = (outputs["logits"] if tokens is None else tokens)[real]
        np.testing.assert_allclose(found, record["float32.logits"][real], rtol=0, atol=2e-5)
        if name == "bert_lora_classify":  # whose task is unknown
            np.testing.assert_allclose(found, record["float64.logits"], atol=1e-5)
            with pytest.raises(RequestError, match="an adapter without a known task cannot answer"):
                session.answer(inputs, name)
    made = cli.json("export", tmp_path / "bundle", "--adapter", names[3], "--to", "peft", "-o", tmp_path / "back")
    assert made["form"] == "LORA"
    assert made["error"] == 0
    original, back = (read_tensors(path / TENSORS) for path in (adapter_folder(names[3]), tmp_path / "back"))
    assert original.keys() == back.keys()
    assert all(np.array_equal(original[name], back[name]) for name in original)


def test_import_reports_its_decisions(cli, tmp_path: Path) -> None:
    found = cli.done("import", "peft", adapter_folder("bert_lora_classify"), "--base", BASE, "-o", tmp_path / "a")
    assert "`bert.…` match the base's without this prefix" in found.stderr
    assert "the number of labels per text is unknown" in found.stderr
    assert "`--task single_label` or `--task multi_label`" in found.stderr
    assert "Next: adapter-export build" in found.stderr
    options = ("--task", "multi_label", "--thresholds", "0.3", "--input", "pair", "--max-tokens", "64")
    folder = adapter_folder("bert_lora_classify")
    found = cli.done("import", "peft", folder, "--base", BASE, *options, "-o", tmp_path / "b")
    assert "they become LABEL_0, LABEL_1, LABEL_2; `--labels` sets them" in found.stderr
    head = read_adapter(tmp_path / "b").head
    assert head is not None
    labels = ("LABEL_0", "LABEL_1", "LABEL_2")
    assert head.task == Task("multi_label", labels, thresholds=(0.3,) * 3, input="pair", max_tokens=64)


def test_task_facts_are_refused_without_a_task(cli, onnx: Path, tmp_path: Path) -> None:
    call = ("import", "peft", adapter_folder("bert_lora_classify"), "--base", onnx, "-o", tmp_path / "a")
    cli.refused(2, "the adapter's head has no task, so facts about it cannot be set", *call, "--max-tokens", 64)
    cli.refused(
        2,
        "the number of thresholds does not match the labels",
        *call,
        "--task",
        "multi_label",
        "--thresholds",
        "0.1,0.2",
    )
    cli.refused(2, "a threshold must be a probability; found 3", *call, "--task", "multi_label", "--thresholds", "3")
    assert not (tmp_path / "a").exists()


def test_labels_option_names_the_classes(cli, onnx: Path, tmp_path: Path) -> None:
    folder, base = adapter_folder("bert_lora_classify"), ("--base", onnx)
    made = cli.json("import", "peft", folder, *base, "--labels", "bad, fair,good", "-o", tmp_path / "a")
    assert made["task"]["labels"] == ["bad", "fair", "good"]
    cli.refused(2, "number of labels", "import", "peft", folder, *base, "--labels", "a,b", "-o", tmp_path / "b")


def test_labels_are_read_from_the_configuration_of_the_base(cli, tmp_path: Path) -> None:
    base = shutil.copytree(BASE, tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    names = {"0": "bad", "2": "good", "1": "fair"}
    (base / "config.json").write_text(json.dumps(config | {"id2label": names}))
    made = cli.json("import", "peft", adapter_folder("bert_lora_classify"), "--base", base, "-o", tmp_path / "a")
    assert made["task"]["labels"] == ["bad", "fair", "good"]
    made = cli.json("import", "peft", adapter_folder("bert_lora_tag"), "--base", base, "-o", tmp_path / "b")
    assert made["task"]["labels"] == [f"LABEL_{index}" for index in range(5)]


def test_name_selects_one_of_several_adapters(cli, onnx: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        changed(adapter_folder("bert_lora"), tmp_path / "saved" / name)
    made = cli.json("import", "peft", tmp_path / "saved", "--name", "two", "--base", onnx, "-o", tmp_path / "a")
    assert made["name"] == "two"
    assert read_adapter(tmp_path / "a").training["imported"]["from"] == "peft"
    cli.refused(3, "`one`, `two`", "import", "peft", tmp_path / "saved", "--base", onnx, "-o", tmp_path / "b")


def test_without_head_ignores_the_head(cli, onnx: Path, tmp_path: Path) -> None:
    folder, base = adapter_folder("bert_lora_classify_pooler"), ("--base", onnx)
    made = cli.json("import", "peft", folder, *base, "--without-head", "-o", tmp_path / "a")
    assert made["task"] is None
    assert len(made["sites"]) == 13  # the pooler among them
    assert "the head was ignored: `classifier`" in made["notes"]
    options = ("--without-head", "--pooling", "mean")
    cli.refused(2, "a head is described", "import", "peft", folder, *base, *options, "-o", tmp_path / "b")


def test_refused_imports_write_nothing(cli, onnx: Path, tmp_path: Path) -> None:
    cli.refused(3, "pissa_niter_4", "import", "peft", refused_folder("pissa"), "--base", onnx, "-o", tmp_path / "a")
    full = "import", "peft", adapter_folder("change_fourierft"), "--base", onnx, "-o", tmp_path / "a"
    cli.refused(3, "`--dense`", *full)
    assert not (tmp_path / "a").exists()
    assert len(cli.json(*full, "--dense", "--force")["sites"]) == 2


def test_last_token_heads_are_imported_with_a_task(cli, llama: Path, tmp_path: Path) -> None:
    call = "import", "peft", refused_folder("last_token"), "--base", llama, "-o", tmp_path / "a"
    cli.json(*call, "--task", "multi_label")
    head = read_adapter(tmp_path / "a").head
    assert head is not None
    assert [node.op for node in head.graph.nodes] == ["last_token", "linear"]
    assert len(cli.json(*call, "--without-head", "--force")["sites"]) == 2
    assert read_adapter(tmp_path / "a").head is None


def test_base_of_another_architecture_is_refused(cli, llama: Path, tmp_path: Path) -> None:
    words = "acts on modules that the base does not have"
    cli.refused(3, words, "import", "peft", adapter_folder("bert_lora"), "--base", llama, "-o", tmp_path / "a")
