"""Cells of the product of published models, tasks, precisions and graph variants, each from capture to an answer."""

from __future__ import annotations

import json
import shutil
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import onnxruntime as ort
from configurations import Published
from rounded_weights import give_rounded_weights
from safetensors.numpy import load_file
from shrink import quiet, small_model
from tasks import TASKS, Arrays, Reference, imported, tasks_of

import adapter_export as ae
from adapter_export.errors import AdapterExportError, ParityError
from adapter_export.format.precision import PRECISION_NAMES, PrecisionName
from adapter_export.graph.adapter import Adapter

T = TypeVar("T")

VARIANTS = ("slots", "inputs", "bank")
PASSED, REFUSED, FAILED = "passed", "refused", "failed"
LENGTHS = {"batch": 2, "sequence": 7, "decoder_sequence": 5, "samples": 4000, "frames": 30}
"""Lengths of dynamic axes; any other has 7, and those of the past 0."""

WORDS = (4, 80)
"""Tokens of the inputs: none of them is special."""


@dataclass(frozen=True, order=True)
class Cell:
    """A task of a model, in a precision and a graph variant."""

    task: str
    precision: PrecisionName
    variant: str


@dataclass(frozen=True)
class Outcome:
    """Result of a run: `passed`, `refused` with the error's sentence, or `failed` with the fault."""

    verdict: str
    reason: str = ""


Outcomes = dict[Cell, Outcome]


class UnverifiedError(Exception):
    """A bundle that was built, but does not verify."""


def all_cells(model: Published) -> list[Cell]:
    """Return all cells of a model."""
    return [
        Cell(task, precision, variant)
        for task in tasks_of(model)
        for precision in PRECISION_NAMES
        for variant in VARIANTS
    ]


def outcome_of(error: BaseException, folder: Path) -> Outcome:
    """Return the outcome of an error, without paths; a traceback or a wrong result is a failure."""
    if isinstance(error, ParityError):
        return Outcome(FAILED, _cut(f"{error.what}; found {error.found}"))
    if isinstance(error, AdapterExportError):
        facts = error.facts()
        sentence = facts["what"] + (f"; found {facts['found']}" if "found" in facts else "")
        return Outcome(REFUSED, _cut(sentence.replace(str(folder), "")))
    if isinstance(error, UnverifiedError):
        return Outcome(FAILED, _cut(str(error)))
    while error.__cause__ is not None:
        error = error.__cause__
    last = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{Path(last.filename).name}:{last.lineno}"
    return Outcome(FAILED, _cut(f"{type(error).__name__} at {place}: {error}"))


def _cut(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 200 else f"{line[:199]}…"


class Trial:
    """One model through its cells; captures and adapters are shared by them.

    Args:
        model: the published model.
        folder: an empty folder to work in.
    """

    def __init__(self, model: Published, folder: Path) -> None:
        quiet()
        self.model, self._folder = model, folder
        self._bases: dict[bool, ae.Base | Exception] = {}
        self._adapters: dict[str, Adapter | Exception] = {}

    @cached_property
    def _source(self) -> Path:
        source = self._folder / "hf"
        small_model(self.model).save_pretrained(source)
        return source

    def run(self, cells: Sequence[Cell]) -> Outcomes:
        """Return the outcome of each cell. Cells of one precision and one capture are built together."""
        outcomes, usable = Outcomes(), []
        for task in dict.fromkeys(cell.task for cell in cells):
            own = [cell for cell in cells if cell.task == task]
            try:
                self._adapter(task)
                usable += own
            except Exception as error:
                outcomes |= dict.fromkeys(own, outcome_of(error, self._folder))
        shared = dict.fromkeys((cell.precision, TASKS[cell.task].with_cache) for cell in usable)
        for precision, with_cache in shared:
            together = [
                cell for cell in usable if cell.precision == precision and TASKS[cell.task].with_cache == with_cache
            ]
            outcomes |= self._built(together)
        return outcomes

    def _base(self, with_cache: bool) -> ae.Base:
        """Capture the model, once; an error is raised again."""
        if with_cache not in self._bases:
            path = self._folder / f"base{int(with_cache)}.pt"
            self._bases[with_cache] = _result_or_error(lambda: capture(self._source, path, with_cache=with_cache))
        return _raised(self._bases[with_cache])

    def _adapter(self, task: str) -> Adapter:
        """Import the adapter of a task, once; an error is raised again."""
        if task not in self._adapters:
            self._adapters[task] = _result_or_error(lambda: self._imported(task))
        return _raised(self._adapters[task])

    def _imported(self, task: str) -> Adapter:
        base, reference = self._base(TASKS[task].with_cache), Reference(self._source, self.model, task)
        return imported(reference, self._folder / "peft" / task, base, self.model, task)

    def _built(self, cells: Sequence[Cell]) -> Outcomes:
        """Build cells in one bundle; if that fails, in smaller ones, to find out which cells it concerns."""
        bundle = self._folder / "bundle"
        try:
            self._build(cells, bundle)
            return self._compared(cells, bundle)
        except Exception as error:
            outcome = outcome_of(error, self._folder)
        finally:
            shutil.rmtree(bundle, ignore_errors=True)
        if len(cells) == 1:
            return {cells[0]: outcome}
        first = self._built(cells[:1])
        if first[cells[0]] == outcome:  # the base is refused, with any adapter
            return dict.fromkeys(cells, outcome)
        return first | {key: value for part in _parts(cells) for key, value in self._built(part).items()}

    def _build(self, cells: Sequence[Cell], bundle: Path) -> None:
        tasks = dict.fromkeys(cell.task for cell in cells)
        variants = tuple(name for name in VARIANTS if any(cell.variant == name for cell in cells))
        ae.build(
            self._base(TASKS[cells[0].task].with_cache),
            [self._adapter(task) for task in tasks],
            bundle,
            base_precision=cells[0].precision,
            variants=variants,
        )
        report = ae.verify(bundle)
        if not report.passed:
            faults = [f"{each.claim}: {each.detail}" for each in report.findings if each.status == "failed"]
            raise UnverifiedError(f"verify: {'; '.join(faults)}")

    def _compared(self, cells: Sequence[Cell], bundle: Path) -> Outcomes:
        """Compare the answer of each cell with that of transformers, whose weights are rounded as the graph's are."""
        client, outcomes = Client(bundle), Outcomes()
        inputs = client.example_inputs()
        for task in dict.fromkeys(cell.task for cell in cells):
            expected = self._expected(task, cells[0].precision, client, inputs)
            for cell in cells:
                if cell.task == task:
                    fault = _fault(client.answer(task, cell.variant, inputs), expected, client.budget(task))
                    outcomes[cell] = Outcome(FAILED, fault) if fault else Outcome(PASSED)
        return outcomes

    def _expected(self, task: str, precision: PrecisionName, client: Client, inputs: Arrays) -> np.ndarray:
        reference = Reference(self._source, self.model, task)
        if precision != "fp32":
            give_rounded_weights(reference.module, client.path("slots"))
        reference.apply_lora()
        return reference.answer(inputs)


def _result_or_error(call: Callable[[], T]) -> T | Exception:
    try:
        return call()
    except Exception as error:
        return error


def _raised(result: T | Exception) -> T:
    if isinstance(result, Exception):
        raise result
    return result


def _fault(answer: np.ndarray, expected: np.ndarray, budget: float) -> str:
    """Describe a wrong answer; empty for a right one. A bank has classes for its widest head."""
    answer = answer[..., : expected.shape[-1]]
    if answer.shape != expected.shape:
        return f"the answer is {list(answer.shape)}, that of transformers {list(expected.shape)}"
    error = float(np.abs(answer - expected).max())
    return "" if error <= budget else f"off by {error:.1e} with a budget of {budget:.1e}"


def capture(source: Path, path: Path, *, with_cache: bool) -> ae.Base:
    """Capture a model's folder, as it generates or as it reads."""
    return ae.capture(source, path, bare=not with_cache)


def _parts(cells: Sequence[Cell]) -> list[list[Cell]]:
    """Split all cells but the first by task, or cells of one task by variant."""
    names = dict.fromkeys(cell.task for cell in cells)
    key = "task" if len(names) > 1 else "variant"
    values = dict.fromkeys(getattr(cell, key) for cell in cells)
    parts = [[cell for cell in cells[1:] if getattr(cell, key) == value] for value in values]
    return [part for part in parts if part]


class Client:
    """Runs a bundle with ONNX Runtime and nothing else, as a program in another language does.

    Args:
        bundle: its folder.
    """

    def __init__(self, bundle: Path) -> None:
        self._bundle = bundle
        self._manifest: dict[str, Any] = json.loads((bundle / "manifest.json").read_text("utf-8"))

    def path(self, variant: str) -> Path:
        """The file of a graph variant."""
        return self._bundle / str(self._manifest["graphs"][variant])

    def budget(self, adapter: str) -> float:
        """The largest deviation that the bundle allows for an adapter's answer."""
        absolute: Mapping[str, float] = self._record(adapter)["golden"]["absolute"]
        return absolute[self._output(adapter)]

    def answer(self, adapter: str, variant: str, inputs: Arrays) -> np.ndarray:
        """Compute an adapter's answer with a graph variant."""
        options = ort.SessionOptions()
        options.log_severity_level, options.intra_op_num_threads = 4, 1
        session = ort.InferenceSession(self.path(variant), options, providers=["CPUExecutionProvider"])
        if variant == "bank":
            bank = self._manifest["bank"]
            rows = len(next(iter(inputs.values())))
            feeds = {bank["ids"]: np.full(rows, bank["rows"].index(adapter), np.int64)}
        else:
            feeds = load_file(self._bundle / self._record(adapter)["safetensors"])
        (answer,) = session.run([self._output(adapter)], {**inputs, **feeds})
        return np.asarray(answer)

    def example_inputs(self) -> dict[str, np.ndarray]:
        """Inputs without padding, and an empty cache."""
        random = np.random.default_rng(0)
        return {record["name"]: _example(record, random) for record in self._manifest["inputs"]}

    def _record(self, adapter: str) -> dict[str, Any]:
        return next(record for record in self._manifest["adapters"] if record["name"] == adapter)

    def _output(self, adapter: str) -> str:
        """The output of an adapter's head, or the base's first."""
        return str(self._record(adapter)["output"] or self._manifest["outputs"][0]["name"])


def _example(record: Mapping[str, Any], random: np.random.Generator) -> np.ndarray:
    shape = [_length(axis) for axis in record["axes"]]
    if record["role"] == "cache" or record["dtype"].startswith("float"):
        return random.standard_normal(shape).astype(record["dtype"])
    if record["role"] == "mask":
        return np.ones(shape, record["dtype"])
    if record["limit"] is None or record["limit"] < WORDS[1]:  # types of tokens
        return np.zeros(shape, record["dtype"])
    return random.integers(*WORDS, shape, record["dtype"])


def _length(axis: int | str) -> int:
    if isinstance(axis, int):
        return axis
    new = [part for part in axis.split(" + ") if not part.startswith("past_")]
    return sum(LENGTHS.get(part, 7) for part in new)
