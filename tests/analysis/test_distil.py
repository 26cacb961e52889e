"""A student learns from labels, and from an adapted model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from click.testing import CliRunner
from heard import Interrupt

import adapter_export as ae
from adapter_export.cli.main import main
from adapter_export.errors import AdapterError, BaseMismatchError, DataError, TrainingError, UsageError
from adapter_export.plugins.lab.scores import Score
from adapter_export.plugins.lab.student import Distillation, Side, time_student

QUICK: dict[str, Any] = {"epochs": 4, "batch_size": 8, "learning_rate": 0.01}


def test_distilling_from_labels_tunes_all_weights(taught: Path, tmp_path: Path) -> None:
    data = {"data": taught / "train.tsv", "test_data": taught / "test.tsv", "output": tmp_path / "tuned"}
    found = ae.distil(taught / "model.pt", **data, **QUICK)
    assert found.teacher is None
    assert found.student.scores["accuracy"].value > 0.8
    base, tuned = ae.open_base(taught / "model.pt"), ae.open_base(tmp_path / "tuned/model.pt")
    before, after = base.torch.program.state_dict, tuned.torch.program.state_dict
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if not name.startswith("pooler")}, "all that the head reads of"
    assert tuned.base_head.training["test"]["accuracy"] == found.student.scores["accuracy"].value
    session = ort.InferenceSession(tmp_path / "tuned/model.onnx")
    assert [one.name for one in session.get_inputs()] == [one.name for one in base.inputs], "no slots"


def test_a_student_of_one_layer_learns_from_its_teacher(taught: Path, tmp_path: Path) -> None:
    rows = taught / "train.tsv"
    arguments = ["--adapter", taught / "teacher", "--data", rows, "--test-data", rows, "-o", tmp_path / "student"]
    arguments += ["--layers", 1, "--soft", 4, "--hidden", 0.1, "--hard", 0, "--epochs", 8, "--batch-size", 8]
    arguments += ["--learning-rate", 0.01, "--threads", 1]
    ran = CliRunner().invoke(main, ["distil", str(taught / "model.pt"), *map(str, arguments), "--json"])
    assert ran.exit_code == 0, ran.stderr
    found = json.loads(ran.stdout)
    teacher, student = found["teacher"], found["student"]
    assert (teacher["layers"], student["layers"]) == (2, 1)
    assert student["parameters"] < teacher["parameters"]
    assert found["agreement"] > 0.9
    assert found["training"]["settings"]["teacher"] == "teacher"
    assert found["training"]["settings"]["layers"] == [0]
    assert student["speed"]["ratio"] > 0
    assert json.loads((tmp_path / "student/distillation.json").read_text())["student"] == student
    base = ae.open_base(tmp_path / "student/model.pt")
    bundle = ae.build(base, [], tmp_path / "bundle", variants=["slots"])
    text = (taught / "test.tsv").read_text().splitlines()[1].partition("\t")[0]
    reader = bundle.texts(bundle.session())
    inputs = reader.arrays([reader.read([text], "base-head")[0].rows[0]])
    logits = ort.InferenceSession(tmp_path / "student/model.onnx").run(["logits"], inputs)[0]
    (answer,) = bundle.session().classify(inputs, "base-head")
    assert base.base_head.head.labels[int(logits[0].argmax())] == answer.label
    assert not (tmp_path / "student.partial").exists()


def test_an_interrupted_run_ends_with_the_same_bits(taught: Path, tmp_path: Path) -> None:
    def run(name: str, **more: Any) -> Any:
        given = {"adapter": taught / "teacher", "keep": (1,), "unlabelled": tmp_path / "more.tsv", **QUICK, "epochs": 2}
        return ae.distil(taught / "model.pt", taught / "train.tsv", tmp_path / name, **{**given, **more})

    (tmp_path / "more.tsv").write_text("text\nplay good\nfilm bad film\n", encoding="utf-8")
    whole = run("whole")
    assert whole.training["data"]["unlabelled"]["rows"] == 2
    with pytest.raises(KeyboardInterrupt):
        run("halted", reporter=Interrupt(15))
    with pytest.raises(TrainingError, match=r"an interrupted run with other .*different distillation loss"):
        run("halted", temperature=4.0)
    again = run("halted", resume=True)
    assert again.training["steps"] == whole.training["steps"]
    one, other = (ae.open_base(tmp_path / name / "model.pt") for name in ("whole", "halted"))
    assert one.fingerprint == other.fingerprint
    assert all(np.array_equal(tensor, other.base_head.weights[name]) for name, tensor in one.base_head.weights.items())


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (
            "good\tgood\nbad\tbad\nplay\tfine\nfilm\tfine\ngood film\tgood\nbad film\tbad",
            "unknown labels; found `fine`",
        ),
        ("good\tgood\ngood film\tgood\ngood play\tgood", "fewer than two classes"),
        ("\tgood\n\tbad", "text"),
    ],
    ids=["a label more", "one class", "empty texts"],
)
def test_distil_refuses_rows_that_do_not_suit_the_teacher(table: str, words: str, taught: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.tsv").write_text(f"text\tlabel\n{table}\n", encoding="utf-8")
    with pytest.raises(DataError, match=words):
        ae.distil(taught / "model.pt", tmp_path / "rows.tsv", adapter=taught / "teacher")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"task": "regression"}, "the student takes its task and head from the teacher"),
        ({"layers": 3}, "the model has fewer layers"),
        ({"keep": (0, 2)}, "invalid layers to keep"),
        ({"layers": 1, "keep": (0,)}, "exclude each other"),
        ({"soft": 0.0, "hidden": 0.0, "hard": 0.0}, "at least one loss needs a weight above 0"),
        ({"soft": -1.0}, "the weight of a loss must be at least 0"),
        ({"temperature": 0.0}, "the temperature must be above 0"),
        ({"adapter": None, "unlabelled": "more.tsv"}, "texts without labels need a teacher"),
        ({"adapter": None, "task": "causal_lm"}, "a student needs a head"),
    ],
    ids=str,
)
def test_distil_refuses_conflicting_options(given: dict[str, Any], words: str, taught: Path) -> None:
    with pytest.raises(UsageError, match=words):
        ae.distil(taught / "model.pt", taught / "train.tsv", **{"adapter": taught / "teacher", **given})


def test_a_teacher_of_another_base_or_without_a_task_is_refused(taught: Path) -> None:
    teacher, data = ae.load_adapter(taught / "teacher"), taught / "train.tsv"
    with pytest.raises(BaseMismatchError, match="was trained on another base"):
        ae.distil(taught / "model.pt", data, adapter=replace(teacher, base="sha256:" + "0" * 64))
    with pytest.raises(AdapterError, match="the adapter's head has no task"):
        ae.distil(taught / "model.pt", data, adapter=replace(teacher, head=replace(teacher.head, task=None)))
    other = replace(teacher.head.task, tokenizer="0" * 64)
    with pytest.raises(AdapterError, match="the teacher was trained with another tokenizer"):
        ae.distil(taught / "model.pt", data, adapter=replace(teacher, head=replace(teacher.head, task=other)))


def test_distil_notes_a_student_that_saves_too_little(
    taught: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sides = [Side(name, 2, 10, 40, {"accuracy": Score(0.9)}) for name in ("student", "teacher")]
    report = Distillation(*sides, "test", 30, 1.0, None, None, None, {})
    base = ae.open_base(taught / "model.pt").exported(tmp_path)
    found = time_student(report, base, ae.load_adapter(taught / "teacher"), base.path, 8)
    assert found.overhead.ratio > 0
    assert ("distillation does not pay" in " ".join(found.notes)) == (found.overhead.ratio < 1.1)
