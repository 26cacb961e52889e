"""Every task through the commands: trained, packed, built into one bundle, checked and run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch

from adapter_export.bases.opening import open_base
from adapter_export.format.adapter_files import read_adapter
from adapter_export.graph.tasks import PROBLEM_TYPES
from adapter_export.graph.tasks.answers import Answer
from adapter_export.runtime import Bundle
from adapter_export.text import Pair, Tokenizer, tokenizer_digest
from adapter_export.torch_backend.attach import attach

QUICK = ("--epochs", "1", "--batch-size", "8", "--bottleneck", "4")
GOOD = ("good film", "the film is good", "this play is fine", "fine play", "the moon is fine")
BAD = ("bad film", "the film is bad", "this play is dull", "dull play", "the moon is dull")
PRAISE, BLAME = {"good", "fine"}, {"bad", "dull"}


def tags(text: str) -> list[str]:
    return ["P" if word in PRAISE else "N" if word in BLAME else "O" for word in text.split()]


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table for each task, named as its adapter."""
    folder = tmp_path_factory.mktemp("tables")
    texts = [f"{start} {text}" for start in ("who", "how", "many") for text in (*GOOD, *BAD)]
    words = [{"tokens": text.split(), "tags": tags(text)} for text in texts]
    numbers = [{"text": text, "score": [tags(text).count("P"), len(text) / 10]} for text in texts]
    kinds = [
        {"text": text, "label": [kind for kind, of in (("praise", PRAISE), ("blame", BLAME)) if of & {*text.split()}]}
        for text in [*texts, *(f"{start} many" for start in ("who", "how", "the"))]
    ]
    pairs = [(question, text) for question in ("who", "how many", "this") for text in (*GOOD, *BAD)]
    likes = [{"text": one, "pair": other, "label": "same" if "P" in tags(other) else "not"} for one, other in pairs]
    ranks = [{"text": one, "pair": other, "label": int("P" in tags(other))} for one, other in pairs]
    asks = [{"q": one, "context": other, "answer": other.split()[-1]} for one, other in pairs]
    picks = [{"q": good, "choices": [bad, good], "right": 1} for good, bad in zip(GOOD, BAD, strict=True)]
    more = {"kinds": kinds, "like": likes, "rank": ranks, "ask": asks, "pick": picks}
    for name, rows in {"tag": words, "grade": numbers, **more}.items():
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    lines = [f"{text}\t{'good' if 'P' in tags(text) else 'bad'}" for text in texts]
    (folder / "vec.tsv").write_text("\n".join(["text\tlabel", *lines]), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def made(cli: Any, model: Path, tables: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Output of `train --json` for each adapter; `folder` is its location."""
    folder = tmp_path_factory.mktemp("trained")
    commands = {
        "tag": ("tag.jsonl", "--task", "token", "--text", "tokens", "--label", "tags"),
        "grade": (
            "grade.jsonl",
            "--task",
            "regression",
            "--label",
            "score",
            "--pooling",
            "first",
            "--head-layers",
            "1",
        ),
        "vec": ("vec.tsv", "--task", "embedding", "--vector-width", "6", "--l2-normalise"),
        "kinds": ("kinds.jsonl", "--task", "multi_label", "--thresholds", "0.4", "--max-tokens", "20"),
        "like": ("like.jsonl", "--pair", "pair", "--truncation", "left"),
        "rank": ("rank.jsonl", "--task", "ranking", "--pair", "pair", "--validation", "0.4"),
        "ask": ("ask.jsonl", "--task", "span", "--text", "q", "--pair", "context", "--label", "answer"),
        "pick": ("pick.jsonl", "--task", "multiple_choice", "--text", "q", "--pair", "choices", "--label", "right"),
    }
    return {
        name: cli.json("train", model, "--data", tables / table, *options, *QUICK, "-o", folder / name)
        for name, (table, *options) in commands.items()
    }


@pytest.fixture(scope="module")
def bundle(
    cli: Any, hf_folder: Path, graph: Path, made: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    path = tmp_path_factory.mktemp("built") / "bundle"
    text = ("--tokenizer", hf_folder, "--max-tokens", 80)
    cli.done("build", graph, *text, "--adapters", ",".join(one["adapter"] for one in made.values()), "-o", path)
    return path


def test_training_notes_nearly_identical_vectors(
    cli: Any, model: Path, made: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("alike")
    rows = [f"a film so {'good' * number}\t{number % 2}" for number in range(1, 21)]  # truncated to the common part
    (folder / "vec.tsv").write_text("\n".join(["text\tlabel", *rows]) + "\n", encoding="utf-8")
    words = ("train", model, "--data", folder / "vec.tsv", "--task", "embedding", *QUICK, "-o", folder / "vec")
    distil = ("distil", model, "--data", folder / "vec.tsv", "--task", "embedding", "--epochs", "1")
    for call, notes in ((words, "notes"), ((*distil, "-o", folder / "student"), "warnings")):
        *_, note = cli.json(*call, "--max-tokens", "4")[notes]
        assert "the vectors are nearly identical" in note
        assert "smaller `--learning-rate`" in note
    assert not any("alike" in note for note in made["vec"]["notes"])


def test_training_reports_task_labels_and_columns(made: dict[str, dict[str, Any]]) -> None:
    assert made["tag"]["task"]["labels"] == ["N", "O", "P"]
    assert "labels" not in made["grade"]["task"]
    assert "labels" not in made["vec"]["task"]
    metrics = {name: set(one["validation"]) - {"loss"} for name, one in made.items()}
    assert metrics["tag"] == {"accuracy", "macro_f1"}
    assert metrics["grade"] >= {"mean_absolute_error"}
    assert metrics["vec"] == {"neighbour_accuracy"}
    for name, metric in {
        "kinds": "micro_f1",
        "like": "accuracy",
        "rank": "mrr",
        "ask": "f1",
        "pick": "accuracy",
    }.items():
        assert metric in metrics[name]
    columns = {"text": "q", "pair": "context", "label": "answer"}
    assert {name: made["ask"]["settings"][name] for name in columns} == columns
    head = read_adapter(Path(made["grade"]["adapter"])).head
    assert head is not None
    assert (head.task.type, head.widths["classes"]) == ("regression", 2)
    assert [node.op for node in head.graph.nodes] == ["first_token", "linear", "tanh", "linear"]
    assert made["grade"]["task"]["type"] == "regression"


def test_bundle_of_all_tasks_passes_check(cli: Any, bundle: Path, model: Path) -> None:
    found = cli.json("check", bundle, "--against", model, "--case", "batch3_sequence7_padded", "--quick")
    assert found["verdict"] == "passed"
    outputs = [one for each in found["findings"] for one in each["measurements"]]
    classes = {(one["adapter"], one["name"]) for one in outputs if one["top_class"] is not None}
    assert classes == {("tag", "token_logits"), ("like", "logits")}


def test_the_record_of_each_task_is_in_the_bundle(bundle: Path) -> None:
    tasks = {record.name: record.task for record in Bundle.open(bundle).manifest.adapters}
    assert tasks["kinds"].labels == ("blame", "praise")
    assert tasks["kinds"].thresholds == (0.4, 0.4)
    assert tasks["kinds"].max_tokens == 20
    assert tasks["like"].truncation == "left"
    assert tasks["rank"].activation == "sigmoid"
    assert {name for name, task in tasks.items() if task.input == "pair"} == {"like", "rank", "ask", "pick"}
    # these two need bases of their own: of token vectors, and with logits of the vocabulary
    assert {task.type for task in tasks.values()} == {*PROBLEM_TYPES} - {"multi_vector", "sparse_embedding"}
    digest = tokenizer_digest((bundle / "tokenizer.json").read_text("utf-8"))
    assert {task.tokenizer for task in tasks.values()} == {digest}


@pytest.mark.parametrize("name", ["kinds", "like", "rank", "ask", "pick"])
def test_answers_are_those_of_the_model(name: str, bundle: Path, model: Path, made: dict[str, dict[str, Any]]) -> None:
    """From text: what the bundle says of texts and pairs is what torch says with the trained adapter."""
    opened = Bundle.open(bundle)
    task = next(record.task for record in opened.manifest.adapters if record.name == name)
    tokenizer = Tokenizer.from_folder(bundle, task.max_tokens)
    texts = ["the film is good", "who is far"]
    rows = [Pair("how many", text) for text in texts] if task.input == "pair" else texts
    inputs = tokenizer.batch(rows, [record.name for record in opened.manifest.inputs])
    context = [np.array([part == 1 for part in one.sequence_ids]) for one in tokenizer.encode(rows)]
    found = opened.session(threads=1).answer(inputs, name, context=context if task.type == "span" else None)
    reference = attach(open_base(model).torch, read_adapter(Path(made[name]["adapter"])))
    with torch.inference_mode():
        results = reference.head(**{key: torch.from_numpy(array) for key, array in inputs.items()}).numpy()
    masks = inputs["attention_mask"] == 1
    for row, one in enumerate(found):
        wanted = task.answer(results[row], masks[row], context[row])
        assert numbers_of(one) == pytest.approx(numbers_of(wanted), abs=1e-5)
        assert getattr(one, "labels", None) == getattr(wanted, "labels", None)


def numbers_of(found: Answer) -> list[float]:
    said = found.document()
    shares = said.pop("probabilities", {})
    return [*shares.values(), *(value for value in said.values() if isinstance(value, int | float))]


def test_tokens_are_shown_one_by_one(cli: Any, bundle: Path) -> None:
    found = cli.json("run", bundle, "--adapter", "tag", "--text", "the film is good", "--text", "dull")
    assert [row["task"] for row in found["rows"]] == ["token"] * 2
    rows = [[token["token"] for token in row["tokens"]] for row in found["rows"]]
    assert rows == [["the", "film", "is", "good"], ["dull"]]
    film = found["rows"][0]["tokens"][1]
    assert (film["start"], film["end"]) == (4, 8)
    assert set(film["probabilities"]) == {"N", "O", "P"}
    shown = cli.done("run", bundle, "--adapter", "tag", "--text", "the film is good").stdout
    assert "token" in shown
    assert "film" in shown


def test_run_writes_numbers_and_vectors(cli: Any, bundle: Path, tmp_path: Path) -> None:
    texts = ("--text", "the film is good", "--text", "dull", "--out", tmp_path / "out.npz")
    numbers = cli.json("run", bundle, "--adapter", "grade", *texts)["rows"]
    saved = np.load(tmp_path / "out.npz")["logits"]
    assert np.allclose([row["numbers"] for row in numbers], saved)
    vectors = cli.json("run", bundle, "--adapter", "vec", *texts, "--force")["rows"]
    assert np.allclose(np.linalg.norm([row["vector"] for row in vectors], axis=1), 1, atol=1e-6)
    assert "number 1" in cli.done("run", bundle, "--adapter", "grade", "--text", "dull").stdout
    shown = cli.done("run", bundle, "--adapter", "vec", "--text", "dull")
    assert "width" in shown.stdout
    assert "--out FILE.npz" in shown.stderr


def test_rows_of_different_tasks_equal_single_results(cli: Any, bundle: Path) -> None:
    """In one call or many, each row equals the single result of its adapter for its text."""
    names, texts = ("tag", "grade", "vec"), ("the film is good", "dull", "how many films")
    options = [word for text in texts for word in ("--text", text)]
    call = ("run", bundle, "--adapters", ",".join(names), *options)
    alone = []
    for name, text in zip(names, texts, strict=True):
        found = cli.json("run", bundle, "--adapter", name, "--text", text)
        alone += found["rows"]
    many = [json.loads(line) for line in cli.done(*call, "--many").stdout.splitlines()]
    for rows in (cli.json(*call)["rows"], many):
        assert [[row[key] for key in ("text", "adapter", "task")] for row in rows] == [
            [one[key] for key in ("text", "adapter", "task")] for one in alone
        ]
        tags, grade, vector = rows
        assert [token["token"] for token in tags["tokens"]] == texts[0].split()
        assert [token["label"] for token in tags["tokens"]] == [token["label"] for token in alone[0]["tokens"]]
        assert np.allclose(grade["numbers"], alone[1]["numbers"], atol=1e-5)
        assert np.allclose(vector["vector"], alone[2]["vector"], atol=1e-5)
    shown = cli.done(*call).stdout
    for words in (f"good/{alone[0]['tokens'][-1]['label']}", "tag", "grade", "vec", *texts):
        assert words in shown


def test_token_answers_for_arrays_skip_padding(cli: Any, bundle: Path, tmp_path: Path) -> None:
    mask = np.array([[1, 1, 1], [1, 0, 0]])
    names = {record["name"] for record in json.loads((bundle / "manifest.json").read_text())["inputs"]}
    arrays = {"input_ids": np.array([[2, 4, 3], [5, 0, 0]]), "attention_mask": mask, "token_type_ids": mask * 0}
    np.savez(tmp_path / "in.npz", **{name: arrays[name] for name in names})
    found = cli.json("run", bundle, "--adapter", "tag", "--arrays", tmp_path / "in.npz")["rows"]
    assert [[token is not None for token in row["tokens"]] for row in found] == [[True] * 3, [True, False, False]]
    shown = cli.done("run", bundle, "--adapter", "tag", "--arrays", tmp_path / "in.npz").stdout
    assert [shown.count(f"token {place}") for place in range(3)] == [2, 1, 1]


def test_adapter_file_runs_with_the_given_task(cli: Any, bundle: Path) -> None:
    file = bundle / "adapters/grade.onnx_adapter"
    found = cli.json("run", bundle, "--adapter-file", file, "--task", "regression", "--text", "dull")
    (own,) = cli.json("run", bundle, "--adapter", "grade", "--text", "dull")["rows"]
    assert found["rows"] == [{**own, "adapter": "grade.loaded"}]
    cli.refused(
        3,
        "has no head for `embedding`",
        "run",
        bundle,
        "--adapter-file",
        file,
        "--task",
        "embedding",
        "--text",
        "a",
    )
    cli.refused(2, "`--task` needs `--adapter-file`", "run", bundle, "--task", "embedding", "--text", "dull")


def test_inspect_names_the_tasks(cli: Any, bundle: Path, made: dict[str, dict[str, Any]]) -> None:
    shown = cli.done("inspect", bundle).stdout
    for words in ("token", "regression", "embedding", "token_logits"):
        assert words in shown
    found = cli.json("inspect", made["vec"]["adapter"])
    known = {"type": "embedding", "pooling": "mean", "normalised": True, "max_tokens": 80}
    assert found["task"] == known | {"tokenizer": tokenizer_digest((bundle / "tokenizer.json").read_text("utf-8"))}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--task", "token", "--pooling", "first"), "`--pooling` does not apply to this task and head"),
        (("--task", "regression", "--l2-normalise"), "`--l2-normalise` does not apply"),
        (("--head-width", "8"), "`--head-width` does not apply"),
        (("--vector-width", "8"), "`--vector-width` does not apply"),
    ],
)
def test_conflicting_task_options_are_refused(
    cli: Any, model: Path, tables: Path, tmp_path: Path, options: tuple[str, ...], words: str
) -> None:
    cli.refused(2, words, "train", model, "--data", tables / "vec.tsv", *options, "-o", tmp_path / "a")


def test_a_tokenizer_of_another_model_is_refused(cli: Any, model: Path, tables: Path, tmp_path: Path) -> None:
    words = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "film": 4000, "good": 4001}
    other = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    other.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    other.save(str(tmp_path / "tokenizer.json"))
    call = ("train", model, "--data", tables / "vec.tsv", "--tokenizer", tmp_path, *QUICK, "-o", tmp_path / "a")
    cli.refused(2, "the tokenizer has tokens that the model does not have; found the id 4001", *call)
