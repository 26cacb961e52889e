"""Verify a bundle, or run one of its adapters on texts.

    python bundle_client.py verify BUNDLE [--json]
    python bundle_client.py run BUNDLE [--adapter NAME]... --text TEXT [--text ...]

One --adapter holds for all texts; one for each text makes a mixed batch, `base` standing for none. Exit code 0: all is
well. 1: something is wrong, and stderr says what. 2: the command line is wrong.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from golden import Finding, findings
from texts import Texts

from adapter_export.errors import AdapterExportError, RequestError
from adapter_export.runtime import Bundle, Request

BASE = "base"


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
    return "mixed batch" if finding.mixed else finding.adapter or BASE


def run(bundle: Bundle, adapters: list[str | None], texts: list[str]) -> None:
    names = adapters * len(texts) if len(adapters) == 1 else adapters
    if len(names) != len(texts):
        raise RequestError("one --adapter holds for all texts, or there is one for each", found=len(names))
    session, rows = bundle.session(), Texts(bundle).rows(texts)
    requests = [
        Request({each: arrays[index][None] for each, arrays in rows.items()}, name) for index, name in enumerate(names)
    ]
    if all(name is not None and session.task(name) == "sequence_classification" for name in names):
        for text, name, (found,) in zip(texts, names, session.classify_many(requests), strict=True):
            print(f"{name}\t{found.label}\t{found.probability:.3f}\t{text}")
        return
    for text, name, outputs in zip(texts, names, session.run_many(requests), strict=True):
        shapes = ", ".join(f"{output} {list(array.shape)}" for output, array in outputs.items())
        print(f"{name or BASE}\t{shapes}\t{text}")


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    checking = commands.add_parser("verify", help="hold a bundle against its golden vectors, in every flavour")
    checking.add_argument("bundle", type=Path)
    checking.add_argument("--json", action="store_true", help="print the findings as JSON")
    running = commands.add_parser("run", help="run texts")
    running.add_argument("bundle", type=Path)
    running.add_argument("--adapter", action="append", default=[], help="for all texts, or once for each")
    running.add_argument("--text", action="append", required=True)
    given = parser.parse_args(arguments)
    try:
        bundle = Bundle.open(given.bundle)
        if given.command == "verify":
            verify(bundle, as_json=given.json)
        else:
            run(bundle, [None if name == BASE else name for name in given.adapter or [BASE]], given.text)
    except AdapterExportError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
