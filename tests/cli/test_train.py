"""`train`: a table of labelled texts in, an adapter with its record out; every fault by its name."""

from __future__ import annotations

import itertools
import json
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest

import adapter_export as ae
from adapter_export.format.adapter_files import read_adapter
from adapter_export.graph.kinds import KINDS

GOOD = ("good film", "the film is good", "this play is fine", "fine play", "good good play", "the moon is fine")
BAD = ("bad film", "the film is bad", "this play is dull", "dull play", "bad bad play", "the moon is dull")
QUICK = ("--epochs", "2", "--batch-size", "4", "--bottleneck", "4")
PNG = b"\x89PNG\r\n\x1a\n"


def rows(label_of_good: str = "good") -> list[tuple[str, str]]:
    """Each text with three beginnings, so that there are enough of them."""
    pairs = [(text, label_of_good) for text in GOOD] + [(text, "bad") for text in BAD]
    return [(f"{start} {text}", label) for start, (text, label) in itertools.product(("who", "how", "many"), pairs)]


def write(path: Path, table: list[tuple[str, str]], columns: tuple[str, str] = ("text", "label")) -> Path:
    path.write_text("\n".join("\t".join(row) for row in [columns, *table]) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write(tmp_path / "train.tsv", rows())


def test_a_table_becomes_an_adapter_by_the_command_and_by_the_call(
    cli, model: Path, data: Path, tmp_path: Path
) -> None:
    test = write(tmp_path / "test.tsv", rows()[:5])
    made = cli.json("train", model, "--data", data, "--test-data", test, *QUICK, "-o", tmp_path / "tone")
    adapter = read_adapter(tmp_path / "tone")
    assert (adapter.name, adapter.kind, made["kind"]) == ("tone", "houlsby", "houlsby")
    assert adapter.head is not None
    assert list(adapter.head.labels) == made["task"]["labels"] == ["bad", "good"]
    assert (
        made["sites"] == list(adapter.placements) == [f"layers.{n}.{at}" for n in (0, 1) for at in ("attention", "ffn")]
    )
    assert (tmp_path / "tone" / "learning_curve.png").read_bytes().startswith(PNG)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["test.tsv", "tone", "train.tsv"]
    called = ae.train(model, data, name="tone", epochs=2, batch_size=4, bottleneck=4)
    assert (called.name, called.kind, called.head) == (adapter.name, adapter.kind, adapter.head)
    assert all(np.array_equal(called.weights[name], adapter.weights[name]) for name in adapter.weights)
    assert called.training["validation"] == adapter.training["validation"]


def test_training_without_matplotlib_notes_the_missing_curve(
    cli, model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # importing it fails
    made = cli.json("train", model, "--data", data, *QUICK, "-o", tmp_path / "tone")
    assert made["curve"] is None
    assert any("adapter-export[plot]" in note for note in made["notes"])
    assert not (tmp_path / "tone" / "learning_curve.png").exists()
    assert read_adapter(tmp_path / "tone").training["best_epoch"] in (1, 2)


def test_charts_without_matplotlib_name_the_extra(cli, model: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    cli.refused(2, "adapter-export[plot]", "plan", model, "--plot", tmp_path / "plan.svg")


def test_the_record_says_where_the_adapter_came_from(cli, model: Path, data: Path, tmp_path: Path) -> None:
    test = write(tmp_path / "test.tsv", rows()[:5])
    options = ("--validation", "0.25", "--seed", "3", "--pooling", "first", "--init", "zero_up", "--max-tokens", "9")
    cli.done("train", model, "--data", data, "--test-data", test, *QUICK, *options, "-o", tmp_path / "a")
    record = json.loads((tmp_path / "a" / "adapter_graph.json").read_text(encoding="utf-8"))["training"]
    settings = record["settings"]
    assert (settings["epochs"], settings["seed"], settings["pooling"], settings["max_tokens"]) == (2, 3, "first", 9)
    assert (settings["initialisation"], settings["initial_change"], settings["bottleneck"]) == ("zero_up", 0.0, 4)
    assert record["data"]["training"]["file"] == "train.tsv"
    assert len(record["data"]["training"]["sha256"]) == 64
    assert (record["data"]["training_rows"], record["data"]["validation_rows"]) == (28, 8)
    assert [epoch["epoch"] for epoch in record["history"]] == [1, 2]
    assert record["best_epoch"] in (1, 2)
    assert 0 <= record["test"]["accuracy"] <= 1
    assert record["versions"]["torch"]
    assert str(tmp_path) not in json.dumps(record)


def test_people_get_a_table_and_the_next_step(cli, model: Path, data: Path, tmp_path: Path) -> None:
    found = cli.done("train", model, "--data", data, "--test-data", data, *QUICK, "-o", tmp_path / "a")
    assert "macro-F1" in found.stdout
    assert "test accuracy" in found.stdout
    assert "Next: adapter-export build" in found.stderr
    assert "initial change of the final hidden state: " in found.stderr
    assert "36 texts of the test data are also in the training data" in found.stderr


def test_every_next_step_can_be_pasted(cli, model: Path, data: Path, tmp_path: Path) -> None:
    """The chain of steps from training on, each taken from the screen of the one before."""
    (tmp_path / "with space").mkdir()
    found, steps = cli.done("train", model, "--data", data, *QUICK, "-o", tmp_path / "with space" / "tone"), []
    while following := re.search(r"^Next: (adapter-export .*)$", found.stderr, re.MULTILINE):
        words = shlex.split(following[1], comments=True)[1:]
        steps.append(words[0])
        found = cli.done(*words, *(["--quick"] if words[0] == "check" else []), folder=tmp_path)
    assert steps == ["build", "check"]


@pytest.mark.parametrize("kind", ["houlsby", "pfeiffer", "parallel"])
def test_options_reach_the_graph(cli, model: Path, data: Path, tmp_path: Path, kind: str) -> None:
    options = (
        "--kind",
        kind,
        "--activation",
        "silu",
        "--scaling",
        "2",
        "--dropout",
        "0.1",
        "--norm-before",
        "--no-bias",
    )
    cli.done("train", model, "--data", data, *QUICK, *options, "--name", "tone", "-o", tmp_path / "a")
    adapter = read_adapter(tmp_path / "a")
    (graph,) = adapter.graphs.values()
    ops = [node.op for node in graph.nodes]
    assert ops == ["layer_norm", "linear", "silu", "linear", "scale", "dropout", "add"]
    assert set(graph.parameters) == {"norm_before.weight", "norm_before.bias", "down.weight", "up.weight"}
    assert (adapter.name, adapter.kind) == ("tone", kind)


def test_train_reads_json_lines_with_other_columns(cli, hf_folder: Path, tmp_path: Path) -> None:
    table = tmp_path / "rows.jsonl"
    lines = [json.dumps({"sentence": text, "stars": 5 if label == "good" else 1}) for text, label in rows()]
    table.write_text("\n".join(lines), encoding="utf-8")
    columns = ("--text", "sentence", "--label", "stars", "--tokenizer", hf_folder / "tokenizer.json")
    made = cli.json("train", hf_folder, "--data", table, *columns, *QUICK, "-o", tmp_path / "a")
    assert made["task"]["labels"] == ["1", "5"]


def test_existing_output_is_kept_without_force_and_restart(cli, model: Path, data: Path, tmp_path: Path) -> None:
    for folder, file in (("a", "precious"), ("a.partial", "checkpoint.safetensors")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / file).write_bytes(b"half")
    options = ("train", model, "--data", data, *QUICK, "-o", tmp_path / "a")
    cli.refused(3, "already exists", *options)
    cli.refused(3, "the checkpoint is damaged", *options, "--force")
    assert (tmp_path / "a" / "precious").exists()
    cli.done(*options, "--force", "--restart")
    assert read_adapter(tmp_path / "a").name == "a"
    assert not (tmp_path / "a" / "precious").exists()
    assert not (tmp_path / "a.partial").exists()


def test_a_full_disk_leaves_nothing(cli, model: Path, data: Path, tmp_path: Path) -> None:
    options = ("--data", data, *QUICK, "-o", tmp_path / "a")
    cli.refused(3, "could not be written", "train", model, *options, file_size=1000)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("code", "words", "options"),
    [
        (3, "there is no column `words`; found `text`, `label`", ("--text", "words")),
        (3, "there is no interrupted run", ("--resume",)),
        (2, "`--resume` and `--restart` exclude each other", ("--resume", "--restart")),
        (2, "`--validation` and `--validation-data` exclude", ("--validation", "0.2", "--validation-data", "x.tsv")),
        (2, "the validation fraction must be above 0 and below 1", ("--validation", "1.5")),
        (2, "`--max-tokens` exceeds the model's maximum length", ("--max-tokens", "10000")),
        (2, "'--bottleneck': 0 is not in the range", ("--bottleneck", "0")),
        (2, "`--learning-rate` is out of range", ("--learning-rate", "-1")),
        (2, "a dropout rate is a probability", ("--dropout", "1")),
        (2, "'lucky' is not one of", ("--init", "lucky")),
        (3, "the loss is not finite", ("--learning-rate", "1e30", "--epochs", "5")),
        (3, "the tokenizer cannot be read", ("--tokenizer", "nowhere")),
        (3, "does not exist", ("--test-data", "nowhere.tsv")),
        (3, "name", ("--name", "no/slash")),
    ],
)
def test_train_refuses_invalid_options_and_data(
    cli, model: Path, data: Path, tmp_path: Path, code: int, words: str, options
) -> None:
    cli.refused(code, words, "train", model, "--data", data, *QUICK, "-o", tmp_path / "a", *options)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ([*rows(), ("one of a kind", "new")], "a class has one row only"),
        (rows(label_of_good="bad"), "holds fewer than two classes"),
        ([*rows(), ("", "bad")], "1 row has no text or no label; found line 38"),
        ([*rows(), ("text", "")], "1 row has no text or no label; found line 38"),
    ],
)
def test_unlearnable_data_are_refused(cli, model: Path, tmp_path: Path, table, words: str) -> None:
    data = write(tmp_path / "train.tsv", table)
    cli.refused(3, words, "train", model, "--data", data, *QUICK, "-o", tmp_path / "a")


def test_doubtful_data_is_reported(cli, model: Path, tmp_path: Path) -> None:
    table = [*rows(), *rows()[:2], (rows()[0][0], "bad"), ("", "bad"), ("the " * 200, "bad")]
    data = write(tmp_path / "train.tsv", table)
    found = cli.done("train", model, "--data", data, "--skip-incomplete", *QUICK, "-o", tmp_path / "a")
    for words in (
        "2 rows of the training data repeat another row",
        "1 row of the training data has no text or no label and was skipped",
        "1 text of the training data occurs with more than one label",
        "1 text of the training data exceeds",
    ):
        assert words in found.stderr


def test_labels_of_the_test_data_must_be_known(cli, model: Path, data: Path, tmp_path: Path) -> None:
    test = write(tmp_path / "test.tsv", [("good film", "new")])
    words = "contains unknown labels; found `new`"
    cli.refused(3, words, "train", model, "--data", data, "--test-data", test, *QUICK, "-o", tmp_path / "a")


def test_a_graph_without_gradients_is_refused(cli, data: Path, tmp_path: Path) -> None:
    model = tmp_path / "model.onnx"
    model.write_bytes(b"\x08\x0a\x12\x00")
    cli.refused(3, "which torch cannot train", "train", model, "--data", data, *QUICK, "-o", tmp_path / "a")


KINDS_WITH_OPTIONS = {
    "seq_bn": ("--reduction-factor", "0=4,default=8", "--norm-after"),
    "par_bn": ("--gate", "--leave-out", "0"),
    "adapter_plus": ("--bottleneck", "4"),
    "compacter": ("--bottleneck", "8", "--phm-rank", "2", "--sublayers", "ffn"),
    "nice": ("--activation", "tanh"),
    "lora": (
        "--modules",
        "query,ffn.up",
        "--rank",
        "query=2,ffn.up=4",
        "--alpha",
        "8",
        "--rs-lora",
        "--dropout",
        "0.1",
    ),
    "ia3": ("--modules", "key,value", "--scaled-inputs", "attention.output"),
}


def test_every_kind_trains_and_all_go_into_one_bundle(
    cli, model: Path, graph: Path, data: Path, tmp_path: Path
) -> None:
    for kind, options in KINDS_WITH_OPTIONS.items():
        made = cli.json(
            "train", model, "--data", data, "--epochs", "1", "--kind", kind, *options, "-o", tmp_path / kind
        )
        assert made["kind"] == kind
        assert made["settings"]["initialisation"] == KINDS[kind]().scheme
    lora = read_adapter(tmp_path / "lora")
    assert {site.split(".", 2)[2]: placement.widths["r"] for site, placement in lora.placements.items()} == {
        "attention.query": 2,
        "ffn.up": 4,
    }
    folders = ",".join(str(tmp_path / kind) for kind in KINDS_WITH_OPTIONS)
    cli.done("build", graph, "--adapters", folders, "-o", tmp_path / "bundle")
    report = cli.json("check", tmp_path / "bundle", "--against", model, "--quick")
    assert report["verdict"] == "passed"


def test_an_option_of_another_kind_is_refused(cli, model: Path, data: Path, tmp_path: Path) -> None:
    options = ("train", model, "--data", data, "-o", tmp_path / "a")
    lora = (*options, "--kind", "lora")
    cli.refused(2, "kind `lora` has no such option; found `--bottleneck`", *lora, "--bottleneck", "4")
    cli.refused(2, "kind `houlsby` has no such option; found `--rank`", *options, "--rank", "4")
    cli.refused(2, "`dora` cannot be expressed yet", *options, "--kind", "dora")
    cli.refused(3, "expected `qurey`", *lora, "--modules", "qurey")
