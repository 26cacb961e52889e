"""`adapter-export check`: does a bundle compute what it should?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from adapter_export.cli.options import PATH, examples, json_option, trust_pickle_option

if TYPE_CHECKING:
    from adapter_export.cli.sources import Source
    from adapter_export.format.manifest import Manifest
    from adapter_export.parity.prove import Reference
    from adapter_export.reference.runner import Runner

_MISMATCH = 1


@click.command(
    epilog=examples(
        "adapter-export check bundle --against model.pt",
        "adapter-export check bundle",
        "adapter-export check bundle --against model.pt --only trec --case batch3_tokens7_padded",
        "adapter-export check bundle --json > report.json",
    )
)
@click.argument("bundle", type=PATH)
@click.option(
    "--against",
    type=PATH,
    metavar="MODEL",
    help="The model that the bundle was built from: a torch archive, a Hugging Face folder or an ONNX file. "
    "Without it the golden vectors in the bundle are the reference, and torch is not needed.",
)
@click.option("--only", multiple=True, metavar="ADAPTER", help="Check this adapter alone, or `base`; may be repeated.")
@click.option("--case", "cases", multiple=True, metavar="CASE", help="Try this shape alone; may be repeated.")
@trust_pickle_option
@json_option
def check(
    bundle: Path, against: Path | None, only: tuple[str, ...], cases: tuple[str, ...], trust_pickle: bool, as_json: bool
) -> None:
    """Prove that BUNDLE computes what it should, for the base and every adapter.

    Compares every output at a matrix of shapes and at ONNX Runtime's optimization levels none, basic and all; every
    adapter at every site with float64 arithmetic; and what must hold in any case: switching leaves no trace, idle
    slots change nothing, all files are as they were written. What is allowed follows from the computation, and is
    printed with its reason.

    Exit codes: 0 everything is within its budget, 1 something is not, 3 the bundle or the model cannot be used,
    4 nothing was compared.
    """
    from adapter_export.cli.output import emit_json, progress_bar
    from adapter_export.parity.document import to_document
    from adapter_export.parity.plan import plan_check
    from adapter_export.parity.prove import prove, steps

    plan = plan_check(bundle, only=only, cases=cases)
    reference = None if against is None else _reference(against, plan.manifest, trust_pickle)
    with progress_bar("checking", steps(plan, reference)) as bar:
        report = prove(plan, reference, lambda note: bar.advance(note=note))
    report.require_compared()
    if as_json:
        emit_json(to_document(report))
    else:
        from adapter_export.cli.check_tables import show

        show(report)
    if not report.passed:
        raise click.exceptions.Exit(_MISMATCH)


def _reference(path: Path, manifest: Manifest, trust_pickle: bool) -> Reference:
    from adapter_export.cli.sources import open_source
    from adapter_export.errors import BaseModelError
    from adapter_export.parity.prove import Reference

    source = open_source(path, trust_pickle=trust_pickle)
    if source.fingerprint != manifest.base:
        raise BaseModelError(
            "is another base than the bundle's",
            where=path,
            found=f"base fingerprint {source.fingerprint}",
            expected=manifest.base,
            fix="give the model that the bundle was built from, or leave `--against` out",
        )
    return Reference(str(path), _runner(source))


def _runner(source: Source) -> Runner:
    from adapter_export.cli.sources import OnnxSource

    if isinstance(source, OnnxSource):
        from adapter_export.onnx.cut_runner import CutRunner

        return CutRunner(source.base)
    from adapter_export.torch.runner import TorchRunner

    return TorchRunner(source.base, allow_mismatch=True)
