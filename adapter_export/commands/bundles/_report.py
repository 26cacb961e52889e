"""Terminal output for a report of `check` or `verify`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adapter_export.commands.command import Screen
from adapter_export.tables import Table

if TYPE_CHECKING:
    from adapter_export.bundle.report import Report

_VERDICTS = {"passed": "bold green", "partial": "bold yellow", "failed": "bold red"}
_STYLES = {"": "", "facts": "dim", "note": "yellow", "failed": "bold red"}


def show_report(report: Report, screen: Screen, *, nodes: bool = False) -> None:
    """Render the findings by section, then the failures and the verdict."""
    from adapter_export.bundle.proof.report_view import Line, failed_lines, sections, style_of

    reference = report.reference or "the golden vectors"
    screen.line((f"{report.bundle}: {report.runtime} against {reference}", "bold"))
    for section in sections(report, nodes=nodes):
        if section.parts:
            screen.line("")
            screen.line((section.title, "bold"))
        for part in section.parts:
            if isinstance(part, Table):
                screen.show(part)
            elif isinstance(part, Line):
                screen.line((part.text, _STYLES[part.style]))
    for line in failed_lines(report):
        screen.line((line.text, _STYLES[line.style]))
    screen.line((report.summary, _VERDICTS[style_of(report)]))
