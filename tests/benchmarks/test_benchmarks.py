"""Every benchmark of swapping runs at tiny sizes, and its tables have their rows; no time is tested."""

from __future__ import annotations

import contextlib
import io
import json
import runpy
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from tiers import extended
from tiny_onnx import save_tiny

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"

SIZES = {
    "adapters": "3",
    "bottleneck": "4",
    "rounds": "2",
    "shapes": "1x1,3x7",
    "lengths": "2,5",
    "counts": "1,3",
    "sessions": "1,2",
    "callers": "1,2",
    "tenants": "70",
    "repeats": "1",
}

ROWS: Mapping[str, Mapping[str, list[object]]] = {
    "swap": {
        "Calls that swap": ["1 × 1", "3 × 7"],
        "A further adapter": [
            "load an adapter that is not in the bundle",
            "the same only with ONNX Runtime, unchecked",
            "a second session, adapter as constants",
            "a second session of the graph with slots",
        ],
    },
    "forms": {"Cost of each form of the graph": ["1 × 1", "3 × 7"]},
    "mixed": {
        "Requests for many adapters": [
            f"{words}, for {count}"
            for words in ("2 tokens", "5 tokens", "1 to 5 tokens", "1 to 5, most of them few")
            for count in (3, 1)
        ]
    },
    "fanout": {"One text for 3 adapters": ["1 × 2", "1 × 5"]},
    "callers": {
        "Many callers on one session": [1, 2],
        "All cores": [
            "a caller for each core, one thread",
            "the same, and a session for each",
            "one caller, all cores for an operation",
        ],
    },
    "tenants": {"Many adapters": ["1 × 1", "3 × 7"]},
    "memory": {
        "Memory with many adapters": [
            "one session, all loaded",
            "one session, all loaded",
            "one session, read on demand",
            "one session, read on demand",
            "a session for each, adapter as constants",
            "a session for each, adapter as constants",
        ]
    },
    "adding": {"A further adapter for a bundle": ["`build`", "`add`", "load into a running session"]},
}


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The modules that the programs share can be imported, as when they are run."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def run(program: str, *options: str) -> dict[str, Any]:
    """Return the JSON output of a program."""
    output = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(output):
        patch.setattr(sys, "argv", [program, "--json", *options])
        load(program, "__main__")
    return dict(json.loads(output.getvalue()))


def load(program: str, name: str = "read") -> dict[str, Any]:
    return runpy.run_path(str(BENCHMARKS / f"{program}.py"), run_name=name)


@pytest.fixture(scope="module")
@extended
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Output of all programs on a tiny base, whose bundles are built once."""
    model = save_tiny(tmp_path_factory.mktemp("tiny"))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        return run("all", f"--model={model}", *(f"--{name}={value}" for name, value in SIZES.items()))


@pytest.mark.parametrize("program", ROWS)
def test_tables_have_their_rows(found: dict[str, Any], program: str) -> None:
    assert "Load average" in found["machine"]
    tables = [table for table in found["tables"] if table["title"] in ROWS[program]]
    assert {table["title"]: [row[table["columns"][0]] for row in table["rows"]] for table in tables} == ROWS[program]
    for table in tables:
        cells = [cell for row in table["rows"] for cell in row.values() if isinstance(cell, dict)]
        assert all(cell["low"] <= cell["median"] <= cell["high"] for cell in cells)
    check = {"forms": check_forms, "memory": check_memory}.get(program)
    if check is not None:
        check(*tables)


def check_forms(table: dict[str, Any]) -> None:
    """A form that is left out, or timed as another one, would not be seen in the rows."""
    assert table["columns"][1:] == [
        "base, ms",
        "base + arithmetic",
        "adapter as constants",
        "slots, adapter fed",
        "slots, no adapter",
        "required inputs",
        "bank, one adapter",
        "bank, one per row",
        "slots over base + arithmetic",
    ]
    one, many = table["rows"]
    assert [name for name, cell in one.items() if cell is None] == ["bank, one per row"]  # a batch of one has one
    assert all(cell is not None for cell in many.values())
    assert many["base + arithmetic"]["median"] > 1


def check_memory(table: dict[str, Any]) -> None:
    assert [row["adapters"] for row in table["rows"]] == [1, 3, 1, 3, 1, 2]
    assert all(10 < row["memory, MB"] < 2000 for row in table["rows"])


@pytest.mark.usefixtures("programs")
def test_one_program_runs_all_benchmarks(found: dict[str, Any]) -> None:
    words = [part.words for part in load("all")["PARTS"]]
    assert {each.partition("python benchmarks/")[2].partition(".py")[0] for each in words} == set(ROWS)
    assert [table["title"] for table in found["tables"]] == [title for titles in ROWS.values() for title in titles]


@pytest.mark.usefixtures("programs")
class TestResults:
    """The file with results: its tables are replaced, and nothing else of it."""

    TEXT = (
        "before\n<!-- cpu: begin -->\nold\n<!-- cpu: end -->\nbetween\n<!-- cuda: begin -->\n<!-- cuda: end -->\nlast\n"
    )

    def test_only_the_tables_of_the_provider_change(self, tmp_path: Path) -> None:
        from kit.tables import Table, spread

        path = tmp_path / "RESULTS.md"
        path.write_text(self.TEXT, encoding="utf-8")
        table = Table("Title", ["size", "ratio", "count"], [["1 × 2", spread([1.0, 2.0, 3.0]), None]], "Read it so.")
        load("all")["write"](path, "cpu", "A machine.", [table])
        expected = (
            "A machine.\n\n### Title\n\nRead it so.\n\n| size | ratio | count |\n| --- | --- | --- |\n"
            "| 1 × 2 | 2.00 (1.50 to 2.50) | – |"
        )
        assert path.read_text(encoding="utf-8") == self.TEXT.replace("old", expected)

    def test_files_without_a_place_for_tables_are_left_alone(self, tmp_path: Path) -> None:
        path = tmp_path / "RESULTS.md"
        path.write_text("before\n<!-- cpu: begin -->\n", encoding="utf-8")
        with pytest.raises(SystemExit, match="has no lines"):
            load("all")["write"](path, "cpu", "", [])
        assert path.read_text(encoding="utf-8") == "before\n<!-- cpu: begin -->\n"

    def test_the_results_of_this_project_have_all_places(self) -> None:
        text = (BENCHMARKS / "RESULTS.md").read_text(encoding="utf-8")
        for provider in ("cpu", "cuda", "alternatives"):
            assert text.count(f"<!-- {provider}: begin -->") == text.count(f"<!-- {provider}: end -->") == 1


@pytest.mark.usefixtures("programs")
@pytest.mark.parametrize(
    ("program", "option"),
    [("forms", option) for option in ("--shapes=1", "--shapes=0x4", "--rounds=0")]
    + [(program, "--adapters=-1") for program in ROWS],
)
def test_a_wrong_option_is_one_sentence(program: str, option: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each program rejects it before any work."""
    uses = {"adapters", "bottleneck", *load(program)["PART"].uses}
    with pytest.raises(SystemExit) as error:
        run(program, *(f"--{name}={value}" for name, value in SIZES.items() if name in uses), option)
    assert error.value.code == 2
    assert "error: an option is not" in capsys.readouterr().err.replace(f"`{option.partition('=')[0]}`: ", "")


@pytest.mark.usefixtures("programs")
@pytest.mark.skipif("CUDAExecutionProvider" in ort.get_available_providers(), reason="there is a GPU")
def test_benchmark_without_a_gpu_ends_with_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        run("swap", "--provider=cuda")
    assert error.value.code == 2
    assert "`cuda` cannot be measured here" in capsys.readouterr().err


@pytest.mark.usefixtures("programs")
def test_the_products_of_a_base_are_all_that_is_left(tmp_path: Path) -> None:
    base = ir.load(save_tiny(tmp_path))
    weights = [node.inputs[1].const_value for node in base.graph if node.op_type == "MatMul"]
    expected = [weight.numpy() for weight in weights if weight is not None]
    path = tmp_path / "products.onnx"
    ir.save(load("alternatives")["products_alone"](base), path)
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    feeds = {one.name: rng.standard_normal((2, 3, one.shape[2]), dtype=np.float32) for one in session.get_inputs()}
    found = session.run(None, feeds)
    assert len(found) == len(expected) > 1
    for product, weight in zip(found, expected, strict=True):
        np.testing.assert_allclose(product, feeds[f"x{len(weight)}"] @ weight, rtol=1e-5, atol=1e-6)
