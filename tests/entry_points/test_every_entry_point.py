"""Every entry point returns the same answer as the torch model for the single row, or the same refusal.

A new entry point is a line in one of the tables, a new property of bundles a plan in `asked_bundles.py`.
"""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import oracle
import pytest
from asked_bundles import Bundle
from asking import EntryPoint, outcome
from client_entry_points import CLIENTS
from measuring_entry_points import MEASURING
from platform_entry_points import PLATFORMS
from python_entry_points import PYTHON
from service_entry_points import SERVICES
from table import RECORD, TASKS

IN_PROCESS = (*PYTHON, *MEASURING)
ENTRY_POINTS = (*IN_PROCESS, *SERVICES, *CLIENTS, *PLATFORMS)
QUICK = "steps"
"""A bundle whose base takes some lengths only, with adapters that count padding: rows must not share every call."""
SHOWN = 5
ANSWERED = json.loads(RECORD.read_text("utf-8"))
"""The types of tasks that each entry point has answered right: the support matrix shows them."""


@pytest.mark.parametrize("entry", IN_PROCESS, ids=lambda entry: entry.name)
def test_entry_points_answer_for_a_base_with_multiples_of_8(
    entry: EntryPoint, asked_bundle: Callable[[str], Bundle], request: pytest.FixtureRequest
) -> None:
    check(entry, [asked_bundle(QUICK)], request)


@pytest.mark.parametrize("entry", ENTRY_POINTS, ids=lambda entry: entry.name)
def test_every_entry_point_answers_rows_as_the_model_does(
    entry: EntryPoint, bundles: list[Bundle], request: pytest.FixtureRequest
) -> None:
    tasks = check(entry, bundles, request)
    request.node.user_properties.append((TASKS, ",".join(sorted(tasks))))
    assert sorted(tasks) == ANSWERED[entry.name], "run `python tests/entry_points/table.py --write`"


def test_the_record_has_every_entry_point() -> None:
    assert list(ANSWERED) == [entry.name for entry in ENTRY_POINTS]


def check(entry: EntryPoint, bundles: Sequence[Bundle], request: pytest.FixtureRequest) -> set[str]:
    """Ask an entry point all rows of some bundles; return the types of their tasks."""
    tool = None if entry.needs is None else request.getfixturevalue(entry.needs)
    found = {bundle.name: outcome(entry, bundle, tool) for bundle in bundles}
    for name, one in found.items():
        request.node.user_properties.append((name, str(one)))
    faults = [
        f"{name}: `{fault.row.adapter}` on {fault.row}: {fault.what}"
        for name, one in found.items()
        for fault in one.faults
    ]
    assert all(one.rows for one in found.values()) or entry.tasks
    assert any(one.rows for one in found.values())
    assert not faults, "\n".join([f"{len(faults)} faults", *faults[:SHOWN]])
    return {task for one in found.values() for task in one.tasks}


def test_the_oracle_is_written_without_the_package() -> None:
    tree = ast.parse(Path(oracle.__file__).read_text("utf-8"))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {alias.name for node in imports if isinstance(node, ast.Import) for alias in node.names}
    names |= {str(node.module) for node in imports if isinstance(node, ast.ImportFrom)}
    others = {name.partition(".")[0] for name in names} - sys.stdlib_module_names
    assert others == {"numpy", "onnxruntime", "safetensors", "tokenizers", "torch"}
