"""A task type: one file for its head, columns, answers, metrics and tables, and one for its loss."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

from small_encoder import BAD, GOOD, OTHER, save_encoder

TYPE_FILE, LOSS_FILE = "graph/tasks/types/count.py", "training/objectives/count_loss.py"
TYPE = '''"""Counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from adapter_export.errors import DataError
from adapter_export.graph.tasks.answers import Answer
from adapter_export.graph.tasks.cells import numbers, short
from adapter_export.graph.tasks.task_type import TaskType


@dataclass(frozen=True)
class Count(Answer):
    """The expected count."""

    count: float

    def document(self) -> dict[str, Any]:
        return {"count": self.count}


class CountType(TaskType):
    """How often something occurs: the head gives the logarithm of the rate."""

    name = "count"
    width = 1
    activations = ("identity",)
    column = "count"

    def read(self, cells):
        found = numbers(cells.label, cells.where)
        if found is not None and (len(found) != 1 or found[0] < 0):
            raise DataError("is no count", where=cells.where, found=f"`{short(cells.label)}`", expected="0 or more")
        return cells.with_answer(None if found is None else found[0])

    def encode(self, answers: Sequence[Any], labels, where: str):
        return np.array(answers, np.float32)

    def answer(self, task, result, real, context):
        return Count(float(np.exp(result[0])))

    def metrics(self, labels):
        from adapter_export.graph.tasks.metrics import NUMBERS

        return NUMBERS

    def judge(self, task, rows):
        from adapter_export.graph.tasks.metrics import judge_numbers

        found, right = np.exp(np.stack(rows.results).astype(np.float64)), np.asarray(rows.right, np.float64)
        return judge_numbers(found.reshape(len(right), 1), right.reshape(-1, 1))

    def cells(self, row):
        return f"{row.text_answer.answer.count:.2f}", "", ""


TYPE = CountType()
'''
LOSS = '''"""The loss of counts."""

from __future__ import annotations

import torch

from adapter_export.training.objectives.objective import Objective


class CountObjective(Objective):
    """The negative log-likelihood of a Poisson distribution, without its constant."""

    loss_name = "Poisson loss (nats)"

    def loss(self, results, targets, weights):
        total = torch.nn.functional.poisson_nll_loss(results[:, 0], targets, reduction="sum")
        return total, results.new_tensor(len(targets))


OBJECTIVE = CountObjective()
'''


def test_a_new_task_type_is_two_files(trial, tmp_path: Path) -> None:
    trial.add(TYPE_FILE, TYPE)
    trial.add(LOSS_FILE, LOSS)
    save_encoder(tmp_path / "model.pt")
    counted = list(itertools.product(OTHER[:4], (*GOOD, *BAD), (*GOOD, *BAD)))
    rows = [{"text": " ".join(words), "label": sum(word in GOOD for word in words)} for words in counted]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    quick = ("--task", "count", "--epochs", "2", "--batch-size", "8", "--bottleneck", "4")
    trial.command("train", "model.pt", "--data", "rows.jsonl", *quick, "-o", "counts")
    trial.command("build", "model.pt", "--adapters", "counts", "-o", "bundle")
    trial.command("check", "bundle", "--against", "model.pt", "--quick")
    (row,) = trial.json("run", "bundle", "--adapter", "counts", "--text", "good good film")["rows"]
    assert row["task"] == "count"
    assert math.isfinite(row["count"])
    assert row["count"] > 0
    assert f"{row['count']:.2f}" in trial.command("run", "bundle", "--adapter", "counts", "--text", "good good film")
    found = trial.json("evaluate", "bundle", "--data", "rows.jsonl", "--against", "model.pt")
    assert found["scores"]["mean_absolute_error"]["value"] < 1
    assert trial.touched == [TYPE_FILE, LOSS_FILE]
