"""Every client gives the answers of the Python runtime, for every problem type, one adapter at a time and mixed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clients import CLIENTS, Client, alike

from adapter_export.graph.tasks import PROBLEM_TYPES
from adapter_export.graph.tasks.types.span import LONGEST_SPAN
from adapter_export.runtime import Bundle, Session

pytestmark = pytest.mark.parametrize("client", CLIENTS, indirect=True)

ROWS, LONGEST = 2 * len(PROBLEM_TYPES), 60


@pytest.fixture(scope="module")
def session(task_bundle: Path) -> Session:
    return Bundle.open(task_bundle).session(threads=1)


@pytest.fixture(scope="module")
def rows() -> dict[str, np.ndarray]:
    """Rows of 3 to 60 tokens, padded."""
    rng = np.random.default_rng(11)
    lengths = np.linspace(3, LONGEST, ROWS).astype(int)
    mask = (np.arange(LONGEST) < lengths[:, None]).astype(np.int64)
    return {"input_ids": rng.integers(1, 20, (ROWS, LONGEST)) * mask, "attention_mask": mask}


def _written(folder: Path, rows: dict[str, np.ndarray]) -> Path:
    path = folder / "rows.json"
    path.write_text(json.dumps({name: array.tolist() for name, array in rows.items()}))
    return path


def _contexts(rows: dict[str, np.ndarray]) -> np.ndarray:
    """All tokens but the first two may be the answer to a question."""
    return (rows["attention_mask"] == 1) & (np.arange(rows["attention_mask"].shape[1]) >= 2)


def _context_options(rows: dict[str, np.ndarray]) -> list[str]:
    return [word for row in _contexts(rows).astype(int) for word in ("--context", ",".join(map(str, row)))]


def _expected(session: Session, rows: dict[str, np.ndarray], names: list[str]) -> list[dict[str, Any]]:
    answers = session.answer(rows, adapters=names, context=list(_contexts(rows)))
    heads = [session.head(name) for name in names]
    return [
        {"adapter": head.adapter, "task": head.task.type if head.task else None, **found.document()}
        for head, found in zip(heads, answers, strict=True)
    ]


@pytest.mark.parametrize("problem", PROBLEM_TYPES)
def test_clients_answer_with_one_adapter_as_python_does(
    client: Client,
    task_bundle: Path,
    session: Session,
    rows: dict[str, np.ndarray],
    tmp_path: Path,
    problem: str,
) -> None:
    found = client.run(task_bundle, _written(tmp_path, rows), "--adapter", problem, *_context_options(rows))
    expected = _expected(session, rows, [problem] * ROWS)
    alike(found, expected)
    if problem == "span":  # the limit matters
        assert max(row["last_token"] - row["first_token"] + 1 for row in expected) == LONGEST_SPAN
        assert min(row["first_token"] for row in expected) == 2


def test_clients_answer_all_problem_types_in_one_batch(
    client: Client, task_bundle: Path, session: Session, rows: dict[str, np.ndarray], tmp_path: Path
) -> None:
    """In the bank, where results are as wide as the widest."""
    names = [*PROBLEM_TYPES, *PROBLEM_TYPES]
    choices = [word for name in names for word in ("--adapter", name)]
    found = client.run(task_bundle, _written(tmp_path, rows), *choices, *_context_options(rows))
    alike(found, _expected(session, rows, list(names)))


def test_a_span_of_arrays_without_context_is_refused(
    client: Client, task_bundle: Path, rows: dict[str, np.ndarray], tmp_path: Path
) -> None:
    """The answer could be the question."""
    path = _written(tmp_path, {name: array[:1] for name, array in rows.items()})
    client.refuses("context", "run", task_bundle, "--inputs", path, "--adapter", "span")


def test_adapters_without_a_task_return_raw_outputs(
    client: Client, task_bundle: Path, session: Session, rows: dict[str, np.ndarray], tmp_path: Path
) -> None:
    """There is no answer: results are given as they are, with the base's."""
    found = client.run(task_bundle, _written(tmp_path, rows), "--adapter", "unknown")
    outputs = session.run(rows, "unknown")
    for at, row in enumerate(found):
        listed = {name: array[at].tolist() for name, array in outputs.items()}
        alike(row, {"adapter": "unknown", "task": None, "outputs": listed})


def test_the_base_head_answers_for_the_base(
    client: Client, task_bundle: Path, session: Session, rows: dict[str, np.ndarray], tmp_path: Path
) -> None:
    """Where a call names the base, and in a batch for the rows of the base; a call without a name is refused."""
    bundle = shutil.copytree(task_bundle, tmp_path / "bundle")
    manifest = json.loads((bundle / "manifest.json").read_text("utf-8"))
    del manifest["checksum"]
    (bundle / "manifest.json").write_text(json.dumps({**manifest, "head": "single_label"}), encoding="utf-8")
    few = {name: array[:3] for name, array in rows.items()}
    path = _written(tmp_path, few)
    alike(client.run(bundle, path, "--adapter", "base"), _expected(session, few, ["single_label"] * 3))
    unnamed = client.call("run", bundle, "--inputs", path)
    assert unnamed.returncode
    assert "no adapter is named; found adapters that answer: " in unnamed.stderr
    assert "`multi_label`" in unnamed.stderr
    assert "`single_label`" not in unnamed.stderr
    mixed = client.run(bundle, path, "--adapter", "-", "--adapter", "multi_label", "--adapter", "-")
    alike(mixed, _expected(session, few, ["single_label", "multi_label", "single_label"]))
