"""Verify a bundle, or run one of its adapters on texts.

    python bundle_client.py verify BUNDLE [--json]
    python bundle_client.py run BUNDLE --text TEXT [--pair TEXT ...] [--text ...] [--adapter NAME]...
    python bundle_client.py run BUNDLE --inputs ARRAYS.json [--load NAME=FILE]... [--adapter NAME]...
    python bundle_client.py run BUNDLE ... --adapter NAME --strength NUMBER [--strength ...]
    python bundle_client.py run BUNDLE ... --adapter FUSION --weights MEMBER=NUMBER,MEMBER=NUMBER [--weights ...]

--pair is the second text of the --text before it; several are the choices of a question. One --adapter holds for all
rows; one for each row makes a mixed batch, `-` standing for none. --weights are those of the members of a weighted
fusion, for all rows or for each; --strength is how many times what an adapter adds is added, for all rows or for each.
--load takes an `.onnx_adapter` file that was built for this bundle.

Exit code 0: passed. 1: something failed, and stderr says what. 2: the command line is wrong.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from arrays import read_inputs
from golden import Finding, findings
from golden_texts import Fault

from adapter_export.errors import AdapterExportError, RequestError
from adapter_export.runtime import Bundle, Session
from adapter_export.runtime.text_answers import Asked
from adapter_export.runtime.text_reader import TextReader
from adapter_export.server.row_answers import Answer, Arrays, row_answer, text_answer, text_requests
from adapter_export.text import Pair

BASE = "-"


def verify(bundle: Bundle, *, as_json: bool) -> None:
    found = list(findings(bundle))
    if as_json:
        print(json.dumps([each.as_dict() for each in found], indent=2))
    else:
        for each in found:
            print(f"{each.flavour:12} {_subject(each):20} {each.worst:6.1%} of what is allowed")
    for each in found:
        if each.faults:
            raise _differ(f"{bundle.folder}, {_subject(each)}", each.faults)
        if not each.worst <= 1:  # NaN fails
            where = f"{bundle.folder}, {_subject(each)} in flavour `{each.flavour}`"
            raise _wrong(where, each.worst)


def _differ(where: str, faults: Sequence[Fault]) -> AdapterExportError:
    names = ", ".join(f"`{each.name}`" for each in faults)
    return AdapterExportError(
        "golden texts differ: this client does not read texts, or answer them, as the reference does",
        where=where,
        found=f"{len(faults)} that differ, {names}; `{faults[0].name}`: {faults[0].fault}",
    )


def _wrong(where: str, worst: float) -> AdapterExportError:
    return AdapterExportError(
        "does not compute what the reference computed",
        where=where,
        found=f"{worst:.3g} of the allowed deviation",
        expected="at most 1",
        fix="take the bundle from its source again, or use the ONNX Runtime that it was made for",
    )


def _subject(finding: Finding) -> str:
    return "mixed batch" if finding.mixed else finding.adapter or "base"


def run(bundle: Bundle, given: argparse.Namespace) -> None:
    session = bundle.session()
    inputs = None if given.inputs is None else read_inputs(given.inputs, bundle.manifest)
    rows = len(given.texts) if inputs is None else len(next(iter(inputs.values()), ()))
    for name, path in given.load:
        session.load(name, path)
    names = [bundle.manifest.head if name == BASE else name for name in given.adapter or [BASE]]
    names = names * rows if len(names) == 1 else names
    if len(names) != rows:
        raise RequestError("not one adapter for each row", found=len(names), expected=rows)
    strengths = given.strength * rows if len(given.strength) == 1 else given.strength
    if strengths and len(strengths) != rows:
        raise RequestError(
            "strengths of another number than rows", found=len(strengths), expected=f"{rows}, one for each row"
        )
    if strengths and given.weights:
        what = "weights are the strengths of a fusion's members"
        raise RequestError(what, where="`strength`", fix="multiply the weights by it")
    if inputs is None:
        found = _text_answers(bundle.texts(session), given.texts, names, given.weights, strengths)
    else:
        found = _answers(session, inputs, names, given.weights, strengths)
    print(json.dumps(found, indent=2, ensure_ascii=False))


def _answers(
    session: Session,
    inputs: Arrays,
    names: Sequence[str | None],
    weights: Sequence[Mapping[str, float]] = (),
    strengths: Sequence[float] = (),
) -> list[Answer]:
    """Run rows, each through an adapter or through the base alone.

    Args:
        session: the bundle's.
        inputs: those of the base.
        names: an adapter for each row.
        weights: of a fusion that runs all rows: once for all of them, or once for each.
        strengths: one for each row, or none.
    """
    given = weights[0] if len(weights) == 1 else weights or None
    if strengths:
        outputs = session.run(inputs, adapters=list(names), strength=strengths)
    elif len(set(names)) == 1:
        outputs = session.run(inputs, names[0], weights=given)
    else:
        outputs = session.run(inputs, adapters=list(names))
    masks = inputs.get("attention_mask", [None] * len(names))
    rows = [{name: array[row] for name, array in outputs.items()} for row in range(len(names))]
    return [
        row_answer(session, session.head(name), row, mask) for name, row, mask in zip(names, rows, masks, strict=True)
    ]


def _text_answers(
    reader: TextReader,
    texts: Sequence[Asked],
    names: Sequence[str | None],
    weights: Sequence[Mapping[str, float]] = (),
    strengths: Sequence[float] = (),
) -> list[Answer]:
    """Answer texts, each by an adapter of its own; the arguments are as of `_answers`."""
    session, read = reader.session, reader.read(texts, adapters=names)
    heads = [session.head(one.adapter) for one in read]
    each = strengths or [1.0] * len(read)
    requests = [text_requests(reader, one, own) for one, own in zip(read, each, strict=True)]
    if weights:
        given = list(weights) * len(read) if len(weights) == 1 else weights
        if len(given) != len(read):
            raise RequestError("give weights once, or once for each text", found=len(given), expected=len(read))
        found = [
            [session.run(row.inputs, row.adapter, weights=own) for row in rows]
            for rows, own in zip(requests, given, strict=True)
        ]
    else:
        outputs = iter(session.run_many([row for rows in requests for row in rows]))
        found = [[next(outputs) for _ in rows] for rows in requests]
    return [text_answer(reader, *one) for one in zip(heads, read, found, strict=True)]


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


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    checking = commands.add_parser("verify", help="hold a bundle against its golden vectors, in every flavour")
    checking.add_argument("bundle", type=Path)
    checking.add_argument("--json", action="store_true", help="print the findings as JSON")
    running = commands.add_parser("run", help="run texts or arrays")
    running.add_argument("bundle", type=Path)
    for option in ("--text", "--pair"):
        running.add_argument(option, action=_Text, dest="texts", default=[], metavar="TEXT")
    running.add_argument("--inputs", type=Path, metavar="ARRAYS.json")
    running.add_argument("--adapter", action="append", default=[], help="for all rows, or once for each")
    running.add_argument("--strength", action="append", default=[], type=float, metavar="NUMBER")
    running.add_argument("--weights", action="append", default=[], type=_weights, metavar="MEMBER=NUMBER,...")
    running.add_argument("--load", action="append", default=[], type=_pair, metavar="NAME=FILE")
    given = parser.parse_args(arguments)
    if given.command == "run" and given.weights and len(given.adapter) != 1:
        parser.error("--weights go with one --adapter")
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
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
