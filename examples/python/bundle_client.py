"""Verify a bundle, or run one of its adapters on texts.

    python bundle_client.py verify BUNDLE [--json]
    python bundle_client.py run BUNDLE --text TEXT [--pair TEXT ...] [--text ...] [--adapter NAME]...
    python bundle_client.py run BUNDLE --inputs ARRAYS.json [--load NAME=FILE]... [--adapter NAME]...
    python bundle_client.py run BUNDLE ... --adapter NAME --strength NUMBER [--strength ...]
    python bundle_client.py run BUNDLE ... --adapter FUSION --weights MEMBER=NUMBER,MEMBER=NUMBER [--weights ...]

Give --adapter, --strength, --weights and --context once for all rows, or once for each row.

Exit code 0: passed. 1: something failed, and stderr says what. 2: the command line is wrong.

The engine decides which rows share a call (docs/reference/format.md, "What may share a call"). Batches, padding and
caches never change the answer to a row.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from arrays import read_inputs, rows_of
from golden import BATCHES, PARTS, RECORDED, TEXTS, Finding, findings
from golden_answers import Fault

from adapter_export.errors import AdapterExportError, RequestError, UsageError
from adapter_export.graph.tasks.answers import Asked
from adapter_export.runtime import Bundle
from adapter_export.runtime.answerer import Answerer, Row
from adapter_export.text import Pair

BASE = "-"

_Value = TypeVar("_Value")


def verify(bundle: Bundle, *, as_json: bool) -> None:
    found = list(findings(bundle))
    if as_json:
        print(json.dumps([each.as_dict() for each in found], indent=2))
    else:
        for each in found:
            print(f"{each.variant:12} {_subject(each):20} {_outcome(each)}")
    for each in sorted(found, key=lambda one: (one.variant == RECORDED, one.variant == PARTS)):
        if each.passed:
            continue
        where = f"{bundle.folder}, {_subject(each)}"
        if each.variant in (TEXTS, BATCHES) and each.faults:
            raise _differ(where, each.variant, each.faults)
        raise _of_parts(where, each) if each.variant == PARTS else _wrong(where, each)


def _outcome(finding: Finding) -> str:
    if finding.reason is not None:
        return f"not compared: {finding.reason}"
    if finding.variant == RECORDED:
        return "bit for bit as recorded" if finding.passed else "other bits than recorded"
    share = f"{finding.worst:6.1%} of the tolerance"
    return f"{share}, as with `{finding.faults[0].name}`" if finding.variant == PARTS and finding.faults else share


def _differ(where: str, what: str, faults: Sequence[Fault]) -> AdapterExportError:
    names = ", ".join(f"`{each.name}`" for each in faults)
    return AdapterExportError(
        f"golden {what} differ: this client does not answer them as the reference does",
        where=where,
        found=f"{len(faults)} that differ, {names}; `{faults[0].name}`: {faults[0].fault}",
    )


def _of_parts(where: str, finding: Finding) -> AdapterExportError:
    name, fault = finding.faults[0].name, finding.faults[0].fault
    return AdapterExportError(
        "golden parts differ: the adapter is applied in part, or wrongly",
        where=where,
        found=f"outputs that move as with `{name}` in `{finding.graph}`, {fault}",
        expected="outputs that do not",
        fix="take the bundle from its source again",
    )


def _wrong(where: str, finding: Finding) -> AdapterExportError:
    if finding.variant == RECORDED:
        return AdapterExportError(
            "bits differ from the build's, although the base's are equal: a tensor did not arrive as it "
            "was, or this runtime rounds otherwise",
            where=where,
            fix="take the bundle from its source again",
        )
    return AdapterExportError(
        "does not compute what the reference computed",
        where=f"{where} in variant `{finding.variant}`",
        found=f"{finding.worst:.3g} of the allowed deviation",
        expected="at most 1",
        fix="take the bundle from its source again, or use the ONNX Runtime that it was made for",
    )


def _subject(finding: Finding) -> str:
    subject = "mixed batch" if finding.mixed else finding.adapter or "base"
    return subject if finding.graph is None else f"{subject} in {finding.graph}"


def run(bundle: Bundle, given: argparse.Namespace) -> None:
    session = bundle.session()
    arrays = [] if given.inputs is None else rows_of(read_inputs(given.inputs, bundle.manifest))
    asked: Sequence[Any] = given.texts or arrays
    for name, path in given.load:
        session.load(name, path)
    adapters = _each(given.adapter or [session.named(None)], len(asked), "adapter")
    strengths = _each(given.strength or [1.0], len(asked), "strength")
    weights = _each(given.weights or [None], len(asked), "list of weights")
    contexts = _each(given.context or [None], len(asked), "context")
    rows = [
        Row(one, None if adapter in (None, BASE) else session.named(adapter), strength, own, context, f"row {at}")
        for at, (one, adapter, strength, own, context) in enumerate(
            zip(asked, adapters, strengths, weights, contexts, strict=True)
        )
    ]
    answerer = Answerer(session, bundle.texts(session) if given.texts else None)
    print(json.dumps([found.document() for found in answerer.answer(rows)], indent=2, ensure_ascii=False))


def _each(given: Sequence[_Value], rows: int, what: str) -> Sequence[_Value]:
    """Return a value for each row, from one for all or one for each."""
    values = list(given) * rows if len(given) == 1 else given
    if len(values) != rows:
        raise RequestError(f"not one {what} for each row", found=len(values), expected=rows)
    return values


class _Text(argparse.Action):
    """Collects texts; a second text belongs to the text before it, and several are choices."""

    def __call__(
        self, parser: argparse.ArgumentParser, given: argparse.Namespace, value: Any, option: str | None = None
    ) -> None:
        texts: list[Asked] = given.texts
        last = texts[-1] if texts else None
        if option == "--text":
            texts.append(value)
        elif option == "--pair" and isinstance(last, str):
            texts[-1] = Pair(last, value)
        elif isinstance(last, Pair):
            texts[-1] = [last, Pair(last.first, value)]
        elif isinstance(last, list):
            texts[-1] = [*last, Pair(last[0].first, value)]
        else:
            parser.error(f"{option} belongs to the --text before it")


def _pair(text: str) -> tuple[str, str]:
    name, sign, value = text.partition("=")
    if not (name and sign):
        raise argparse.ArgumentTypeError(f"`{text}` is not of the form NAME=VALUE")
    return name, value


def _weights(text: str) -> dict[str, float]:
    pairs = [_pair(part) for part in text.split(",")]
    weights = {name: float(weight) for name, weight in pairs}
    if len(weights) < len(pairs):
        raise argparse.ArgumentTypeError(f"`{text}` names an adapter twice")
    return weights


def _context(text: str) -> np.ndarray:
    places = text.split(",")
    if not set(places) <= {"0", "1"}:
        raise argparse.ArgumentTypeError(f"`{text}` is not of the form 0,0,1")
    return np.array(places) == "1"


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    checking = commands.add_parser("verify", help="replay golden data and recorded runs")
    checking.add_argument("bundle", type=Path)
    checking.add_argument("--json", action="store_true", help="print the findings as JSON")
    running = commands.add_parser("run", help="run texts or arrays")
    running.add_argument("bundle", type=Path)
    running.add_argument("--text", action=_Text, dest="texts", default=[], help="text to answer")
    running.add_argument(
        "--pair",
        action=_Text,
        dest="texts",
        default=[],
        metavar="TEXT",
        help="second text of the --text before it; several are the choices of a question",
    )
    running.add_argument("--inputs", type=Path, metavar="ARRAYS.json", help="arrays by name, as nested lists")

    def each(option: str, help: str, metavar: str | None = None, kind: Any = str) -> None:
        running.add_argument(option, action="append", default=[], type=kind, metavar=metavar, help=help)

    each("--adapter", "adapter name; `base` or `-` is the base; required where adapters have tasks")
    each("--strength", "scale the adapter (1 = as trained, 0 = base)", "NUMBER", float)
    each("--weights", "member weights of a weighted fusion", "MEMBER=NUMBER,...", _weights)
    each("--context", "for arrays of a `span`: a 1 for each token that may be the answer", "0,0,1,...", _context)
    each("--load", "load an `.onnx_adapter` file built for this bundle", "NAME=FILE", _pair)
    given = parser.parse_args(arguments)
    if given.command == "run" and bool(given.texts) == (given.inputs is not None):
        parser.error("either --text or --inputs")
    try:
        bundle = Bundle.open(given.bundle)
        if given.command == "verify":
            verify(bundle, as_json=given.json)
        else:
            run(bundle, given)
    except AdapterExportError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
