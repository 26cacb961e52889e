"""Train, build, verify and run two adapters of a real model in one graph and one session.

    make demo          five minutes: adapters in the upper layers, the second one learns from fewer rows and is added
    make demo-full     adapters in all layers, trained on all rows, in one build, and a full check

With everything installed: `python examples/demo.py [--full]`. It shows each command and runs it in this process, so
that torch is imported once. Completed commands are skipped; `make clean` removes their results.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import demo_data
import numpy as np

from adapter_export.cli.main import main as adapter_export
from adapter_export.runtime import Bundle, Prediction
from adapter_export.text import Tokenizer

FOLDER = Path("demo")
MODEL = FOLDER / "model.pt"
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
QUESTIONS = (SENTENCES[0][1], SENTENCES[4][1])
QUICK = ("--quick", "--kind", "houlsby", "--leave-out", "0,1,2", "--epochs", "2", "--learning-rate", "0.002")
"""Adapters in the upper half of the base, so that the lower half runs once for each row, and half the epochs."""
MEASURED = 500
"""Test rows of each set of data in the quick demo."""
INTERRUPTED = 130
BEGAN = os.environ.get("DEMO_BEGAN")
"""Seconds of the epoch at which `make` began, before it installed."""


@dataclass(frozen=True)
class Task:
    """An adapter of the demo: its rows, and how it is trained.

    Attributes:
        part: number of training rows to use, a tenth of them for validation; default: all, and the validation rows.
    """

    name: str
    folder: Path
    rows: list[demo_data.Row]
    options: tuple[str, ...]
    part: int | None = None

    @property
    def adapter(self) -> Path:
        return self.folder / self.name

    def split(self, name: str) -> Path:
        return FOLDER / "data" / self.name / f"{name}.tsv"

    @property
    def table(self) -> Path:
        return self.split("train" if self.part is None else f"train-{self.part}")

    def prepare(self) -> None:
        counts = demo_data.write_splits(self.rows, self.split("train").parent)
        print(f"{len(self.rows)} different texts: " + ", ".join(f"{count} {name}" for name, count in counts.items()))
        if self.part is not None:
            demo_data.write_first(self.part, self.split("train"), self.table)
            print(f"{self.table}: {self.part} of the training texts")

    def train_command(self) -> tuple[object, ...]:
        data = ("--data", self.table)
        if self.part is None:
            data += ("--validation-data", self.split("validation"))
        columns = ("--text", "text", "--label", "label")
        return ("train", MODEL, *data, *columns, *self.options, "--bottleneck", "64", "-o", self.adapter)


class Steps:
    """The headings of the demo, and the seconds between them; the first step is the set-up by `make`."""

    def __init__(self) -> None:
        self._began = self._at = time.time() if BEGAN is None else float(BEGAN)
        self._title, self._times = "Set-up", list[tuple[str, float]]()

    @property
    def elapsed(self) -> float:
        return time.time() - self._began

    def begin(self, title: str) -> None:
        now = time.time()
        self._times.append((self._title, now - self._at))
        self._title, self._at = title, now
        heading(title, "##")

    def show(self) -> None:
        """Show the seconds of each step, and of all."""
        self.begin("Time")
        for title, taken in (*self._times, ("Total", self.elapsed)):
            print(f"{title:<60}{taken:>6.0f} s")


class Demo:
    """Adapters and a bundle in one folder, made by commands that are shown."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.bundle, self.steps = folder, folder / "bundle", Steps()

    def quick(self) -> None:
        """Build a bundle with one adapter and ask it; then train another adapter and add it."""
        trec = Task("trec", self.folder, demo_data.trec(), QUICK)
        sentiment = Task("sentiment", self.folder, demo_data.sentiment(), QUICK, part=1500)
        self.capture()
        self.train(trec, "an accuracy of about 0.92 on the validation rows, within a minute")
        self.steps.begin("One graph, with slots for adapters")
        unless(self.bundle, "build", MODEL, "--adapters", trec.adapter, "-o", self.bundle)
        self.steps.begin("The first answers")
        run("run", self.bundle, "--adapter", "trec", "--text", QUESTIONS[0], "--text", QUESTIONS[1])
        print(f"\nAnswered {self.steps.elapsed:.0f} s after the start.")
        self.train(sentiment, "an accuracy of about 0.82 on the validation rows, within a minute")
        self.steps.begin("A second adapter in the same graph, without a new export")
        added = self.bundle / "adapters" / "sentiment.onnx_adapter"
        unless(added, "add", self.bundle, sentiment.adapter, "--against", MODEL)
        self.steps.begin("Is it whole, and right on this machine?")
        run("verify", self.bundle)
        self.steps.begin("Two adapters on one session")
        service = Service(self.bundle)
        heading(f"Accuracy on {MEASURED} test texts each, computed by the exported graph")
        for task in (trec, sentiment):
            print(f"{task.name:<12}{service.accuracy(task, MEASURED):>10.3f}")
        service.show(trec, sentiment)
        self.steps.show()
        print("\n`make demo-full` trains adapters in all layers on all rows, and runs the full `check`.")

    def full(self) -> None:
        """Train adapters in all layers on all rows, build a bundle of both, and check it."""
        trec = Task("trec", self.folder, demo_data.trec(), ("--quick", "--kind", "houlsby", "--epochs", "4"))
        fewer = ("--quick", "--kind", "pfeiffer", "--epochs", "2")
        sentiment = Task("sentiment", self.folder, demo_data.sentiment(), fewer)
        self.capture()
        for task, expected in ((trec, "0.938"), (sentiment, "0.872")):
            self.train(task, f"an accuracy of {expected} on the test rows, after one to five minutes")
            run("lint", task.adapter, "--base", MODEL, "--data", task.split("validation"))
        self.steps.begin("One graph for both")
        names = f"{trec.adapter},{sentiment.adapter}"
        unless(self.bundle, "build", MODEL, "--adapters", names, "-o", self.bundle)
        self.steps.begin("Does it compute what torch computes?")
        run("check", self.bundle, "--against", MODEL)
        self.steps.begin("Is it whole, and right on this machine?")
        run("verify", self.bundle)
        self.steps.begin("Use it")
        run("run", self.bundle, "--adapter", "trec", "--text", QUESTIONS[0], "--text", QUESTIONS[1])
        self.steps.begin("Two adapters on one session")
        service = Service(self.bundle)
        heading("Accuracy on the test texts, computed by the exported graph")
        print(f"{'':<12}{'adapter':>10}{'logistic regression on the frozen base':>42}")
        for task in (trec, sentiment):
            print(f"{task.name:<12}{service.accuracy(task):>10.3f}{service.baseline(task):>42.3f}")
        service.show(trec, sentiment)
        self.steps.show()

    def capture(self) -> None:
        self.steps.begin("The base: all-MiniLM-L6-v2, 22.7 million parameters")
        unless(MODEL, "capture", nearby(demo_data.base_folder()), "-o", MODEL)

    def train(self, task: Task, expected: str) -> None:
        self.steps.begin(f"The adapter `{task.name}`")
        print(f"Expect {expected}.\n")
        task.prepare()
        unless(task.adapter, *task.train_command())


class Service:
    """Act as a service: one bundle, one session, an adapter per call."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.bundle = folder, Bundle.open(folder)
        self.session = self.bundle.session()
        self.names = [record.name for record in self.bundle.manifest.inputs]
        self.tokenizer = Tokenizer.from_folder(folder, MAX_TOKENS)

    def show(self, *tasks: Task) -> None:
        heading("Sizes")
        for path in ("base.bin", "model.onnx", *(f"adapters/{task.name}.onnx_adapter" for task in tasks)):
            print(f"{path:<36}{(self.folder / path).stat().st_size / 1e6:>8.1f} MB")
        heading("Switching adapters, and opening a session")
        self.show_times(*(task.name for task in tasks))
        heading("Both adapters on one session, switched for every sentence")
        for adapter, text in SENTENCES:
            (found,) = self.session.classify(self.tokenizer.batch([text], self.names), adapter)
            self.show_label(adapter, text, found)
        heading("The same in one call, with an adapter for each row")
        adapters, texts = zip(*SENTENCES, strict=True)
        labels = self.session.classify(self.tokenizer.batch(texts, self.names), adapters=adapters)
        for adapter, text, found in zip(adapters, texts, labels, strict=True):
            self.show_label(adapter, text, found)

    @staticmethod
    def show_label(adapter: str, text: str, found: Prediction) -> None:
        print(f"{adapter:<12}{text:<52}{found.label:<10}{found.probability:.3f}")

    def accuracy(self, task: Task, limit: int | None = None) -> float:
        """Return the share of right answers on the test rows, or on the first of them."""
        rows = demo_data.read(task.split("test"))[:limit]
        right = 0
        for batch, arrays in self.batches(rows):
            found = self.session.classify(arrays, task.name)
            right += sum(one.label == label for one, (_, label) in zip(found, batch, strict=True))
        return right / len(rows)

    def baseline(self, task: Task) -> float:
        """The same session without an adapter: mean-pooled embeddings, and scikit-learn on top."""
        from sklearn.linear_model import LogisticRegression

        train, test = (self.embedded(demo_data.read(path)) for path in (task.table, task.split("test")))
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
        """Return batches of rows of similar length, to reduce padding."""
        ordered = sorted(rows, key=lambda row: len(row[0]))
        for start in range(0, len(ordered), BATCH):
            batch = ordered[start : start + BATCH]
            yield batch, self.tokenizer.batch([text for text, _ in batch], self.names)

    def show_times(self, one: str, other: str) -> None:
        """Time calls with one adapter and calls that switch, in turn; the difference is the cost of a switch."""
        arrays = self.tokenizer.batch([SENTENCES[0][1]], self.names)
        same, switched = [], []
        for _ in range(CALLS):
            for adapters, times in (((one, one), same), ((other, one), switched)):
                self.session.run(arrays, adapters[0])
                times.append(seconds(lambda: self.session.run(arrays, one)))
        loading = seconds(lambda: self.session.load("again", self.folder / "adapters" / f"{one}.onnx_adapter"))
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
    """Return a path relative to the current folder, if it is inside it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def heading(title: str, marks: str = "###") -> None:
    print(f"\n{marks} {title}\n")


def unless(output: Path, *command: object) -> None:
    """Run a command, unless its output exists."""
    if output.exists():
        print(f"{output} exists, so this is skipped:\n  $ {written(command)}")
    else:
        run(*command)


def run(*command: object) -> None:
    """Show a command, run it as the shell would, and stop the demo where it fails."""
    print(f"$ {written(command)}")
    try:
        adapter_export([str(part) for part in command])
    except SystemExit as done:
        if done.code:
            sys.exit(done.code)


def written(command: Sequence[object]) -> str:
    return shlex.join(["adapter-export", *map(str, command)])


def main() -> None:
    parser = argparse.ArgumentParser(description="Train, build, verify and run two adapters on a real model.")
    parser.add_argument("--full", action="store_true", help="train on all rows, and run the full check")
    full = parser.parse_args().full
    sys.stdout.reconfigure(line_buffering=True)  # in order with progress on stderr
    demo_data.verify()
    demo = Demo(FOLDER / "full" if full else FOLDER)
    demo.full() if full else demo.quick()


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
