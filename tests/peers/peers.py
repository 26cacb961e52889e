"""The test matrices of PEFT and AdapterHub's library: each adapter on each base, beside the library's own forward.

    python tests/peers/peers.py                    # all of them, compared with results.json
    python tests/peers/peers.py --only BertModel --only bart
    python tests/peers/peers.py --write            # store the outcomes, and write the page

`make peers` runs it. A run fails if an adapter computes something else than in its library, or ends in an error that
is not of this package, or if an outcome differs from `results.json`.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator, Mapping
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parents[2]
LOGS = ROOT / "build" / "peers"
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

from adapterhub_configurations import BASES  # noqa: E402
from outcomes import WRONG, counted, read, write  # noqa: E402
from peers_page import PAGE, page  # noqa: E402
from peft_configurations import PEFT_BASES  # noqa: E402

MATRICES: Mapping[str, tuple[str, ...]] = {"peft": tuple(PEFT_BASES), "adapterhub": tuple(BASES)}
"""Bases of each library."""


def main() -> None:
    """Run, compare, and write the results if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [name for bases in MATRICES.values() for name in bases]
    parser.add_argument("--only", metavar="BASE", action="append", choices=names, help="one base; repeatable")
    parser.add_argument("--workers", type=int, default=2, help="processes at a time (2)")
    parser.add_argument("--write", action="store_true", help="store the outcomes, and write the page")
    arguments = parser.parse_args()
    faults = list[str]()
    for library, name, outcomes in run(arguments.only or names, arguments.workers):
        stored = read(library).get(name, {})
        faults += [f"{name}, {title}: {text}" for title, text in outcomes.items() if text.startswith(WRONG)]
        if arguments.write:
            write(library, {name: outcomes})
        else:
            faults += [
                f"{name}, {title}: was {stored.get(title, 'not run')!r}, is {text!r}"
                for title, text in outcomes.items()
                if stored.get(title) != text and not text.startswith(WRONG)
            ]
    if arguments.write:
        PAGE.write_text(page(), encoding="utf-8")
    sys.exit("\n".join(["error:", *faults]) if faults else 0)


def run(names: list[str], workers: int) -> Iterator[tuple[str, str, dict[str, str]]]:
    """Yield the library, the base and the outcomes of each base; each has a process of its own."""
    began = time.monotonic()
    chosen = [(library, name) for library, bases in MATRICES.items() for name in bases if name in names]
    with get_context("spawn").Pool(workers, maxtasksperchild=1) as pool:
        for done, (library, name, outcomes) in enumerate(pool.imap_unordered(_outcomes, chosen, chunksize=1), 1):
            minutes = (time.monotonic() - began) / 60
            print(f"{done}/{len(chosen)} {minutes:5.1f} min  {library}, {name}: {counted(outcomes)}", flush=True)
            yield library, name, outcomes


def _outcomes(task: tuple[str, str]) -> tuple[str, str, dict[str, str]]:
    """Run a base of a library; the libraries print into a file in `build/peers`."""
    library, name = task
    LOGS.mkdir(parents=True, exist_ok=True)
    with (LOGS / f"{name}.out").open("w", encoding="utf-8") as log, TemporaryDirectory(prefix="peers-") as folder:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        os.environ["HF_HUB_OFFLINE"] = "1"
        return library, name, import_module(f"{library}_matrix").run(name, Path(folder))


if __name__ == "__main__":
    main()
