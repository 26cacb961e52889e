"""Verify a bundle, or run one of its adapters on texts.

    python bundle_client.py verify BUNDLE [--json]
    python bundle_client.py run BUNDLE --text TEXT [--text ...] [--load NAME=FILE]... [--adapter NAME]...
    python bundle_client.py run BUNDLE --inputs ARRAYS.json [--load NAME=FILE]... [--adapter NAME]...
    python bundle_client.py run BUNDLE ... --adapter FUSION --weights MEMBER=NUMBER,MEMBER=NUMBER [--weights ...]

One --adapter holds for all rows; one for each row makes a mixed batch, `-` standing for none. --weights are
those of the members of a weighted fusion, for all rows or for each. --load takes an `.onnx_adapter` file that was built
for this bundle.

Exit code 0: passed. 1: something failed, and stderr says what. 2: the command line is wrong.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from answers import answers
from arrays import read_inputs
from golden import Finding, findings

from adapter_export.errors import AdapterExportError, RequestError
from adapter_export.runtime import Bundle
from adapter_export.text import Tokenizer

BASE = "-"


def verify(bundle: Bundle, *, as_json: bool) -> None:
    found = list(findings(bundle))
    if as_json:
        print(json.dumps([each.as_dict() for each in found], indent=2))
    else:
        for each in found:
            print(f"{each.flavour:12} {_subject(each):20} {each.worst:6.1%} of what is allowed")
    for each in found:
        if not each.worst <= 1:  # NaN fails
            where = f"{bundle.folder}, {_subject(each)} in flavour `{each.flavour}`"
            raise _wrong(where, each.worst)


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
    inputs = _inputs(bundle, given)
    session, rows = bundle.session(), len(next(iter(inputs.values()), ()))
    for name, path in given.load:
        session.load(name, path)
    names = [bundle.manifest.head if name == BASE else name for name in given.adapter or [BASE]]
    names = names * rows if len(names) == 1 else names
    if len(names) != rows:
        raise RequestError("not one adapter for each row", found=len(names), expected=rows)
    found = answers(session, inputs, names, given.weights)
    print(json.dumps(found, indent=2, ensure_ascii=False))


def _inputs(bundle: Bundle, given: argparse.Namespace) -> dict[str, np.ndarray]:
    if given.inputs is not None:
        return read_inputs(given.inputs, bundle.manifest)
    record = bundle.manifest.text
    if record is None:
        raise RequestError("the bundle has no tokenizer", where=bundle.folder, fix="give `--inputs`")
    names = [each.name for each in bundle.manifest.inputs]
    return dict(Tokenizer.from_folder(bundle.folder, record.max_tokens).batch(given.text, names))


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
    given_as = running.add_mutually_exclusive_group(required=True)
    given_as.add_argument("--text", action="append")
    given_as.add_argument("--inputs", type=Path, metavar="ARRAYS.json")
    running.add_argument("--adapter", action="append", default=[], help="for all rows, or once for each")
    running.add_argument("--weights", action="append", default=[], type=_weights, metavar="MEMBER=NUMBER,...")
    running.add_argument("--load", action="append", default=[], type=_pair, metavar="NAME=FILE")
    given = parser.parse_args(arguments)
    if given.command == "run" and given.weights and len(given.adapter) != 1:
        parser.error("--weights go with one --adapter")
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
