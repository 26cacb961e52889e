"""Print how many rows are answered wrong, for each entry point and bundle, as a table in Markdown.

    python tests/entry_points/table.py [-k NAMES] [--write]

A cell is `wrong/rows`, with the rows that are refused although there is a right answer. `--write` records which tasks
each entry point answers, for the support matrix. Other options are those of pytest.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

RECORD = Path(__file__).with_name("answered.json")
TASKS = "tasks"
"""The property of a test with the types of tasks that were answered."""


class Collector:
    """Keeps what each test noted of its entry point."""

    def __init__(self) -> None:
        self.cells: dict[str, dict[str, str]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        name = report.nodeid.partition("[")[2].rstrip("]")
        if name and (report.when == "call" or report.skipped or report.failed):
            self.cells[name] = {str(key): str(value) for key, value in report.user_properties}


def main(options: list[str]) -> int:
    """Run the tests, and print the results."""
    write = "--write" in options
    options = [one for one in options if one != "--write"]
    collector = Collector()
    words = [str(Path(__file__).parent), "-q", "--no-header", "--tb=no", "-p", "no:cacheprovider", "-rN", *options]
    code = pytest.main(words, plugins=[collector])
    tasks = {name: cells.pop(TASKS, "").split(",") for name, cells in collector.cells.items()}
    if write:
        known = json.loads(RECORD.read_text("utf-8")) if RECORD.exists() else {}
        lines = [
            f"{json.dumps(name)}: {json.dumps(found)}"
            for name, found in {**tasks, **{one: known[one] for one in known if one not in tasks}}.items()
        ]
        RECORD.write_text("{\n" + ",\n".join(lines) + "\n}\n", "utf-8")
    bundles = list(dict.fromkeys(name for cells in collector.cells.values() for name in cells))
    rows = [["entry point", *bundles], ["---"] * (1 + len(bundles))]
    rows += [[name, *(cells.get(bundle, "not run") for bundle in bundles)] for name, cells in collector.cells.items()]
    for row in rows:
        print("| " + " | ".join(row) + " |")
    return int(code)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
