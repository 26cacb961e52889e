"""What `train` shows: a bar while it runs, and a table of its epochs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapter_export.cli.output import Bar, console, duration, emit_json, progress_bar, say, size, table

if TYPE_CHECKING:
    from adapter_export.graph.adapter import Adapter
    from adapter_export.torch.progress import EpochRecord

_SMOOTHING = 0.95


class TrainingBar:
    """A bar with the running mean of the loss and the last value of the first metric."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._bar: Bar | None = None
        self._loss: float | None = None
        self._metric = ""

    def started(self, steps: int, done: int) -> None:
        """Show the bar, and say so if an interrupted run goes on."""
        if done:
            say(f"going on with the interrupted run, after step {done:,} of {steps:,}.")
        self._bar = self._stack.enter_context(progress_bar("training", steps))
        self._bar.advance(done)

    def stepped(self, loss: float) -> None:
        """Advance the bar."""
        assert self._bar is not None
        self._loss = loss if self._loss is None else _SMOOTHING * self._loss + (1 - _SMOOTHING) * loss
        self._bar.advance(note=f"loss {self._loss:.3f}{self._metric}")

    def epoch_finished(self, record: EpochRecord) -> None:
        """Show the metric from now on."""
        from adapter_export.torch.objectives import metric_name

        assert self._bar is not None
        name, value = next(iter(record.validation.metrics.items()))
        self._metric = f"  {metric_name(name)} {value:.3f}"
        self._bar.describe(f"training, {record.epoch} epoch{'s' if record.epoch > 1 else ''} done")


@contextmanager
def bar() -> Iterator[TrainingBar]:
    """A bar for a run; it ends when the block ends."""
    with ExitStack() as stack:
        yield TrainingBar(stack)


def report(adapter: Adapter, output: Path, notes: tuple[str, ...], *, as_json: bool) -> None:
    """Tell what was made: one JSON document, or a table and lines."""
    from adapter_export.torch.curve import CURVE_FILE

    cost, record = adapter.cost(), adapter.training
    if as_json:
        made = {"adapter": str(output), "name": adapter.name, "kind": adapter.kind}
        sizes = {"parameters": cost.parameters, "bytes": cost.bytes, "sites": list(adapter.placements)}
        assert adapter.head is not None
        labels = list(adapter.head.labels) or None
        emit_json(
            {**made, **sizes, "labels": labels, "notes": list(notes), "curve": str(output / CURVE_FILE), **record}
        )
        return
    console().print(_epochs(record))
    if "test" in record:
        console().print(f"test {', '.join(f'{name} {value:.3f}' for name, value in _metrics(record['test']))}")
    say(
        f"wrote {output}: `{adapter.name}`, {adapter.kind}, {len(adapter.placements)} sites, "
        f"{cost.parameters:,} parameters, {size(cost.bytes)}; its learning curve is {output / CURVE_FILE}."
    )
    say(f"Next: adapter-export build MODEL --adapters {output} -o bundle")


def _epochs(record: Mapping[str, Any]) -> object:
    rows = [
        (
            f"{epoch['epoch']}{' *' if epoch['epoch'] == record['best_epoch'] else ''}",
            f"{epoch['training_loss']:.4f}",
            f"{epoch['validation']['loss']:.4f}",
            *(f"{value:.4f}" for _, value in _metrics(epoch["validation"])),
            duration(epoch["seconds"]),
        )
        for epoch in record["history"]
    ]
    names = [name for name, _ in _metrics(record["validation"])]
    columns = ("epoch", "training loss", "validation loss", *names, "time")
    return table("Epochs (* kept)", columns, rows, numbers="l" + "r" * (len(columns) - 1))


def _metrics(scores: Mapping[str, float]) -> list[tuple[str, float]]:
    """The metrics among scores, each by its name for people."""
    from adapter_export.torch.objectives import metric_name

    return [(metric_name(name), value) for name, value in scores.items() if name != "loss"]
