"""All benchmarks of swapping, one after the other: the tables of RESULTS.md.

    python benchmarks/all.py                                    # about six minutes on two cores
    python benchmarks/all.py --write                            # and put the tables into benchmarks/RESULTS.md
    python benchmarks/all.py --provider cuda --write            # those of a GPU have a place of their own there

Run it on a machine that does nothing else: it says when others work there.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

import adding
import callers
import fanout
import forms
import memory
import mixed
import swap
import tenants
from kit.part import OPTIONS, parser, run_parts, tell
from kit.tables import Table

from adapter_export.safe_io.output import Output

PARTS = (swap.PART, forms.PART, mixed.PART, fanout.PART, callers.PART, tenants.PART, memory.PART, adding.PART)
RESULTS = Path(__file__).with_name("RESULTS.md")


def main() -> None:
    """Measure, print, and write if that was asked for."""
    made = parser(__doc__ or "", [*OPTIONS])
    made.add_argument("--write", action="store_true", help="replace the tables in the file with results")
    made.add_argument("--results", type=Path, default=RESULTS, help=f"that file ({RESULTS.name} beside this program)")
    arguments = made.parse_args()
    began = time.perf_counter()
    if arguments.write:
        _halves(arguments.results, arguments.provider)
    machine, tables = run_parts(PARTS, arguments)
    if arguments.write:
        write(arguments.results, arguments.provider, machine, tables)
        tell(f"wrote {arguments.results}")
    tell(f"{time.perf_counter() - began:.0f} s")


def write(path: Path, provider: str, machine: str, tables: Sequence[Table]) -> None:
    """Replace the text between the markers of a provider."""
    before, after = _halves(path, provider)
    sections = "\n\n".join([machine, *(table.markdown() for table in tables)])
    with Output(path, force=True).file() as temporary:
        temporary.write_text(f"{before}\n{sections}\n{after}", encoding="utf-8")


def _halves(path: Path, provider: str) -> tuple[str, str]:
    """Return the texts before and after the tables, including the markers."""
    begin, end = (f"<!-- {provider}: {word} -->" for word in ("begin", "end"))
    text = path.read_text(encoding="utf-8")
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        sys.exit(f"error: {path} has no lines `{begin}` and `{end}` for the tables to stand between.")
    return before + begin, end + after


if __name__ == "__main__":
    main()
