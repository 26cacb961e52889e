"""Rows that `benchmarks/sizes.py` measured: one line of JSON for each step of a model."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from adapter_export.safe_io.output import Output
from kit.real_models import MODELS
from kit.size_steps import step_names


@dataclass(frozen=True)
class Row:
    """Costs of one step of one model.

    Attributes:
        model: short name of the model.
        step: name of the step.
        date: day of the measurement.
        load: load average of the machine before the step.
        machine: hardware and software, in words.
        parameters: parameters of the model; shared ones count once.
        weights: bytes of these parameters in float32.
        adapters: adapters of each bundle.
        processor_s: seconds of all processors.
        wall_s: seconds on the clock.
        resident: most resident bytes (`VmHWM`), mapped files included.
        anonymous: most anonymous bytes (`RssAnon`).
        failure: limit or exit status; `None` if the step succeeded.
        last_line: last line of the output of a failed step.
        total_bytes: bytes of the output.
        base_bytes: bytes of the base's weights in the output.
        golden_bytes: bytes of golden data by adapter; `base` is the base, and `shared` belongs to all.
        adapter_bytes: bytes of the file of each adapter.
        first_s: seconds from the start of the process to the first token, or the first answer of another model.
        per_s: tokens or answers per second after the first.
    """

    model: str
    step: str
    date: str
    load: float
    machine: str
    parameters: int
    weights: int
    adapters: int
    processor_s: float
    wall_s: float
    resident: int
    anonymous: int
    failure: str | None = None
    last_line: str = ""
    total_bytes: int | None = None
    base_bytes: int | None = None
    golden_bytes: dict[str, int] = field(default_factory=dict)
    adapter_bytes: dict[str, int] = field(default_factory=dict)
    first_s: float | None = None
    per_s: float | None = None

    @property
    def place(self) -> tuple[str, str]:
        """Return the model and the step, which name a row."""
        return self.model, self.step

    def summary(self) -> str:
        """Return a line of progress."""
        costs = f"{self.processor_s:,.1f} s of processor time, {self.anonymous / 1e6:,.0f} MB"
        failure = f": {self.failure}: {self.last_line}" if self.failure else ""
        return f"{self.model}, {self.step}: {costs}{failure}"


class RowFile:
    """A file of rows.

    Args:
        path: the file; it need not exist.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> list[Row]:
        """Return all rows in the order of models and steps."""
        if not self._path.exists():
            return []
        return [Row(**json.loads(line)) for line in self._path.read_text(encoding="utf-8").splitlines()]

    def put(self, row: Row) -> None:
        """Write a row, which replaces the row of the same model and step."""
        rows = {**{other.place: other for other in self.read()}, row.place: row}
        lines = [json.dumps(asdict(other), ensure_ascii=False) for other in _in_order(rows.values())]
        with Output(self._path, force=True).file() as temporary:
            temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _in_order(rows: Iterable[Row]) -> list[Row]:
    models, steps = list(MODELS), step_names(MODELS.values())
    return sorted(rows, key=lambda row: (models.index(row.model), steps.index(row.step)))
