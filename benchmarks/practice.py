"""Train the models compared in docs/project/practice.md on real data, and write its tables.

    python benchmarks/practice.py run                 everything whose line is not in benchmarks/practice.jsonl yet
    python benchmarks/practice.py run widths          one table: widths, ratings, fusion, drop or student
    python benchmarks/practice.py write               the tables, from that file

Each finished training is a line of the file, so that an interrupted run resumes. Other outputs are in the folder
`demo`, which `make clean` removes.
"""

from __future__ import annotations

import json
import random
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import practice_data
import torch
from kit.tables import NOTHING, Table
from practice_data import DOMAINS, MOST, demo_data
from scipy.stats import pearsonr
from sklearn.linear_model import LogisticRegression, Ridge
from transformers import AutoModel

import adapter_export as ae
from adapter_export.text import Tokenizer
from adapter_export.training.loop.data import training_batches
from adapter_export.training.loop.train_loop import rate_factor

RESULTS = Path(__file__).with_suffix(".jsonl")
PAGE = Path(__file__).parents[1] / "docs" / "project" / "practice.md"
FOLDER = Path("demo") / "practice"
CLASSES = ("trec", "trec50", "sentiment")
WIDTHS = (4, 16, 64, 256)
SEEDS = (0, 1, 2)
EPOCHS, BATCH, MAX_TOKENS = 3, 16, 128
RATE, FUSION_RATE, STUDENT_RATE = 2e-3, 1e-3, 3e-4
"""Learning rates; the first does better on TREC's validation rows than 0.001."""
QUESTIONS = 3225
"""Number of training rows in TREC."""
DROPPED = 3
STUDENT = {"layers": 3, "precision": "bf16"}
"""Settings of `ae.distil`; bfloat16 products take half the time."""
CLOSE, SHARE, SPEED = 0.5, 97, 1.9
"""The goals: points below all weights; of a student percent of its teacher's accuracy, and how many times as fast."""
FULL_RATES = (1e-4, 3e-4)
"""Tried with the first seed for all weights; what does better on a set's validation rows is taken for the others."""
PENALTIES = (0.01, 0.1, 1.0, 10.0)

Scores = dict[str, float]


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        data: the name of the data set.
        method: the kind of adapter; or `full`, all weights of the base; `probe`, a head on the frozen base; `fusion` of
            the adapters of all domains; `members`, which trains nothing and measures them on the data of another; a
            `student` of the adapted model.
        width: the bottleneck.
        seed: of weights, order and dropout.
        rate: the highest learning rate.
        rows: to learn from.
        epochs: how often each of them is seen.
        batch: rows of a step.
    """

    data: str
    method: str
    width: int = 0
    seed: int = 0
    rate: float = 0.0
    rows: int = MOST["train"]
    epochs: int = EPOCHS
    batch: int = BATCH

    @property
    def adapter(self) -> Path:
        """Return the path of an adapter that is reused."""
        return FOLDER / f"{self.data}-{self.rows}-{self.method}-{self.width}-{self.seed}"

    def part(self, name: str) -> Path:
        """The file of `train`, `validation` or `test`."""
        folder = Path("demo") / "practice-data" / f"{self.data}-{self.rows}"
        if not folder.exists():
            most = {"train": self.rows, "validation": self.rows // 4, "test": MOST["test"]}
            practice_data.write(self.data, folder, most)
        return folder / f"{name}.tsv"

    def score(self, results: Any, targets: Any) -> Scores:
        """Return the score: the correlation with the ratings, or the number of correct labels."""
        if self.data in DOMAINS:
            return {"pearson": float(pearsonr(np.ravel(results), targets).statistic)}
        return {"accuracy": float(np.mean(np.asarray(results) == targets))}


def adapter(run: Run, **more: Any) -> dict[str, Any]:
    """Train an adapter, or a fusion of some."""
    rated = run.data in DOMAINS
    made = ae.train(
        base(),
        run.part("train"),
        run.adapter,
        validation_data=run.part("validation"),
        test_data=run.part("test"),
        task="regression" if rated else "single_label",
        epochs=run.epochs,
        batch_size=run.batch,
        learning_rate=run.rate,
        seed=run.seed,
        threads=1,
        force=True,
        **(more or {"kind": run.method, "bottleneck": run.width}),
    )
    learnt = sum(tensor.size for name, tensor in made.weights.items() if not name.startswith("head."))
    return {"parameters": learnt, **{part: made.training[part] for part in ("validation", "test")}}


def fusion(run: Run) -> dict[str, Any]:
    """Train a fusion of the adapters of all domains."""
    return adapter(run, fuse=members(run))


def transfer(run: Run) -> dict[str, Any]:
    """Measure the adapters of all domains on the test rows of one."""
    bundle = ae.build(base(), members(run), FOLDER / "bundle", variants=["slots"], force=True)
    found = {one.name: ae.evaluate(bundle, run.part("test"), adapter=one.name, resamples=0) for one in members(run)}
    return {"test": {name.partition("-")[0]: one.scores["pearson"].value for name, one in found.items()}}


def members(run: Run) -> list[Path]:
    """The adapters of all domains, trained if they are not there."""
    made = [Run(domain, "pfeiffer", run.width, run.seed, RATE) for domain in DOMAINS]
    for one in made:
        if not one.adapter.exists():
            adapter(one)
    return [one.adapter for one in made]


def drop(run: Run) -> dict[str, Any]:
    """Train an adapter whose lowest layers are left out of steps, and measure it without each number of them."""
    found = adapter(run, kind="houlsby", bottleneck=run.width, drop_layers=DROPPED)
    curve = ae.drop(run.adapter, base(), run.part("test"), threads=1).curve
    scores = [one.scores["accuracy"].value for one in curve]
    return {
        **found,
        "curve": {"accuracy": scores, "parameters": [one.parameters for one in curve]},
        "times": [one.without.ratio for one in curve],
    }


def student(run: Run) -> dict[str, Any]:
    """Distil an adapted model to fewer layers; its teacher is the adapter of `drop`, which is trained if need be."""
    (teacher,) = drops(run.seed)
    if not teacher.adapter.exists():
        adapter(teacher, kind="houlsby", bottleneck=teacher.width, drop_layers=DROPPED)
    made = ae.distil(
        base(),
        run.part("train"),
        run.adapter,
        adapter=teacher.adapter,
        unlabelled=crossed(run.part("train")),
        validation_data=run.part("validation"),
        test_data=run.part("test"),
        epochs=run.epochs,
        batch_size=run.batch,
        learning_rate=run.rate,
        seed=run.seed,
        threads=1,
        force=True,
        **STUDENT,
    )
    assert made.teacher is not None
    assert made.student.speed is not None
    own, whole = (side.scores["accuracy"].value for side in (made.student, made.teacher))
    found = {"accuracy": own, "teacher": whole, "agreement": made.agreement, "speed": made.student.speed.ratio}
    return {"parameters": made.student.parameters, "validation": made.training["validation"], "test": found, **STUDENT}


def crossed(table: Path) -> Path:
    """Write as many texts as a table has, each with the first words of one text and the last words of another.

    A teacher also answers these texts, and its student learns from the answers (like the n-grams of Tang et al. 2019,
    §3.3).
    """
    words, drawn = [text.split() for text, _ in demo_data.read(table)], random.Random(0)
    texts = []
    for first in words:
        last = drawn.choice(words)
        texts.append(" ".join(first[: drawn.randint(1, len(first))] + last[drawn.randint(0, len(last) - 1) :]))
    path = table.with_name("crossed.jsonl")
    path.write_text("".join(f"{json.dumps({'text': text})}\n" for text in texts), encoding="utf-8")
    return path


def probe(run: Run) -> dict[str, Any]:
    """Fit a logistic or a ridge regression to the mean of the hidden states, its penalty by the validation rows."""
    encoder = Encoder()
    rows = {name: encoder.rows(run, name) for name in ("train", "validation", "test")}
    vectors = {name: encoder.compute(texts).numpy() for name, (texts, _) in rows.items()}
    made = [
        Ridge(1 / penalty) if run.data in DOMAINS else LogisticRegression(C=10 * penalty, max_iter=2000)
        for penalty in PENALTIES
    ]
    found = []
    for one in made:
        one.fit(vectors["train"], rows["train"][1])
        found.append({name: run.score(one.predict(vectors[name]), rows[name][1]) for name in ("validation", "test")})
    return {"parameters": 0, **max(found, key=validated)}


def full(run: Run) -> dict[str, Any]:
    """Train all weights of the base and a head on the mean, as `ae.train` trains an adapter; its dropout is on."""
    torch.manual_seed(run.seed)
    encoder = Encoder()
    texts, targets = encoder.rows(run, "train")
    rated = run.data in DOMAINS
    labels, classes = (None, targets) if rated else np.unique(targets, return_inverse=True)
    head = torch.nn.Linear(encoder.model.config.hidden_size, 1 if labels is None else len(labels))
    tensors = [*encoder.model.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(tensors, lr=run.rate, weight_decay=0.01)
    loss = torch.nn.MSELoss() if rated else torch.nn.CrossEntropyLoss()
    expected = torch.tensor(classes, dtype=torch.float32 if rated else torch.int64)
    lengths = np.array([len(text) for text in texts])
    batches = [rows for epoch in range(run.epochs) for rows in training_batches(lengths, run.batch, (run.seed, epoch))]

    def measured(part: str) -> Scores:
        encoder.model.eval()
        asked, right = encoder.rows(run, part)
        with torch.inference_mode():
            answers = head(encoder.compute(asked))
        return run.score(answers if labels is None else labels[answers.argmax(1)], right)

    found = []
    for step, rows in enumerate(batches, 1):
        encoder.model.train()
        for group in optimizer.param_groups:
            group["lr"] = run.rate * rate_factor(step - 1, len(batches), warmup=0.1)
        optimizer.zero_grad()
        results = head(encoder.mean([texts[row] for row in rows]))
        loss(results[:, 0] if rated else results, expected[rows]).backward()
        torch.nn.utils.clip_grad_norm_(tensors, 1.0)
        optimizer.step()
        if step % (len(batches) // run.epochs) == 0:
            found.append({part: measured(part) for part in ("validation", "test")})
    return {"parameters": sum(tensor.numel() for tensor in encoder.model.parameters()), **max(found, key=validated)}


def validated(found: dict[str, Scores]) -> float:
    """The score on the validation rows, by which the best is chosen."""
    return next(iter(found["validation"].values()))


class Encoder:
    """The base as transformers has it, and the mean of its last hidden states."""

    def __init__(self) -> None:
        folder = demo_data.base_folder()
        self.tokenizer = Tokenizer.from_folder(folder, MAX_TOKENS)
        self.model = AutoModel.from_pretrained(folder, dtype="float32", add_pooling_layer=False).eval()

    @staticmethod
    def rows(run: Run, part: str) -> tuple[list[str], np.ndarray]:
        """The texts of a part, and their labels or ratings."""
        texts, labels = zip(*demo_data.read(run.part(part)), strict=True)
        return list(texts), np.array(labels, dtype=float if run.data in DOMAINS else None)

    def compute(self, texts: list[str]) -> torch.Tensor:
        """The means of many texts [texts, width], without a gradient."""
        order = np.argsort([len(text) for text in texts], kind="stable")
        with torch.inference_mode():
            found = [self.mean([texts[row] for row in order[at : at + BATCH]]) for at in range(0, len(order), BATCH)]
        return torch.cat(found)[torch.from_numpy(np.argsort(order))]

    def mean(self, texts: list[str]) -> torch.Tensor:
        """The mean over the tokens of each text of a batch [batch, width]."""
        arrays = self.tokenizer.batch(texts, ["input_ids", "attention_mask", "token_type_ids"])
        inputs = {name: torch.from_numpy(array) for name, array in arrays.items()}
        mask = inputs["attention_mask"][..., None].float()
        return (self.model(**inputs).last_hidden_state * mask).sum(1) / mask.sum(1)


METHODS: dict[str, Callable[[Run], dict[str, Any]]] = {
    "full": full,
    "probe": probe,
    "fusion": fusion,
    "members": transfer,
    "drop": drop,
    "student": student,
}


@cache
def base() -> ae.Base:
    """The base, captured once."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    archive = FOLDER / "model.pt"
    return ae.open_base(archive) if archive.exists() else ae.capture(demo_data.base_folder(), archive)


def lines() -> list[dict[str, Any]]:
    """Read the measured results."""
    return [json.loads(line) for line in RESULTS.read_text(encoding="utf-8").splitlines()] if RESULTS.exists() else []


def do(run: Run) -> None:
    """Train, and add a line to the results."""
    facts = asdict(run)
    if any(facts.items() <= line.items() for line in lines()):
        return
    busy = time.process_time()
    found = METHODS.get(run.method, adapter)(run)
    line = json.dumps(facts | found | {"seconds": round(time.process_time() - busy, 1)})
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(f"{line}\n")
    print(line, flush=True)


def best_rate(data: str) -> float:
    """The learning rate of all weights that did best on the validation rows of a data set, the lower of two alike."""
    tried = [line for line in lines() if (line["data"], line["method"], line["seed"]) == (data, "full", 0)]
    return float(max(tried, key=lambda line: (validated(line), -line["rate"]))["rate"]) if tried else FULL_RATES[0]


def widths(seed: int) -> Iterator[Run]:
    """Adapters of all widths beside a probe and the whole model."""
    for name in CLASSES:
        if not seed:
            yield Run(name, "probe")
        for tried in [best_rate(name)] if seed else FULL_RATES:
            yield Run(name, "full", 0, seed, tried)
    for width in sorted(WIDTHS, key=lambda width: abs(width - 64)):
        yield from (Run(name, kind, width, seed, RATE) for name in CLASSES for kind in ("houlsby", "pfeiffer"))


def ratings(seed: int) -> Iterator[Run]:
    """An adapter for each domain beside a probe."""
    for name in DOMAINS:
        if not seed:
            yield Run(name, "probe")
        yield Run(name, "pfeiffer", 64, seed, RATE)


def fusions(seed: int) -> Iterator[Run]:
    """A fusion of the adapters of the domains on the smallest of them."""
    yield Run("amazon", "fusion", 64, seed, FUSION_RATE)
    yield Run("amazon", "members", 64, seed)


def drops(seed: int) -> Iterator[Run]:
    """An adapter that can do without its lowest layers."""
    yield Run("trec", "drop", 64, seed, RATE, QUESTIONS, 5)


def students(seed: int) -> Iterator[Run]:
    """A student with half of the layers."""
    yield Run("trec", "student", 64, seed, STUDENT_RATE, QUESTIONS, 5, 64)


PLANS: dict[str, Callable[[int], Iterator[Run]]] = {
    "widths": widths,
    "ratings": ratings,
    "fusion": fusions,
    "drop": drops,
    "student": students,
}


def shown(found: list[float], digits: int) -> str:
    """Mean, standard deviation and number of the seeds; nothing where nothing was measured."""
    if not found:
        return NOTHING
    spread = f" ± {statistics.stdev(found):.{digits}f}" if len(found) > 1 else ""
    return f"{statistics.mean(found):.{digits}f}{spread} ({len(found)})"


def measured(run: Run) -> list[dict[str, Any]]:
    """The lines of a training with each seed that was done."""
    wanted = {key: value for key, value in asdict(run).items() if key != "seed"}
    return [line for line in lines() if wanted.items() <= line.items()]


def scores(run: Run, metric: str = "accuracy") -> list[float]:
    """The scores on the test rows, one for each seed."""
    return [line["test"][metric] for line in measured(run)]


def setting(data: str, method: str, width: int) -> Run:
    """Return a run of the first table."""
    return Run(data, method, width, 0, {"probe": 0.0, "full": best_rate(data)}.get(method, RATE))


def verdict(goal: str, *, reached: bool) -> str:
    """A sentence."""
    return f"The goal, {goal}, is {'reached' if reached else 'missed'}."


def listed(names: list[str]) -> str:
    """Names in a sentence."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names) or "none"


def widths_table() -> Table:
    """Accuracies of adapters of all widths, beside a probe and the whole model."""
    rows = []
    kinds = [(kind, width) for kind in ("pfeiffer", "houlsby") for width in WIDTHS]
    for title, method, width in (
        ("linear probe", "probe", 0),
        *((f"{kind}, {width} wide", kind, width) for kind, width in kinds),
        ("all weights", "full", 0),
    ):
        of_each = {name: measured(setting(name, method, width)) for name in CLASSES}
        counts = [line["parameters"] for of_one in of_each.values() for line in of_one]
        found = [[100 * line["test"]["accuracy"] for line in of_one] for of_one in of_each.values()]
        if counts:
            rows.append([title, f"{counts[0]:,}", *(shown(one, 1) for one in found)])
    told, reached = [], []
    for name in CLASSES:
        whole = 100 * statistics.mean(scores(setting(name, "full", 0)))
        means = {one: 100 * statistics.mean(own) for one in kinds if (own := scores(setting(name, *one)))}
        best = max(means, key=lambda one: means[one])
        within = [f"{kind} {width}" for kind, width in means if means[kind, width] >= whole - CLOSE]
        reached.append(bool(within))
        told.append(
            f"- On `{name}` all weights have {whole:.1f} and the best adapter, {best[0]} {best[1]}, {means[best]:.1f}, "
            f"{abs(means[best] - whole):.1f} points {'more' if means[best] >= whole else 'less'}; at most {CLOSE} "
            f"points below all weights: {listed(within)}."
        )
    goal = verdict(f"an adapter within {CLOSE} points of full fine-tuning on each of the sets", reached=all(reached))
    return Table("", ("", "parameters", *CLASSES), rows, "\n".join([f"{goal}\n", *told]))


def ratings_table() -> Table:
    """Correlations with the mean rating, beside what people reach."""
    rows, above = [], {}
    for name in DOMAINS:
        found, ceiling = scores(Run(name, "pfeiffer", 64, 0, RATE), "pearson"), practice_data.human_ceiling(name)
        rows.append([name, shown(scores(Run(name, "probe"), "pearson"), 3), shown(found, 3), f"{ceiling:.3f}"])
        above[name] = statistics.mean(found) > ceiling
    names = {side: [f"`{name}`" for name in DOMAINS if above[name] is side] for side in (True, False)}
    note = f"The adapter is above what people reach on {listed(names[True])}, and below on {listed(names[False])}."
    return Table("", ("", "linear probe", "pfeiffer, 64 wide", "one person and the others"), rows, note)


def fusion_table() -> Table:
    """Correlations on one domain: of the adapters of all, and of their fusion."""
    (fused, others) = fusions(0)
    found = {name: scores(others, name) for name in DOMAINS}
    found["amazon"] = scores(Run("amazon", "pfeiffer", 64, 0, RATE), "pearson")
    together = scores(fused, "pearson")
    rows = [
        *([f"adapter of `{name}`", shown(own, 3)] for name, own in found.items()),
        ["fusion of the four", shown(together, 3)],
    ]
    best = max(found, key=lambda name: statistics.mean(found[name]))
    apart = [one - other for one, other in zip(together, found[best], strict=False)]
    more = statistics.mean(apart) > (statistics.stdev(apart) if len(apart) > 1 else 0)
    note = (
        f"The best single adapter is that of `{best}`. Fusion less best adapter, seed by seed: {shown(apart, 3)}. "
        f"{'So the fusion helps.' if more else 'So the fusion does not help here.'}"
    )
    return Table("", ("", "`amazon`"), rows, note)


def drop_table() -> Table:
    """Return the table of adapters without their lowest layers."""
    (run,) = drops(0)
    columns = ("lowest layers without adapter", "parameters", "accuracy", "lost", "time over the base")
    if not (found := measured(run)):
        return Table("", columns, [], "Nothing is measured yet.")
    layers = range(len(found[0]["times"]))
    curves = [[100 * line["curve"]["accuracy"][count] for line in found] for count in layers]
    times = [statistics.median(line["times"][count] for line in found) for count in layers]
    lost = [[whole - one for whole, one in zip(curves[0], curve, strict=True)] for curve in curves]
    rows = [
        [
            f"{count}" if count else "none",
            f"{found[0]['curve']['parameters'][count]:,}",
            shown(curves[count], 1),
            shown(lost[count], 1) if count else NOTHING,
            f"{times[count]:.2f}",
        ]
        for count in layers
    ]
    half = statistics.mean(lost[DROPPED])
    reached = verdict(f"{DROPPED} of {layers[-1]} layers for at most 1 point", reached=half <= 1)
    return Table("", columns, rows, f"{reached} Without the lowest {DROPPED} it has {half:.1f} points less.")


def student_table() -> Table:
    """Return the table of students relative to their teachers."""
    (run,) = students(0)
    columns = ("teacher", "student", "of its teacher's", "the same answer", "times as fast")
    if not (found := [line["test"] for line in measured(run)]):
        return Table("", columns, [], "Nothing is measured yet.")

    def told(name: str, factor: float = 100.0, digits: int = 1) -> str:
        return shown([factor * one[name] for one in found], digits)

    share = [100 * one["accuracy"] / one["teacher"] for one in found]
    speed = statistics.mean(one["speed"] for one in found)
    goal = f"{SHARE} % of its teacher's accuracy at {SPEED} times its speed"
    note = verdict(goal, reached=statistics.mean(share) >= SHARE and speed >= SPEED)
    row = [told("teacher"), told("accuracy"), shown(share, 1), told("agreement"), told("speed", 1.0, 2)]
    return Table("", columns, [row], note)


TABLES: dict[str, Callable[[], Table]] = {
    "widths": widths_table,
    "ratings": ratings_table,
    "fusion": fusion_table,
    "drop": drop_table,
    "student": student_table,
}
"""Return the contents of the page, by place."""


def write() -> None:
    """Put the tables in their places in the page."""
    text = PAGE.read_text(encoding="utf-8")
    for name, made in TABLES.items():
        start, end = f"<!-- practice:{name} -->", "<!-- end -->"
        body = made().markdown().removeprefix("### ").strip()
        text, count = re.subn(
            f"({re.escape(start)}).*?({end})", lambda m, b=body: f"{m[1]}\n{b}\n{m[2]}", text, flags=re.S
        )
        if count != 1:
            sys.exit(f"error: {PAGE} has {count} places `{start}`, and should have one")
    PAGE.write_text(text, encoding="utf-8")


def main(what: str = "", *names: str) -> None:
    """Do what the first argument says."""
    unknown = set(names) - set(PLANS)
    if what not in ("run", "write") or unknown or (what == "write" and names):
        sys.exit(str(__doc__))
    if what == "write":
        write()
        return
    torch.set_num_threads(1)
    for seed in SEEDS:
        for name in names or PLANS:
            for run in PLANS[name](seed):
                do(run)


if __name__ == "__main__":
    main(*sys.argv[1:])
