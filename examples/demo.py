"""The whole way on a real model: two adapters, one graph, one session.

    make demo          or, with everything installed:          python examples/demo.py

It runs the real commands and shows each before it runs. What is done is not done again; `make clean` removes it.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import demo_data
import numpy as np
from sklearn.linear_model import LogisticRegression

from adapter_export.runtime import Bundle, Prediction
from adapter_export.text import Tokenizer

FOLDER = Path("demo")
MODEL = FOLDER / "model.pt"
BUNDLE = FOLDER / "bundle"
BATCH = 32
MAX_TOKENS = 512
CALLS = 200
SESSIONS = 5
SENTENCES = (
    ("trec", "How far is the moon from the earth ?"),
    ("sentiment", "A warm, funny and beautifully acted film."),
    ("trec", "Who painted the ceiling of the Sistine Chapel ?"),
    ("sentiment", "Two hours of my life that nobody will give back."),
    ("trec", "What does NASA stand for ?"),
    ("sentiment", "The plot makes no sense, and the jokes are worse."),
)


@dataclass(frozen=True)
class Task:
    """One adapter of the demo: its data, and how it is trained."""

    name: str
    rows: list[demo_data.Row]
    options: tuple[str, ...]

    @property
    def adapter(self) -> Path:
        return FOLDER / self.name

    def split(self, name: str) -> Path:
        return FOLDER / "data" / self.name / f"{name}.tsv"


def main() -> None:
    began = time.monotonic()
    demo_data.verify()
    tasks = (
        Task("trec", demo_data.trec(), ("--kind", "houlsby", "--epochs", "4")),
        Task("sentiment", demo_data.sentiment(), ("--kind", "pfeiffer", "--epochs", "2")),
    )
    step("The base: all-MiniLM-L6-v2, 22.7 million parameters")
    unless(MODEL, "adapter-export", "capture", nearby(demo_data.base_folder()), "-o", MODEL)
    for task in tasks:
        step(f"The adapter `{task.name}`")
        prepare(task)
        unless(task.adapter, *train_command(task))
        run("adapter-export", "lint", task.adapter, "--base", MODEL, "--data", task.split("validation"))
    step("One graph for both")
    names = ",".join(task.name for task in tasks)
    unless(BUNDLE, "adapter-export", "build", MODEL, "--adapters", names, "-o", BUNDLE)
    step("Does it compute what torch computes?")
    run("adapter-export", "check", BUNDLE, "--against", MODEL)
    step("Is it whole, and right on this machine? (no torch, no model)")
    run("adapter-export", "verify", BUNDLE)
    step("Use it")
    run("adapter-export", "run", BUNDLE, "--adapter", "trec", "--text", SENTENCES[0][1], "--text", SENTENCES[4][1])
    Service().show(tasks)
    print(f"\nThe demo took {time.monotonic() - began:.0f} s.")


def train_command(task: Task) -> tuple[object, ...]:
    data = ("--data", task.split("train"), "--validation-data", task.split("validation"))
    columns = ("--text", "text", "--label", "label")
    return ("adapter-export", "train", MODEL, *data, *columns, *task.options, "--bottleneck", "64", "-o", task.adapter)


def prepare(task: Task) -> None:
    counts = demo_data.write_splits(task.rows, task.split("train").parent)
    print(f"{len(task.rows)} different texts: " + ", ".join(f"{count} {name}" for name, count in counts.items()))


class Service:
    """What a service does: one bundle, one session, a choice of adapter per call."""

    def __init__(self) -> None:
        self.bundle = Bundle.open(BUNDLE)
        self.session = self.bundle.session()
        self.names = [record.name for record in self.bundle.manifest.inputs]
        self.tokenizer = Tokenizer.from_folder(BUNDLE, MAX_TOKENS)

    def show(self, tasks: Sequence[Task]) -> None:
        step("Accuracy on the test texts, computed by the exported graph")
        print(f"{'':<12}{'adapter':>10}{'logistic regression on the frozen base':>42}")
        for task in tasks:
            print(f"{task.name:<12}{self.accuracy(task):>10.3f}{self.baseline(task):>42.3f}")
        step("Sizes")
        for path in ("base.bin", "model.onnx", *(f"adapters/{task.name}.onnx_adapter" for task in tasks)):
            print(f"{path:<36}{(BUNDLE / path).stat().st_size / 1e6:>8.1f} MB")
        step("Switching adapters, and opening a session")
        self.show_times(*(task.name for task in tasks))
        step("Both adapters on one session, switched for every sentence")
        for adapter, text in SENTENCES:
            (found,) = self.session.classify(self.tokenizer.batch([text], self.names), adapter)
            self.show_label(adapter, text, found)
        step("The same in one call, with an adapter for each row")
        adapters, texts = zip(*SENTENCES, strict=True)
        labels = self.session.classify(self.tokenizer.batch(texts, self.names), adapters=adapters)
        for adapter, text, found in zip(adapters, texts, labels, strict=True):
            self.show_label(adapter, text, found)

    @staticmethod
    def show_label(adapter: str, text: str, found: Prediction) -> None:
        print(f"{adapter:<12}{text:<52}{found.label:<10}{found.probability:.3f}")

    def accuracy(self, task: Task) -> float:
        rows = demo_data.read(task.split("test"))
        right = 0
        for batch, arrays in self.batches(rows):
            found = self.session.classify(arrays, task.name)
            right += sum(one.label == label for one, (_, label) in zip(found, batch, strict=True))
        return right / len(rows)

    def baseline(self, task: Task) -> float:
        """The same session without an adapter: mean-pooled embeddings, and scikit-learn on top."""
        train, test = (self.embedded(demo_data.read(task.split(name))) for name in ("train", "test"))
        return float(LogisticRegression(max_iter=1000).fit(*train).score(*test))

    def embedded(self, rows: list[demo_data.Row]) -> tuple[np.ndarray, list[str]]:
        vectors, labels = [], []
        for batch, arrays in self.batches(rows):
            hidden = self.session.run(arrays)["last_hidden_state"]
            mask = arrays["attention_mask"][..., None]
            vectors.append((hidden * mask).sum(axis=1) / mask.sum(axis=1))
            labels += [label for _, label in batch]
        return np.concatenate(vectors), labels

    def batches(self, rows: list[demo_data.Row]) -> Iterator[tuple[list[demo_data.Row], dict[str, np.ndarray]]]:
        """Rows of like length together, so that little padding is computed."""
        ordered = sorted(rows, key=lambda row: len(row[0]))
        for start in range(0, len(ordered), BATCH):
            batch = ordered[start : start + BATCH]
            yield batch, self.tokenizer.batch([text for text, _ in batch], self.names)

    def show_times(self, one: str, other: str) -> None:
        """Calls with the same adapter and calls that switch, in turn; the difference is what a switch costs."""
        arrays = self.tokenizer.batch([SENTENCES[0][1]], self.names)
        same, switched = [], []
        for _ in range(CALLS):
            for adapters, times in (((one, one), same), ((other, one), switched)):
                self.session.run(arrays, adapters[0])
                times.append(seconds(lambda: self.session.run(arrays, one)))
        loading = seconds(lambda: self.session.load("again", BUNDLE / "adapters" / f"{one}.onnx_adapter"))
        opening = median(seconds(self.bundle.session) for _ in range(SESSIONS))
        cost = max(median(after - before for before, after in zip(same, switched, strict=True)), 0.0)
        for what, time_taken, more in (
            ("one call, same adapter as before", median(same), ""),
            ("one call, another adapter than before", median(switched), f", so the switch takes {cost * 1e6:.0f} µs"),
            ("load one more adapter from its file", loading, ""),
            ("open a second session", opening, f", {opening / loading:.0f} times as long"),
        ):
            print(f"{what:<40}{time_taken * 1e3:>10.3f} ms{more}")


def seconds(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def nearby(path: Path) -> Path:
    """A path from here, if it lies below here."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def step(title: str) -> None:
    print(f"\n## {title}\n", flush=True)


def unless(output: Path, *command: object) -> None:
    """Run a command, unless what it makes is there."""
    if output.exists():
        print(f"{output} is there already, so this is not done again:\n  $ {written(command)}", flush=True)
    else:
        run(*command)


def run(*command: object) -> None:
    """Show a command, run it as a user would, and stop the demo where it fails."""
    print(f"$ {written(command)}", flush=True)
    done = subprocess.run([str(part) for part in command], check=False)
    if done.returncode:
        sys.exit(f"error: the command above ended with exit code {done.returncode}.")


def written(command: Sequence[object]) -> str:
    return " ".join(shlex.quote(str(part)) for part in command)


if __name__ == "__main__":
    main()
