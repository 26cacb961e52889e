"""Print how many rows are answered wrong, for each entry point and bundle, as a table in Markdown.

    python tests/entry_points/table.py [-k NAMES]

A cell is `wrong/rows`, with the rows that are refused although there is a right answer. Options are those of pytest.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest


class Collector:
    """Keeps what each test noted of its entry point."""

    def __init__(self) -> None:
        self.cells: dict[str, dict[str, str]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        name = report.nodeid.partition("[")[2].rstrip("]")
        if name and (report.when == "call" or report.skipped or report.failed):
            self.cells[name] = {str(key): str(value) for key, value in report.user_properties}


def main(options: list[str]) -> int:
    """Run the tests, and print what they found."""
    collector = Collector()
    words = [str(Path(__file__).parent), "-q", "--no-header", "--tb=no", "-p", "no:cacheprovider", "-rN", *options]
    code = pytest.main(words, plugins=[collector])
    bundles = list(dict.fromkeys(name for cells in collector.cells.values() for name in cells))
    rows = [["entry point", *bundles], ["---"] * (1 + len(bundles))]
    rows += [[name, *(cells.get(bundle, "not run") for bundle in bundles)] for name, cells in collector.cells.items()]
    for row in rows:
        print("| " + " | ".join(row) + " |")
    return int(code)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
