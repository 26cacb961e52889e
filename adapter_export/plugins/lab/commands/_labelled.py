"""Parts shared by `evaluate` and `compare`: argument checks, the HTML page, and tables of scores."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from adapter_export.address import Address, locate
from adapter_export.commands.command import Screen
from adapter_export.errors import DataError
from adapter_export.extras import require
from adapter_export.reporting import Reporter
from adapter_export.safe_io.output import Output

if TYPE_CHECKING:
    from adapter_export.plugins.lab.comparison import Comparison
    from adapter_export.plugins.lab.evaluation import Evaluation


def data_file(data: Address, report: Output | None, reporter: Reporter) -> Path:
    """Return the file of labelled rows, after checking that the page can be written.

    Raises:
        OutputExistsError, WriteError: the page cannot be written.
        DataError: the file does not exist.
        RemoteError: the Hub cannot serve it.
    """
    if report is not None:
        report.ensure_writable()
    path = locate(data, "table", reporter).path
    if not path.exists():
        raise DataError("does not exist", where=path, expected="labelled texts", fix="check the path")
    return path


def require_metrics(verb: str) -> None:
    """Import the metric libraries; raise `MissingExtraError` if one is not installed."""
    for library in ("sklearn", "scipy", "seqeval"):
        require(library, "evaluate", f"`{verb}`")


def write_page(report: Output | None, page: Callable[[], str]) -> None:
    """Write the page if one was requested."""
    if report is not None:
        with report.file() as temporary:
            temporary.write_text(page(), encoding="utf-8")


def show_scores(report: Evaluation | Comparison, screen: Screen) -> None:
    """Show a result's tables and warn about its notes."""
    for note in report.notes:
        screen.warn(note + ".")
    for table in report.tables():
        screen.show(str(table.title), replace(table, title=None), "")
    for remark in report.remarks():
        screen.report(remark)
    if "report" in screen.given:
        screen.report(f"wrote {screen.given['report']}")
