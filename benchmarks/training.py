"""Processor time of a training step and of validation, by what saves time: ratios to the plain loop.

    python benchmarks/training.py --model model.pt --data train.tsv                     # text and label; minutes

One thread, ways in turn; each number is the median of the rounds, over that of the first way.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch

import adapter_export as ae
from adapter_export.reporting import Reporter

WAYS: dict[str, dict[str, Any]] = {
    "all layers, no cache": {"cache_mb": 0},
    "all layers, cache": {},
    "all layers, cache, bf16": {"precision": "bf16"},
    "upper half, no cache": {"cache_mb": 0, "leave_out": True},
    "upper half, cache": {"leave_out": True},
}


class Clock(Reporter):
    """Adds the processor time of the steps of a run, and of all that is not a step from the first one on."""

    def __init__(self) -> None:
        self.steps: list[float] = []
        self._last = 0.0

    def step(self, label: str, done: int = 0, total: int | None = None) -> None:  # noqa: ARG002
        """Begin with the first step."""
        self._last = time.process_time()

    def measure(self, values: Mapping[str, float], step: int) -> None:  # noqa: ARG002
        """Add a step, and leave validation out."""
        now = time.process_time()
        if "training/loss" in values:
            self.steps.append(now - self._last)
        self._last = now


def main() -> None:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--model", type=Path, required=True)
    made.add_argument("--data", type=Path, required=True)
    made.add_argument("--rows", type=int, default=640)
    made.add_argument("--rounds", type=int, default=3)
    given = made.parse_args()
    torch.set_num_threads(1)
    base = ae.open_base(given.model)
    layers = 1 + max(int(name.split(".")[1]) for name in base.sites.names if name.startswith("layers."))
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    with TemporaryDirectory() as folder:
        data = Path(folder, "train.tsv")
        data.write_text("\n".join(given.data.read_text("utf-8").splitlines()[: given.rows + 1]) + "\n", "utf-8")
        for _ in range(given.rounds):
            for way, options in WAYS.items():
                clock = Clock()
                left_out = tuple(range(layers // 2)) if options.get("leave_out") else ()
                chosen = {**options, "leave_out": left_out} if left_out else options
                ae.train(base, data, kind="houlsby", bottleneck=64, epochs=2, device="cpu", reporter=clock, **chosen)
                times[way].append(median(clock.steps))
    first = next(iter(times.values()))
    print("| way | a step, ms | over the first |\n| --- | --- | --- |")
    for way, found in times.items():
        ratios = [one / other for one, other in zip(found, first, strict=True)]
        print(f"| {way} | {median(found) * 1e3:.0f} | {median(ratios):.2f} |")


if __name__ == "__main__":
    main()
