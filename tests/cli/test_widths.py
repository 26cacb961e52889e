"""Tables and bars on narrow terminals: every number stays whole."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console
from widths import WIDTHS, check_whole, drawn, shown_columns

import adapter_export
from adapter_export.cli.reporter import progress_on
from adapter_export.tables import Table

PACKAGE = Path(adapter_export.__file__).parent
NUMBER = "12,345,678"
TEXT = "a text of 1,234 words with the number 0.98765 in it"
PATH = "a/long/path/of/folders/with-a-name/and-another-name-that-no-terminal-takes-in-one-line.safetensors"


def constructed() -> Iterator[tuple[str, tuple[str, ...], str]]:
    """Yield each table that the package makes: where, its headings and its alignment, as far as its source has them.

    `Table` is the one way to a table, in terminals, notebooks and pages.
    """
    for path in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(path.read_text("utf-8"))
        if "adapter_export.tables" not in path.read_text("utf-8"):
            continue
        for function in ast.walk(tree):
            if not isinstance(function, ast.FunctionDef):
                continue
            named = {
                target.id: node.value
                for node in ast.walk(function)
                if isinstance(node, ast.Assign)
                for target in node.targets
                if isinstance(target, ast.Name)
            }
            for call in (node for node in ast.walk(function) if isinstance(node, ast.Call)):
                if isinstance(call.func, ast.Name) and call.func.id == "Table" and call.args:
                    headings = call.args[0]
                    headings = named.get(headings.id, headings) if isinstance(headings, ast.Name) else headings
                    yield f"{path.relative_to(PACKAGE)}:{call.lineno}", _texts(headings), _alignment(call, named)


def _texts(node: ast.expr) -> tuple[str, ...]:
    """Headings in a tuple or list; values missing in the source become three headings, such as of metrics."""
    if not isinstance(node, ast.Tuple | ast.List):
        return ("first", "second", "third")
    found: list[str] = []
    for one in node.elts:
        if isinstance(one, ast.Constant):
            found.append(str(one.value))
        elif isinstance(one, ast.Starred):
            found += ["accuracy", "macro-F1", "average precision"]
        else:
            found.append("heading")
    return tuple(found)


def _alignment(call: ast.Call, named: dict[str, ast.expr]) -> str:
    given = [one.value for one in call.keywords if one.arg == "numbers"] + list(call.args[3:4])
    node = given[0] if given else ast.Constant("")
    node = named.get(node.id, node) if isinstance(node, ast.Name) else node
    return str(node.value) if isinstance(node, ast.Constant) else "l" + "r" * 20


CONSTRUCTED = list(constructed())


def test_all_tables_are_found() -> None:
    """Draw the tables that broke numbers before, among others."""
    files = {where.partition(":")[0] for where, _, _ in CONSTRUCTED}
    assert len(CONSTRUCTED) > 45
    assert {
        *("plugins/lab/adapter_costs.py", "plugins/lab/mistakes.py", "plugins/lab/comparison.py"),
        *("bundle/proof/report_view.py", "commands/bundles/inspect.py", "commands/training/train.py"),
        "graph/tasks/labels.py",
    } <= files


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize(("where", "columns", "numbers"), CONSTRUCTED, ids=[where for where, _, _ in CONSTRUCTED])
def test_no_table_of_the_package_breaks_a_number(
    where: str, columns: tuple[str, ...], numbers: str, width: int
) -> None:
    """With a long number in every column of numbers, and texts, paths and digests in all others."""
    texts = (TEXT, PATH, "0f" * 32)
    cells = [f"{10 + at},345,678" if numbers[at : at + 1] == "r" else texts[at % 3] for at in range(len(columns))]
    table = Table(columns, [cells, cells], where, numbers)
    check_whole(table, width)
    assert columns[0] in shown_columns(table, drawn(table, width))


@given(
    st.lists(
        st.lists(
            st.one_of(st.integers(0, 10**9).map("{:,}".format), st.floats(0, 1).map("{:.4f}".format)),
            min_size=3,
            max_size=12,
        ),
        min_size=1,
        max_size=4,
    ).filter(lambda rows: len({len(row) for row in rows}) == 1),
    st.sampled_from([60, 80, 120]),
    st.booleans(),
)
def test_numbers_of_shown_columns_are_whole(rows: list[list[str]], width: int, right: bool) -> None:
    """Keep numbers whole that are set to the left, too."""
    columns = [f"column{at}" for at in range(len(rows[0]))]
    check_whole(Table(columns, rows, numbers="r" * len(columns) if right else ""), width)


def test_spare_columns_are_left_out_first_and_named() -> None:
    columns = ("name", "first", "second", "third", "verdict")
    table = Table(columns, [("adapter", *[NUMBER] * 3, "pass")], "title", "lrrrl", spare=("second",))
    assert shown_columns(table, drawn(table, 80)) == set(columns)
    lines = drawn(table, 46)
    assert shown_columns(table, lines) == {"name", "first", "third", "verdict"}
    assert "not shown: second; `--json` has them" in "\n".join(lines)
    assert shown_columns(table, drawn(table, 34)) == {"name", "first", "verdict"}


def test_a_verdict_outlives_numbers() -> None:
    table = Table(("adapter", "error", "verdict"), [("a", NUMBER, "FAIL")], numbers="lr")
    assert "FAIL" in "\n".join(drawn(table, 20))


@pytest.mark.parametrize("width", WIDTHS)
def test_a_bar_keeps_its_numbers_and_shortens_its_label(width: int) -> None:
    out = Console(width=width, file=StringIO(), force_terminal=True, color_system=None, legacy_windows=False)
    bars = progress_on(out)
    label = "houlsby-64-attention+ffn-lr0.001-seed2: macro-F1 0.8765 on the validation rows of the third epoch"
    bars.add_task("training", total=123_456, completed=23_456, label=label)
    out.print(bars.get_renderable())
    assert isinstance(out.file, StringIO)
    (line,) = out.file.getvalue().splitlines()
    assert cell_len(line) <= width
    assert "23456/123456" in line
    assert "0:00:00 left -:--:--" in line
    assert "houlsby" in line
    assert line.rstrip().endswith("…")
