"""Fixtures for the tests of smaller models."""

from __future__ import annotations

from pathlib import Path

import pytest
from once import once
from small_encoder import load_encoder
from small_task import reviews

import adapter_export as ae


@pytest.fixture(scope="session")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`model.pt`, `train.tsv`, `test.tsv`, and `teacher`, an adapter that has learnt the one and was tested on both."""

    def make(folder: Path) -> None:
        load_encoder(folder / "model.pt")
        found = reviews(120)
        for name, rows in (("train", found[30:]), ("test", found[:30])):
            lines = "".join(f"{text}\t{label}\n" for text, label in rows)
            (folder / f"{name}.tsv").write_text(f"text\tlabel\n{lines}", encoding="utf-8")
        files = {"data": folder / "train.tsv", "test_data": folder / "test.tsv", "output": folder / "teacher"}
        loop = {"epochs": 15, "patience": 3, "batch_size": 8, "learning_rate": 0.02, "quick": True}
        ae.train(folder / "model.pt", kind="houlsby", bottleneck=8, **loop, **files)

    return once(tmp_path_factory, "taught", make)
