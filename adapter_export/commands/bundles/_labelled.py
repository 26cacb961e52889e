"""Shared parts of the commands `evaluate` and `compare`: checks of the call, the page, and the rendering of scores."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from adapter_export.api.models.base import Address, require
from adapter_export.commands.command import Screen
from adapter_export.errors import DataError
from adapter_export.hub.address import locate
from adapter_export.reporting import Reporter
from adapter_export.safe_io.output import Output

if TYPE_CHECKING:
    from adapter_export.analysis.comparison import Comparison
    from adapter_export.analysis.evaluation import Evaluation


def data_file(data: Address, report: Output | None, reporter: Reporter) -> Path:
    """Return the file with the rows, once it is known that the page can be written.

    Raises:
        OutputExistsError, WriteError: the page cannot be written.
        DataError: the data do not exist.
        RemoteError: the Hub does not give them.
    """
    if report is not None:
        report.ensure_writable()
    found = locate(data, "table", reporter).path
    if not found.exists():
        raise DataError("does not exist", where=found, expected="labelled texts", fix="check the path")
    return found


def require_metrics(verb: str) -> None:
    """Import the libraries of metrics; `MissingExtraError` if one is not installed."""
    for library in ("sklearn", "scipy", "seqeval"):
        require(library, "evaluate", f"`{verb}`")


def write_page(report: Output | None, page: Callable[[], str]) -> None:
    """Write a page, if one is wanted."""
    if report is not None:
        with report.file() as temporary:
            temporary.write_text(page(), encoding="utf-8")


def show_scores(found: Evaluation | Comparison, screen: Screen) -> None:
    """Show the tables of a result, and warn of its notes."""
    for note in found.notes:
        screen.warn(f"{note}.")
    for table in found.tables():
        screen.show(str(table.title), replace(table, title=None), "")
    for remark in found.remarks():
        screen.say(remark)
    if "report" in screen.given:
        screen.say(f"the page is {screen.given['report']}.")
