"""Show known problems of adapters with the other library, and our answer.

    python examples/known_problems/run.py              # all
    python examples/known_problems/run.py compiled     # one

Everything runs on tiny models with random weights, in a temporary folder.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from pathlib import Path

import peft
import transformers

sys.path.insert(0, str(Path(__file__).parent))

from cases import CASES


def main(*names: str) -> None:
    warnings.simplefilter("ignore")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    unknown = set(names) - set(CASES)
    if unknown:
        sys.exit(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(CASES)}")
    print(f"PEFT {peft.__version__}, transformers {transformers.__version__}\n")
    for name in names or CASES:
        case = CASES[name]
        with tempfile.TemporaryDirectory() as folder:
            outcome = case.show(Path(folder))
        silent = ("with a warning" if outcome.warned else "in silence") if outcome.silent else "no silent failure"
        print(f"{name}: {case.problem}")
        print(f"  https://github.com/{case.thread}")
        print(f"  there: {outcome.other} ({silent})")
        print(f"  here:  {outcome.ours}\n", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
