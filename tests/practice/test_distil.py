"""A student learns from labels, and from an adapted model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from once import once
from small_encoder import load_encoder
from small_task import reviews

import adapter_export as ae

QUICK = {"epochs": 4, "batch_size": 8, "learning_rate": 0.01}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`model.pt`, `train.tsv`, `test.tsv`, and `teacher`, an adapter."""

    def make(folder: Path) -> None:
        load_encoder(folder / "model.pt")
        found = reviews(120)
        for name, rows in (("train", found[30:]), ("test", found[:30])):
            lines = "".join(f"{text}\t{label}\n" for text, label in rows)
            (folder / f"{name}.tsv").write_text(f"text\tlabel\n{lines}", encoding="utf-8")
        ae.train(folder / "model.pt", folder / "train.tsv", folder / "teacher", kind="pfeiffer", bottleneck=4, **QUICK)

    return once(tmp_path_factory, "distillation", make)


def test_labels_alone_tune_all_weights(folder: Path, tmp_path: Path) -> None:
    found = ae.distil(
        folder / "model.pt", folder / "train.tsv", tmp_path / "tuned", test_data=folder / "test.tsv", **QUICK
    )
    assert found.teacher is None
    assert found.student.scores["accuracy"].value > 0.8
    base, tuned = ae.open_base(folder / "model.pt"), ae.open_base(tmp_path / "tuned/model.pt")
    before, after = base.torch.program.state_dict, tuned.torch.program.state_dict
    changed = {name for name in before if not np.array_equal(before[name].detach(), after[name].detach())}
    assert changed == {name for name in before if not name.startswith("pooler")}, "all that the head reads of"
    assert tuned.own_head.training["test"]["accuracy"] == found.student.scores["accuracy"].value
    session = ort.InferenceSession(tmp_path / "tuned/model.onnx")
    assert [one.name for one in session.get_inputs()] == [one.name for one in base.inputs], "no slots"
    assert "logits" in [one.name for one in session.get_outputs()]
