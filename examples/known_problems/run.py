"""Show known problems of adapters with the other library, and our answer.

    python examples/known_problems/run.py              # all
    python examples/known_problems/run.py compiled     # one
    python examples/known_problems/run.py --write      # all, into the table of docs/explanation/other-tools.md

Everything runs on tiny models with random weights, in a temporary folder.
"""

from __future__ import annotations

import re
import sys
import tempfile
import warnings
from pathlib import Path

import peft
import transformers

sys.path.insert(0, str(Path(__file__).parent))

from cases import CASES, Outcome

PAGE = Path(__file__).parents[2] / "docs" / "explanation" / "other-tools.md"
BEGIN, END = "<!-- cases: begin -->", "<!-- cases: end -->"


def row(name: str, outcome: Outcome) -> str:
    """Return the row of a case on the page, without measured numbers."""
    case, exact = CASES[name], re.compile(r", \d\S*e-\d+ off")
    there = re.sub(r"are \d+% off", "are off", outcome.other).partition(":")[0]
    problem = f"[{case.problem}](https://github.com/{case.thread})"
    return f"| `{name}` | {problem} | {there}, {outcome.manner} | {exact.sub('', outcome.ours)} |"


def write(rows: list[str]) -> None:
    """Put the rows into the page."""
    before, _, rest = PAGE.read_text("utf-8").partition(BEGIN)
    table = ["| case | problem, with its thread | there | here |", "|---|---|---|---|", *rows]
    PAGE.write_text("\n".join([before + BEGIN, "", *table, "", END]) + rest.partition(END)[2], "utf-8")


def main(*names: str) -> None:
    warnings.simplefilter("ignore")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    chosen, rows = [name for name in names if name != "--write"], []
    unknown = set(chosen) - set(CASES)
    if unknown:
        sys.exit(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(CASES)}")
    print(f"PEFT {peft.__version__}, transformers {transformers.__version__}\n")
    for name in chosen or CASES:
        with tempfile.TemporaryDirectory() as folder:
            outcome = CASES[name].show(Path(folder))
        rows.append(row(name, outcome))
        print(f"{name}: {CASES[name].problem}")
        print(f"  https://github.com/{CASES[name].thread}")
        print(f"  there: {outcome.other} ({outcome.manner})")
        print(f"  here:  {outcome.ours}\n", flush=True)
    if "--write" in names and not chosen:
        write(rows)


if __name__ == "__main__":
    main(*sys.argv[1:])
