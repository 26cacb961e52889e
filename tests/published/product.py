"""Published models × tasks × precisions × graph variants, each cell from capture to a compared answer.

    python tests/published/product.py                    # all of them, compared with results.json
    python tests/published/product.py --only Qwen/Qwen3-0.6B --precision int8
    python tests/published/product.py --write            # store the outcomes in results.json

`make published` runs it. Each model has a process of its own. Outcomes are kept in `build/published` until the code
changes, so that an interrupted run resumes. A run fails if a cell failed or was refused for a reason that `refusals.py`
does not list, or if its verdict differs from results.json.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

import torch  # noqa: E402
import transformers  # noqa: E402
from cells import FAILED, PASSED, REFUSED, Cell, Outcome, Outcomes, Trial, all_cells  # noqa: E402
from configurations import MODELS  # noqa: E402
from refusals import is_being_fixed, is_known  # noqa: E402
from results import RESULTS, from_rows, read, to_rows, write  # noqa: E402

from adapter_export.format.precision import PRECISION_NAMES  # noqa: E402

KEPT = ROOT / "build" / "published"
SECONDS = 1800
"""Time limit of a model, on a busy machine."""


def main() -> None:
    """Run, compare, and write the results if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="NAME", action="append", choices=MODELS, help="one model; repeatable")
    parser.add_argument("--precision", action="append", choices=PRECISION_NAMES, help="one precision; repeatable")
    parser.add_argument("--workers", type=int, default=1, help="processes at a time (1)")
    parser.add_argument("--write", action="store_true", help=f"store the outcomes in {RESULTS.relative_to(ROOT)}")
    arguments = parser.parse_args()
    stored, faults = read(), list[str]()
    for name, outcomes in run(
        arguments.only or list(MODELS), arguments.precision or PRECISION_NAMES, arguments.workers
    ):
        faults += [f"{name}, {_words(cell)}: {text}" for cell, text in _faults(outcomes)]
        if arguments.write:
            stored[name] = {
                **{cell: old for cell, old in stored.get(name, {}).items() if _exists(name, cell)},
                **outcomes,
            }
            write(stored)
        else:
            known = stored.get(name, {})
            faults += [
                f"{name}, {_words(cell)}: was {known[cell].verdict}, is {outcome.verdict}"
                for cell, outcome in outcomes.items()
                if cell in known and known[cell].verdict != outcome.verdict
            ]
    sys.exit("\n".join(["error:", *faults]) if faults else 0)


def _exists(name: str, cell: Cell) -> bool:
    return cell in all_cells(MODELS[name])


def _words(cell: Cell) -> str:
    return f"{cell.task}, {cell.precision}, {cell.variant}"


def _faults(outcomes: Mapping[Cell, Outcome]) -> Iterator[tuple[Cell, str]]:
    """Yield cells that failed or were refused for a reason that is not listed."""
    for cell, outcome in outcomes.items():
        if outcome.verdict == FAILED and not is_being_fixed(outcome.reason):
            yield cell, f"failed: {outcome.reason}"
        elif outcome.verdict == REFUSED and not is_known(outcome.reason):
            yield cell, f"refused for a reason that refusals.py does not list: {outcome.reason}"


def run(names: Sequence[str], precisions: Sequence[str], workers: int) -> Iterator[tuple[str, Outcomes]]:
    """Run models, each in a process; outcomes of the same code are read from `build/published`."""
    KEPT.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    assert transformers.PreTrainedModel  # imported here, it is imported in no child
    _code()  # so that an edit during the run changes no state
    began = time.monotonic()
    waiting, running = list(names), dict[str, tuple[multiprocessing.process.BaseProcess, float]]()
    while waiting or running:
        while waiting and len(running) < workers:
            name = waiting.pop(0)
            process = multiprocessing.get_context("fork").Process(target=_child, args=(name, precisions))
            process.start()
            running[name] = process, time.monotonic()
        for name, (process, start) in list(running.items()):
            process.join(0.2)
            if process.is_alive() and time.monotonic() - start > SECONDS:
                process.kill()
                process.join()
            if not process.is_alive():
                del running[name]
                outcomes = _kept(name, precisions) or _died(name, precisions, process.exitcode)
                _show(name, outcomes, (time.monotonic() - began) / 60)
                yield name, outcomes


def _cells(name: str, precisions: Sequence[str]) -> list[Cell]:
    return [cell for cell in all_cells(MODELS[name]) if cell.precision in precisions]


def _died(name: str, precisions: Sequence[str], code: int | None) -> Outcomes:
    return dict.fromkeys(_cells(name, precisions), Outcome(FAILED, f"the process ended with {code}"))


def _show(name: str, outcomes: Outcomes, minutes: float) -> None:
    """Print the numbers of a model's outcomes, and the cells that did not pass."""
    verdicts = [outcome.verdict for outcome in outcomes.values()]
    counts = ", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in dict.fromkeys(verdicts))
    print(f"{minutes:5.1f} min  {name}: {counts}", flush=True)
    for task, row in to_rows(outcomes).items():
        for text, precisions in row.items():
            if text != PASSED:
                cells = "; ".join(f"{precision} {variants}" for precision, variants in precisions.items())
                print(f"           {task}: {cells}: {text}", flush=True)


def _child(name: str, precisions: Sequence[str]) -> None:
    """Run the cells of one model that were not run yet, and keep the outcomes after each precision."""
    path = _file(name)
    with path.with_suffix(".out").open("w", encoding="utf-8") as log:  # torch prints graphs that it cannot export
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    outcomes = _kept(name, PRECISION_NAMES)
    with TemporaryDirectory(prefix="published-") as folder:
        trial = Trial(MODELS[name], Path(folder))
        for precision in precisions:
            cells = [cell for cell in _cells(name, [precision]) if cell not in outcomes]
            outcomes |= trial.run(cells) if cells else {}
            unfinished = path.with_suffix(".new")
            unfinished.write_text(json.dumps({"state": _state(name), "rows": to_rows(outcomes)}), "utf-8")
            unfinished.replace(path)


def _kept(name: str, precisions: Sequence[str]) -> Outcomes:
    path = _file(name)
    record = json.loads(path.read_text("utf-8")) if path.exists() else {}
    outcomes = from_rows(record["rows"]) if record.get("state") == _state(name) else {}
    return {cell: outcome for cell, outcome in outcomes.items() if cell.precision in precisions}


def _file(name: str) -> Path:
    return KEPT / f"{hashlib.sha256(name.encode()).hexdigest()[:12]}.json"


@cache
def _code() -> str:
    """Return a digest of the code and versions that determine outcomes."""
    own = [Path(__file__).with_name(f"{name}.py") for name in ("cells", "tasks", "shrink", "rounded_weights")]
    files = [*sorted((ROOT / "adapter_export").rglob("*.py")), *own]
    texts = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    texts += [version(name) for name in ("torch", "transformers", "onnx", "onnxruntime")]
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()


def _state(name: str) -> str:
    """Return a digest of everything that determines the outcomes of a model."""
    return hashlib.sha256(f"{_code()} {MODELS[name]}".encode()).hexdigest()


if __name__ == "__main__":
    main()
