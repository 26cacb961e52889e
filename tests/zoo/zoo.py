"""Tiny models of more than 220 architectures, each through the whole pipeline.

The table is in docs/reference/architectures.md.

    python tests/zoo/zoo.py                       # all of them, compared with the table
    python tests/zoo/zoo.py --only BERT --only Mamba
    python tests/zoo/zoo.py --write               # and put the table into docs/reference/architectures.md

`make zoo` runs it. Each model has a separate process with time and memory limits. Results are kept in `build/zoo` until
the code changes, so that an interrupted run resumes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import re
import resource
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]

import torch  # noqa: E402
from models import MODELS  # noqa: E402
from recipes import Model  # noqa: E402
from trial import FOUND, Outcome, examine  # noqa: E402

from adapter_export.safe_io.output import Output  # noqa: E402

TABLE = ROOT / "docs" / "reference" / "architectures.md"
KEPT = ROOT / "build" / "zoo"
BEGIN, END = "<!-- zoo: begin -->", "<!-- zoo: end -->"
SECONDS, BYTES = 240, 12 << 30
COLUMNS = ("model", "sublayers", "seen by hooks", "off by", "what happened")


@dataclass(frozen=True)
class Row:
    """A row of the table: its cells, and how long it took."""

    cells: tuple[str, ...]
    verdict: str
    seconds: float


def main() -> None:
    """Run, print, compare with the table, and write it if that was asked for."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--only", metavar="NAME", action="append", default=[], help="one model; repeatable")
    made.add_argument("--workers", type=int, default=2, help="processes at a time (2)")
    made.add_argument("--fresh", action="store_true", help="run those again that ran already")
    made.add_argument("--write", action="store_true", help=f"put the table into {TABLE.relative_to(ROOT)}")
    arguments = made.parse_args()
    models = {name: model for group in MODELS.values() for name, model in group.items()}
    chosen = [name for name in models if not arguments.only or name in arguments.only]
    if len(chosen) < max(1, len(arguments.only)):
        sys.exit(f"error: no such model; there are {', '.join(models)}")
    checked_in = read()
    again = arguments.fresh or bool(arguments.only)
    rows = dict(run({name: models[name] for name in chosen}, arguments.workers, fresh=again))
    if arguments.write:
        write({**checked_in, **{name: row.cells for name, row in rows.items()}})
    told = verdicts(rows, None if arguments.write else checked_in)
    counts = {each: sum(row.verdict == each for row in rows.values()) for each in ("complete", "refused", "wrong")}
    print(", ".join(f"{count} {verdict}" for verdict, count in counts.items()))
    sys.exit("\n".join(["error:", *told]) if told else 0)


def lasting(cells: tuple[str, ...]) -> tuple[str, ...]:
    """Return the stable part of an outcome: neither the error nor numbers in messages, which differ by machine."""
    return (*cells[:3], cells[4].partition(FOUND)[0])


def verdicts(rows: dict[str, Row], checked_in: dict[str, tuple[str, ...]] | None) -> list[str]:
    """Return the faults of a run: wrong models, and rows that differ from the table, if any."""
    told = [f"{name}: {row.cells[-1]}" for name, row in rows.items() if row.verdict == "wrong"]
    for name, row in () if checked_in is None else rows.items():
        known = checked_in.get(name)
        before, now = known and lasting(known), lasting(row.cells)
        if before != now:
            told.append(f"{name}: was {before}, is {now}; if that is right, run it with `--write`")
    return told


def run(models: dict[str, Model], workers: int, *, fresh: bool) -> Iterator[tuple[str, Row]]:
    """Run models, each in a process; those that have run already are read."""
    KEPT.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    state, began, done = _state(), time.monotonic(), 0
    waiting, running = list(models), dict[str, tuple[BaseProcess, float]]()
    while waiting or running:
        finished: list[tuple[str, int | None, float]] = []
        if waiting and len(running) < workers:
            name = waiting.pop(0)
            if not fresh and _found(name).get("state") == state:
                finished.append((name, 0, 0.0))
            else:
                _kept(name).unlink(missing_ok=True)
                process = multiprocessing.get_context("fork").Process(target=_child, args=(name, models[name], state))
                process.start()
                running[name] = process, time.monotonic()
        for name, (process, start) in list(running.items()):
            process.join(0.05)
            seconds = time.monotonic() - start
            if process.is_alive() and seconds > SECONDS:
                process.kill()
                process.join()
            if not process.is_alive():
                del running[name]
                finished.append((name, process.exitcode, seconds))
        for name, code, seconds in finished:
            row, done = _row(name, code, seconds), done + 1
            minutes = (time.monotonic() - began) / 60
            print(f"{done}/{len(models)} {minutes:4.1f} min  {row.seconds:3.0f} s  {'  '.join(row.cells)}", flush=True)
            yield name, row


def _child(name: str, model: Model, state: str) -> None:
    """Run one model and write what happened; a fault of ours is written, too."""
    path = _kept(name)
    with path.with_suffix(".out").open("w", encoding="utf-8") as told:  # torch prints the graphs that it cannot export
        os.dup2(told.fileno(), 1)
        os.dup2(told.fileno(), 2)
    resource.setrlimit(resource.RLIMIT_AS, (BYTES, resource.RLIM_INFINITY))
    torch.set_num_threads(1)
    start = time.monotonic()
    with TemporaryDirectory(prefix="zoo-") as folder:
        try:
            outcome = examine(model, Path(folder))
        except Exception as error:
            (path.with_suffix(".txt")).write_text(traceback.format_exc(), encoding="utf-8")
            outcome = Outcome(reason=f"a traceback: {type(error).__name__}: {str(error).partition(chr(10))[0][:160]}")
    found = {"state": state, "seconds": time.monotonic() - start, **asdict(outcome)}
    unfinished = path.with_suffix(".new")
    unfinished.write_text(json.dumps(found), encoding="utf-8")
    unfinished.replace(path)


def _found(name: str) -> dict[str, Any]:
    path = _kept(name)
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found


def _row(name: str, code: int | None, seconds: float) -> Row:
    found = _found(name)
    if not found:
        why = "takes too long" if seconds > SECONDS else f"the process died ({code})"
        return Row((name, "", "", "", f"wrong: {why}"), "wrong", seconds)
    error = "" if found["error"] is None else f"{found['error']:.0e}"
    happened = f"{found['verdict']}{', ' if found['verdict'] == 'complete' else ' by '}{found['reason']}"
    return Row((name, found["sublayers"], found["seen"], error, happened), found["verdict"], found["seconds"])


def _kept(name: str) -> Path:
    return KEPT / f"{re.sub(r'[^a-zA-Z0-9]+', '_', name)}_{hashlib.sha256(name.encode()).hexdigest()[:6]}.json"


def _state() -> str:
    """Return a digest of the code and versions that determine outcomes."""
    files = sorted([*(ROOT / "adapter_export").rglob("*.py"), *(ROOT / "tests" / "support").glob("*.py")])
    files += sorted(Path(__file__).parent.glob("*.py"))
    texts = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    texts += [version(name) for name in ("torch", "transformers", "onnx", "onnxruntime")]
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()


def _halves() -> tuple[str, str, str]:
    """Return the texts before the table, the table, and the text after it."""
    before, begun, rest = TABLE.read_text(encoding="utf-8").partition(BEGIN)
    table, ended, after = rest.partition(END)
    if not begun or not ended:
        sys.exit(f"error: {TABLE} has no lines `{BEGIN}` and `{END}` for the table to stand between")
    return before + begun, table, ended + after


def read() -> dict[str, tuple[str, ...]]:
    """The rows that are checked in."""
    lines = [line for line in _halves()[1].splitlines() if line.startswith("| ") and not line.startswith("| model")]
    rows = [tuple(cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]) for line in lines]
    return {cells[0]: cells for cells in rows}


def write(rows: dict[str, tuple[str, ...]]) -> None:
    """Put the table into the document, group by group; rows of models that are gone go."""
    before, _, after = _halves()
    lines: list[str] = []
    for group, models in MODELS.items():
        there = [rows[name] for name in models if name in rows]
        lines += ["", f"**{group}**", "", _line(COLUMNS), "|---" * len(COLUMNS) + "|", *map(_line, there)]
    table = "\n".join(lines)
    with Output(TABLE, force=True).file() as temporary:
        temporary.write_text(f"{before}{table}\n\n{after}", encoding="utf-8")


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


if __name__ == "__main__":
    main()
