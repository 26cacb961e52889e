"""Memory of a process with many adapters: loaded, read on demand, and one session for each of them.

    python benchmarks/memory.py                                 # all-MiniLM-L6-v2, from `make setup`
    python benchmarks/memory.py --model model.onnx --counts 1,100 --sessions 1,4

Every row is a fresh process that uses only numpy and ONNX Runtime, and makes a call with every adapter. Its memory is
the proportional set size of Linux, which counts shared pages once. All adapters have the size of the first one. On a
GPU, this is the memory of the host.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from kit.part import Part, Settings
from kit.subject import Subject
from kit.tables import Cell, Table

_PROBE = Path(__file__).with_name("kit") / "probe.py"
_WAYS = {
    "loaded": "one session, all loaded",
    "on_demand": "one session, read on demand",
    "sessions": "a session for each, adapter as constants",
}


def measure(subject: Subject, settings: Settings) -> list[Table]:
    """The memory of each way for several numbers of adapters."""
    rows: list[list[Cell]] = []
    for way, words in _WAYS.items():
        counts = settings.sessions if way == "sessions" else settings.counts
        found = {count: _probe(way, count, subject.small.folder, settings.provider) for count in sorted(counts)}
        fewest = min(found)
        for count, one in found.items():
            added = (one["bytes"] - found[fewest]["bytes"]) / max(1, count - fewest) / 1e6
            rows.append(
                [words, count, one["bytes"] / 1e6, None if count == fewest else added, one["seconds"]],
            )
    columns = ["way", "adapters", "memory, MB", "for each further one, MB", "to open and load, s"]
    size = (subject.small.folder / subject.small.manifest.adapters[0].onnx_adapter).stat().st_size / 1e6
    note = f"Adapters of {size:.1f} MB. On demand, at most 64 of them are in memory at a time."
    return [Table("Memory with many adapters", columns, rows, note)]


def _probe(way: str, count: int, folder: Path, provider: str) -> dict[str, Any]:
    command = [sys.executable, str(_PROBE), way, str(count), str(folder), provider]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return dict(json.loads(done.stdout))


PART = Part(__doc__ or "", ("provider", "counts", "sessions"), measure)

if __name__ == "__main__":
    PART.main()
