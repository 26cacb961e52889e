"""Terminal output for a report of `check` or `verify`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from adapter_export.commands.command import Screen
from adapter_export.tables import Table

if TYPE_CHECKING:
    from adapter_export.bundle.proof.report_view import Heat, Line
    from adapter_export.bundle.report import Report

_VERDICTS = {"passed": "bold green", "partial": "bold yellow", "failed": "bold red"}
_STYLES = {"": "", "facts": "dim", "formula": "dim", "note": "yellow", "failed": "bold red"}


VERBOSE = "Show every claim, shape, site and the coverage, not only a summary."


def show_report(report: Report, screen: Screen, *, nodes: bool = False) -> None:
    """Render a summary, or every section with `--verbose` or `nodes`, then the failures and the verdict."""
    from adapter_export.bundle.proof.report_view import failed_lines, overview, sections, style_of

    reference = report.reference or "the golden vectors"
    screen.line((f"{report.bundle}: {report.runtime} against {reference}", "bold"))
    if screen.verbose or nodes:
        for section in sections(report, nodes=nodes):
            if section.parts:
                screen.line("")
                screen.line((section.title, "bold"))
            _show_parts(section.parts, screen)
    else:
        _show_parts(overview(report), screen)
        screen.line(("`--verbose` shows every claim", "dim"))
    _show_parts(failed_lines(report), screen)
    screen.line((report.summary, _VERDICTS[style_of(report)]))


def _show_parts(parts: Iterable[Line | Table | Heat], screen: Screen) -> None:
    """Render lines and tables; heat maps are for the page."""
    from adapter_export.bundle.proof.report_view import Line

    for part in parts:
        if isinstance(part, Table):
            screen.show(part)
        elif isinstance(part, Line):
            screen.line((part.text, _STYLES[part.style]))
