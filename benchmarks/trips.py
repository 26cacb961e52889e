"""Count the files of the package that one command passes through.

    python benchmarks/trips.py build model.pt --adapters a,b -o bundle

Each function counts once, when it is first called. A return is a step to a file that was left before.
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from types import FrameType

import adapter_export
from adapter_export.cli.main import main

PACKAGE = f"{Path(adapter_export.__file__).parent}/"


class Trip:
    """The files of the functions that ran, in the order of their first calls."""

    def __init__(self) -> None:
        self.files: list[str] = []
        self._seen: set[object] = set()

    def __call__(self, frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        if event == "call" and code not in self._seen and code.co_filename.startswith(PACKAGE):
            self._seen.add(code)
            if code.co_name != "<module>":
                self.files.append(code.co_filename.removeprefix(PACKAGE))

    def returns(self) -> int:
        left: set[str] = set()
        count = 0
        for before, file in zip(self.files, self.files[1:], strict=False):
            if file != before:
                left.add(before)
                count += file in left
        return count


if __name__ == "__main__":
    trip = Trip()
    threading.setprofile(trip)
    sys.setprofile(trip)
    try:
        main(sys.argv[1:])
    finally:
        sys.setprofile(None)
        facts = f"{len(trip.files)} functions in {len(set(trip.files))} files"
        print(f"{facts}, {trip.returns()} returns to a file already left", file=sys.stderr)
