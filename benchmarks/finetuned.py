"""Import fine-tuned checkpoints: the loss at several sizes, and the costs at the size of a BERT-base.

    python benchmarks/finetuned.py run              everything whose line is not in benchmarks/finetuned.jsonl yet
    python benchmarks/finetuned.py show             the results as Markdown

`trec` is all-MiniLM-L6-v2, fine-tuned with all of its weights on TREC questions, and imported within limits without the
changes of its embeddings; accuracy is that of the test rows, of checkpoint and adapter in ONNX Runtime. `bert-base` has
random weights: one copy with a merged LoRA of rank 8, and one with all matrices changed. Each import runs in a process
of its own on one thread.
"""

from __future__ import annotations

import csv
import json
import random
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import practice_data
from kit.tables import Table
from kit.watch import Limits, watch
from practice_data import demo_data

RESULTS = Path(__file__).with_suffix(".jsonl")
FOLDER = Path("demo") / "finetuned"
ROWS = {"train": 3500, "validation": 300, "test": 1500}
BATCH, EPOCHS, RATE, WARM_UP = 32, 4, 5e-5, 0.06
LIMITS: Mapping[str, Mapping[str, Any]] = {
    "5 %": {"size": "5%"},
    "2 %": {"size": "2%"},
    "whole": {"dense": True},
}
"""Arguments of `import_finetuned` by the name of a limit."""

COSTS: Mapping[str, Mapping[str, Any]] = {"merged": {}, "changed": {"size": "5%"}}
"""Arguments for copies of a BERT-base."""


def main(verb: str) -> None:
    """Run what is missing, or show the results."""
    if verb == "show":
        show()
        return
    known = {(line["table"], line["limit"]) for line in lines()}
    for copy, options in COSTS.items():
        if ("bert-base", copy) not in known:
            keep("bert-base", copy, measure_costs(copy, options))
    for limit, options in LIMITS.items():
        if ("trec", limit) not in known:
            keep("trec", limit, measure_loss(trec_folder(), options))


def lines() -> list[dict[str, Any]]:
    text = RESULTS.read_text(encoding="utf-8") if RESULTS.exists() else ""
    return [json.loads(line) for line in text.splitlines()]


def keep(table: str, limit: str, row: Mapping[str, Any]) -> None:
    line = json.dumps({"table": table, "limit": limit, **row})
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(line + "\n")
    sys.stdout.write(line + "\n")


def trec_folder() -> Path:
    """Return a folder with a fine-tuned `model`, its `base` and `test.tsv`; the first call trains for minutes."""
    folder = FOLDER / "trec"
    if not (folder / "model").exists():
        practice_data.write("trec", folder, ROWS)
        fine_tune(folder)
    return folder


def fine_tune(folder: Path) -> None:
    """Train all weights with AdamW and a linear schedule."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(0)
    with (folder / "train.tsv").open(encoding="utf-8", newline="") as file:
        rows = [(row["text"], row["label"]) for row in csv.DictReader(file, delimiter="\t")]
    labels = sorted({label for _, label in rows})
    base, names = demo_data.base_folder(), dict(enumerate(labels))
    settings = {"id2label": names, "label2id": {name: at for at, name in names.items()}, "num_labels": len(labels)}
    settings["problem_type"] = "single_label_classification"
    model, tokenizer = (
        AutoModelForSequenceClassification.from_pretrained(base, **settings),
        AutoTokenizer.from_pretrained(base),
    )
    steps = EPOCHS * -(-len(rows) // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1, (step + 1) / (WARM_UP * steps)) * max(0, 1 - step / steps)
    )
    draws = random.Random(0)
    model.train()
    for _ in range(EPOCHS):
        draws.shuffle(rows)
        for start in range(0, len(rows), BATCH):
            batch = rows[start : start + BATCH]
            inputs = tokenizer([text for text, _ in batch], return_tensors="pt", padding="longest", truncation=True)
            model(**inputs, labels=torch.tensor([labels.index(label) for _, label in batch])).loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    model.eval().save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")


def measure_loss(folder: Path, options: Mapping[str, Any]) -> dict[str, Any]:
    """Import the checkpoint within a limit, and compare it with the adapter on the test rows."""
    import adapter_export as ae

    base = folder / "base.pt"
    if not base.exists():
        ae.capture(demo_data.base_folder(), base)
    with TemporaryDirectory() as temporary:
        imported = ae.import_finetuned(
            folder / "model",
            base,
            Path(temporary, "adapter"),
            leave_out=("embeddings",),
            data=folder / "test.tsv",
            **options,
        )
    comparison: Any = imported.comparison
    (difference,) = (each for each in comparison.differences if each.metric == "accuracy")
    whole, adapter = (each.scores["accuracy"].value for each in comparison.contestants)
    return {
        "share": round(imported.adapter.cost().parameters / ae.open_base(base).parameters, 4),
        "captured": round(imported.captured, 3),
        "checkpoint": round(whole, 4),
        "adapter": round(adapter, 4),
        "interval": [round(-difference.high, 4), round(-difference.low, 4)],
        "agreement": round(comparison.agreements[0].value, 4),
        "rows": comparison.rows,
    }


def measure_costs(copy: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Import a copy of a BERT-base in a process, and measure its time and memory."""
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_copy(folder, copy)
        words = [f"--{name}={value}" for name, value in options.items()]
        program = "from adapter_export.cli.main import main; main()"
        command = ["import", "finetuned", str(folder / "model"), "--base", str(folder / "base.pt")]
        output = ["-o", str(folder / "adapter")]
        log, one_thread = folder / "log", {"OMP_NUM_THREADS": "1"}
        spent = watch([sys.executable, "-c", program, *command, *output, *words], Limits(1800, 20e9), log, one_thread)
        weights = (folder / "model" / "model.safetensors").stat().st_size
        row = {"wall": round(spent.wall), "processor": round(spent.processor), "weights_mb": round(weights / 1e6)}
        return {**row, "anonymous_mb": round(spent.peak.anonymous / 1e6), "failure": spent.failure}


def write_copy(folder: Path, copy: str) -> None:
    """Write a BERT-base with random weights, an archive of it, and a changed copy."""
    import peft
    import torch
    from transformers import BertConfig, BertModel

    import adapter_export as ae

    torch.manual_seed(0)
    model = BertModel(BertConfig()).eval()
    model.save_pretrained(folder / "base")
    ae.capture(folder / "base", folder / "base.pt")
    with torch.no_grad():
        if copy == "merged":
            wrapped: Any = peft.get_peft_model(model, peft.LoraConfig(r=8, target_modules=["query", "value"]))
            for name, parameter in wrapped.named_parameters():
                if "lora_" in name:
                    parameter.normal_(0, 0.02)
            model = wrapped.merge_and_unload()
        else:
            for name, parameter in model.named_parameters():
                if parameter.dim() == 2 and "embeddings" not in name:
                    parameter.add_(torch.randn_like(parameter), alpha=0.002)
    model.save_pretrained(folder / "model")


def show() -> None:
    """Print the results as Markdown."""
    for table in tables():
        sys.stdout.write(table.markdown() + "\n\n")


def tables() -> Iterator[Table]:
    rows = lines()
    columns = ("limit", "share of the base", "norm captured", "accuracy", "checkpoint", "difference, 95 %", "agreement")
    loss = [
        (
            row["limit"],
            f"{row['share']:.1%}",
            f"{row['captured']:.1%}",
            f"{row['adapter']:.4f}",
            f"{row['checkpoint']:.4f}",
            f"{row['interval'][0]:+.4f} to {row['interval'][1]:+.4f}",
            f"{row['agreement']:.1%}",
        )
        for row in rows
        if row["table"] == "trec"
    ]
    yield Table("MiniLM, fine-tuned on TREC questions", columns, loss)
    costs = [
        (row["limit"], row["wall"], row["processor"], row["weights_mb"], row["anonymous_mb"])
        for row in rows
        if row["table"] == "bert-base"
    ]
    yield Table("BERT-base", ("copy", "wall, s", "processor, s", "weights, MB", "anonymous memory, MB"), costs)


if __name__ == "__main__":
    main(sys.argv[1])
