"""Costs of every step at the sizes of published models: processor time, memory, bytes, and tokens per second.

    python benchmarks/sizes.py --models minilm,llama56                   # measures all steps of two models
    python benchmarks/sizes.py --models qwen --steps build,check --folder kept   # only these, from kept archives
    python benchmarks/sizes.py --models '' --write                       # only writes the tables

The models have published configurations and random weights. Every step runs in a process of its own on one thread, and
is killed at a limit; a killed or failed step is a row with the last line of its output. Each row is a line of
`benchmarks/sizes.jsonl`, which a later run of the same step replaces. `--write` makes the tables in
benchmarks/RESULTS.md and docs/project/sizes.md from that file. The steps `genai` are onnxruntime-genai's model builder
and generator.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from kit.machine import load_average, system, warn_if_busy
from kit.part import tell
from kit.real_models import MODELS
from kit.size_rows import Row, RowFile
from kit.size_steps import Step, remove, step_names, steps_of
from kit.size_tables import page_tables, result_tables
from kit.watch import Limits, Peak, Spent, watch

from adapter_export.safe_io.output import Output

ROWS = Path(__file__).with_suffix(".jsonl")
RESULTS = Path(__file__).with_name("RESULTS.md")
PAGE = Path(__file__).parents[1] / "docs" / "project" / "sizes.md"
MARKERS = tuple(f"<!-- sizes: {word} -->" for word in ("begin", "end"))
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")


def main() -> None:
    """Measure, and write if that was asked for."""
    arguments = _arguments()
    warn_if_busy(load_average())
    limits = Limits(arguments.limit_seconds, arguments.limit_memory * 1e9)
    rows = RowFile(arguments.rows)
    for name in arguments.models:
        with ExitStack() as stack:
            temporary = stack.enter_context(TemporaryDirectory(prefix="sizes-")) if arguments.folder is None else ""
            folder = (arguments.folder or Path(temporary)).resolve() / name
            measurement = Measurement(name, folder, limits, rows)
            for step in chosen_steps(measurement.steps, arguments.steps):
                measurement.run(step)
    if arguments.write:
        write(rows.read())


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = [name for name in MODELS if name != "tiny"]
    all_steps = step_names(MODELS.values())
    parser.add_argument("--models", type=_names(MODELS), default=default, help=f"any of {','.join(MODELS)}")
    steps = f"any of {','.join(all_steps)}, or a first word such as `build`; default: all"
    parser.add_argument("--steps", type=_names(_with_first_words(all_steps)), default=all_steps, help=steps)
    parser.add_argument("--folder", type=Path, help="keep models, archives and bundles here; default: a temporary one")
    parser.add_argument("--rows", type=Path, default=ROWS, help=f"measured rows ({ROWS.name} beside this program)")
    parser.add_argument("--limit-memory", type=float, default=20.0, help="anonymous memory of a step, in GB (20)")
    parser.add_argument("--limit-seconds", type=float, default=1800.0, help="wall-clock time of a step (1800)")
    parser.add_argument("--write", action="store_true", help="replace the tables in RESULTS.md and docs/")
    return parser.parse_args()


def _names(known: Iterable[str]) -> Any:
    """Return a parser of comma-separated names."""

    def parse(text: str) -> list[str]:
        names = [name.strip() for name in text.split(",") if name.strip()]
        unknown = [name for name in names if name not in known]
        if unknown:
            raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}; known: {', '.join(known)}")
        return names

    return parse


def _with_first_words(steps: Sequence[str]) -> list[str]:
    return list(dict.fromkeys([*steps, *(step.partition(" ")[0] for step in steps)]))


def chosen_steps(steps: Iterable[str], names: Sequence[str]) -> list[str]:
    """Return the steps that are named, fully or by their first word, in their order."""
    return [step for step in steps if step in names or step.partition(" ")[0] in names]


class Measurement:
    """Measures steps of one model, and adds a row for each.

    Args:
        name: short name of the model.
        folder: of its outputs; existing outputs are used by the steps that need them.
        limits: of each command.
        rows: the measured rows.

    Attributes:
        steps: the steps of the model by name, in their order.
    """

    def __init__(self, name: str, folder: Path, limits: Limits, rows: RowFile) -> None:
        self.steps = steps_of(name, MODELS[name], folder)
        self._name, self._folder, self._limits, self._rows = name, folder, limits, rows
        self._succeeded: dict[str, bool] = {}

    def run(self, name: str) -> bool:
        """Measure a step, unless this run has done so; return whether it succeeded.

        Steps that it needs run first if their output is missing. If one of these fails, so does this step.
        """
        if name not in self._succeeded:
            step = self.steps[name]
            failed = next((need for need in step.needs if not self._is_ready(need)), None)
            row = self._row(name, step, failed)
            self._rows.put(row)
            self._succeeded[name] = row.failure is None
            tell(row.summary())
        return self._succeeded[name]

    def _is_ready(self, name: str) -> bool:
        output = self.steps[name].output
        exists = output is not None and output.exists()
        return self.run(name) if name in self._succeeded or not exists else True

    def _row(self, name: str, step: Step, failed: str | None) -> Row:
        load, machine = load_average(), system("cpu")
        spent = Spent(failure=f"needs `{failed}`, which failed") if failed else self._measure(name, step)
        facts = _facts(step, spent) | self._model_facts()
        return Row(
            model=self._name,
            step=name,
            date=time.strftime("%Y-%m-%d"),
            load=round(load, 2),
            machine=machine,
            processor_s=round(spent.processor, 2),
            wall_s=round(spent.wall, 2),
            resident=spent.peak.resident,
            anonymous=spent.peak.anonymous,
            failure=spent.failure,
            last_line=spent.last_line.replace(f"{self._folder}/", "") if spent.failure else "",
            **facts,
        )

    def _measure(self, name: str, step: Step) -> Spent:
        """Run the commands of a step up to the first that fails; its output stays only if all succeed."""
        remove(step.output)
        logs = self._folder / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        total = Spent(failure="interrupted")
        try:
            if step.prepare is not None:
                step.prepare()
            total = Spent()
            for command in step.commands:
                if total.failure is None:
                    log = logs / name.replace(" ", "-")
                    total = _sum(total, watch(command, self._limits, log, ONE_THREAD))
        finally:
            if total.failure is not None:
                remove(step.output)
        return total

    def _model_facts(self) -> dict[str, Any]:
        """Return parameters, weights and adapters; zeros if the model could not be made."""
        path = self._folder / "facts.json"
        if path.exists():
            return dict(json.loads(path.read_text(encoding="utf-8")))
        return {"parameters": 0, "weights": 0, "adapters": MODELS[self._name].adapters}


def _sum(earlier: Spent, last: Spent) -> Spent:
    """Add the times of two commands, and take the larger memory."""
    peaks = (earlier.peak, last.peak)
    resident, anonymous, of_files = (
        max(getattr(peak, part) for peak in peaks) for part in ("resident", "anonymous", "of_files")
    )
    return replace(
        last,
        processor=earlier.processor + last.processor,
        wall=earlier.wall + last.wall,
        peak=Peak(resident, anonymous, of_files),
    )


def _facts(step: Step, spent: Spent) -> dict[str, Any]:
    if spent.failure is not None:
        return {}
    printed = json.loads(spent.printed) if step.answers else {}
    return step.facts() | printed


def write(rows: Sequence[Row]) -> None:
    """Replace the text between the markers of RESULTS.md and of the page."""
    for path, tables in ((RESULTS, result_tables(rows)), (PAGE, page_tables(rows))):
        text = path.read_text(encoding="utf-8")
        begin, end = MARKERS
        before, begins, rest = text.partition(begin)
        _, ends, after = rest.partition(end)
        if not begins or not ends:
            sys.exit(f"error: {path} has no lines `{begin}` and `{end}` for the tables to be between.")
        with Output(path, force=True).file() as temporary:
            temporary.write_text(f"{before}{begin}\n{tables}\n{end}{after}", encoding="utf-8")
        tell(f"wrote {path}")


if __name__ == "__main__":
    main()
