"""`adapter-export check` and `adapter-export verify`: does a bundle compute what it should, and is it whole?"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import click
from rich.text import Text

import adapter_export as ae
from adapter_export.cli.bases import listed, opened
from adapter_export.cli.options import Force, Json, SiteMapFile, TrustPickle, command
from adapter_export.cli.output import console, emit_json, show, shown
from adapter_export.cli.reporter import TerminalReporter
from adapter_export.errors import UsageError
from adapter_export.option import Option
from adapter_export.tables import Table

if TYPE_CHECKING:
    from adapter_export.bundle.report import Report

_MISMATCH = 1
_STYLES = {"": "", "facts": "dim", "note": "yellow", "failed": "bold red"}


@command(
    "adapter-export check bundle --against model.pt",
    "adapter-export check bundle",
    "adapter-export check bundle --against model.pt --data test.tsv --text text",
    "adapter-export check bundle --against model.pt --adapters a,b",
    "adapter-export check bundle --against model.pt --nodes --repro fault",
    "adapter-export check bundle --runtime old/bin/python",
    "adapter-export check bundle --json > report.json",
    "adapter-export check bundle --against model.pt --report page.html",
    "adapter-export check bundle --against model.pt --self-test",
    "adapter-export check bundle --against model.pt --baseline report.json",
    like=ae.check,
    sections={
        "choice": ("only", "variants", "cases", "quick"),
        "texts": ("data", "text"),
        "faults": ("nodes", "repro", "runtimes", "self_test"),
        "model": ("site_map", "trust_pickle"),
        "output": ("baseline", "report", "force", "as_json"),
    },
    common=("quick", "as_json"),
)
def check(
    bundle: Path,
    *,
    against: Annotated[
        Path | None,
        Option(
            "The model that the bundle was built from: a torch archive, a Hugging Face folder or an ONNX file. "
            "Without it, the golden vectors in the bundle are the reference, and torch is not needed.",
            "MODEL",
        ),
    ] = None,
    adapters: Annotated[
        str | None,
        Option("Adapter folders as you have them: compare the bundle with these, not with its own copies.", "A,B,…"),
    ] = None,
    self_test: Annotated[
        bool, Option("Plant faults of over a hundred kinds in a copy instead, and count those that are found.")
    ] = False,
    force: Force = False,
    site_map: SiteMapFile = None,
    trust_pickle: TrustPickle = False,
    as_json: Json = False,
    **options: Any,
) -> None:
    """Prove that BUNDLE computes what it should, for the base and every adapter.

    Compares every output of every graph in the bundle at a matrix of shapes: the graph with slots at ONNX Runtime's
    optimization levels none, basic and all, the bank also in batches whose rows run through different adapters. Then
    every adapter at every site with float64 arithmetic, and invariants: switching adapters has no side effects, idle
    slots change nothing, rows of a batch stay apart, all files match their hashes. What is allowed follows from
    the computation, and is printed with its reason. With MODEL, every node is compared with MODEL's, on MODEL's values.

    With MODEL, every constant and node is verified bit by bit; with the adapters, every slot. Each claim is bit-exact,
    tested, unverified or failed.

    A bundle whose base has another precision than MODEL is compared with MODEL in that same precision; the distance
    from MODEL itself is reported beside, on random inputs or on the texts of FILE.

    Exit codes: 0 everything is within its budget, 1 something is not, 3 the bundle or the model cannot be used,
    4 nothing was compared.
    """
    model = None if against is None else opened(against, site_map, trust_pickle)
    if self_test:
        _self_test(bundle, model, {"adapters": adapters, **options}, as_json=as_json)
        return
    own = None if adapters is None else listed(adapters)
    with TerminalReporter("checking") as reporter:
        report = ae.check(bundle, against=model, adapters=own, force=force, reporter=reporter, **options)
    _show(report, nodes=options.get("nodes", False), as_json=as_json)
    if options.get("report") is not None and not as_json:
        console().print(f"the page is {options['report']}", markup=False, soft_wrap=True)
    if not report.passed:
        raise click.exceptions.Exit(_MISMATCH)


def _self_test(bundle: Path, base: ae.Base | None, options: Mapping[str, object], *, as_json: bool) -> None:
    if any(options.values()):
        given = ", ".join(f"--{name.replace('_', '-')}" for name, value in options.items() if value)
        raise UsageError(
            "a self-test tries the whole bundle", found=given, fix="leave them out, or leave --self-test out"
        )
    with TerminalReporter("planting faults") as reporter:
        found = ae.self_test(bundle, against=base, reporter=reporter)
    if as_json:
        emit_json(found.to_json())
    else:
        show(found.table())
        for fault in found.faults:
            if fault.status in ("missed", "without effect"):
                line = f"{fault.status}: {fault.name} (`{'`, `'.join(fault.places)}`): {fault.detail}"
                console().print(Text(line, "bold red" if fault.status == "missed" else ""), soft_wrap=True)
    if not found.passed:
        raise click.exceptions.Exit(_MISMATCH)


@command(
    "adapter-export verify bundle",
    "adapter-export verify bundle --expect DIGEST",
    "adapter-export verify bundle --json > report.json",
    like=ae.verify,
)
def verify(bundle: Path, *, as_json: Json = False, **options: Any) -> None:
    """Show that BUNDLE is whole, and that it computes on this machine what it should.

    Needs neither torch nor the model. Checks every file against its hash, and that there are no others and no links
    that lead out; the manifest against its schema; every graph against the manifest: inputs, outputs, slots with their
    defaults, where its weights lie; both files of every adapter against the slots and each other, and the rows of the
    bank against them. Then it runs the golden vectors in every variant of the graph, the bank also in batches whose
    rows run through different adapters. `check --against MODEL` goes further.

    Exit codes: 0 passed, 1 a result is off, 3 the bundle is damaged, or something in it does not fit, 4 nothing was
    compared.
    """
    with TerminalReporter("verifying") as reporter:
        report = ae.verify(bundle, reporter=reporter, **options)
    _show(report, as_json=as_json)
    if not report.passed:
        raise click.exceptions.Exit(_MISMATCH)


def _show(report: Report, *, nodes: bool = False, as_json: bool) -> None:
    from adapter_export.bundle.proof.report_view import Line, failed_lines, sections

    if as_json:
        emit_json(report.to_json())
        return
    out = console()
    out.print(Text(f"{report.bundle}: {report.runtime} against {report.reference or 'the golden vectors'}", "bold"))
    for section in sections(report, nodes=nodes):
        if section.parts:
            out.print(Text(f"\n{section.title}", "bold"), soft_wrap=True)
        for part in section.parts:
            if isinstance(part, Table):
                out.print(shown(part))
            elif isinstance(part, Line):
                out.print(Text(part.text, _STYLES[part.style]), soft_wrap=True)
    for line in failed_lines(report):
        out.print(Text(line.text, _STYLES[line.style]), soft_wrap=True)
    out.print(Text("passed", "bold green") if report.passed else Text("failed", "bold red"))
