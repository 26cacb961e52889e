"""Two fine-tuned copies of one model become two adapters in one bundle, which is smaller than one copy.

    python examples/finetuned_to_adapters.py FOLDER

Both are all-MiniLM-L6-v2: one is fine-tuned on questions with all of its weights, the other on film reviews with a LoRA
of PEFT that is merged into the weights. All rows and the model come from packages that `make setup` installs.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

import demo_data
import peft
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import adapter_export as ae
from adapter_export.tables import size

ROWS, BATCH = 500, 16
RATES = {"questions": 3e-4, "reviews": 2e-3}
BASE = demo_data.base_folder()


def open_model(labels: list[str]) -> Any:
    names = dict(enumerate(labels))
    settings = {"id2label": names, "label2id": {name: at for at, name in names.items()}}
    problem = {"problem_type": "single_label_classification"}
    return AutoModelForSequenceClassification.from_pretrained(BASE, num_labels=len(labels), **settings, **problem)


def fine_tune(model: Any, rows: list[demo_data.Row], labels: list[str], rate: float) -> None:
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], lr=rate)
    model.train()
    for start in range(0, len(rows), BATCH):
        batch = rows[start : start + BATCH]
        inputs = tokenizer([text for text, _ in batch], return_tensors="pt", padding="longest", truncation=True)
        model(**inputs, labels=torch.tensor([labels.index(label) for _, label in batch])).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def main(folder: Path) -> None:
    torch.manual_seed(0)
    tables = {"questions": demo_data.trec(), "reviews": demo_data.sentiment()}
    for name, rows in tables.items():
        labels = sorted({label for _, label in rows})
        chosen = random.Random(0).sample(rows, ROWS)
        model = open_model(labels)
        if name == "reviews":  # a LoRA; PEFT trains the head, too
            model = peft.get_peft_model(
                model, peft.LoraConfig(task_type="SEQ_CLS", r=8, target_modules=["query", "value", "dense"])
            )
        fine_tune(model, chosen, labels, RATES[name])
        if name == "reviews":
            model = model.merge_and_unload()
        model.eval().save_pretrained(folder / f"{name}_model")

    base = ae.capture(BASE, folder / "model.pt")
    merged = ae.import_finetuned(folder / "reviews_model", base, folder / "reviews")
    print(f"the merged LoRA has rank {merged.layers[0].rank}, and is imported without loss: {merged.is_exact}")
    whole = ae.import_finetuned(
        folder / "questions_model", base, folder / "questions", size="5%", leave_out=("embeddings",)
    )
    print(whole.table())
    bundle = ae.build(base, [folder / "questions", folder / "reviews"], folder / "bundle", without_base_head=True)
    asked = {"questions": ["Who wrote Hamlet?", "How many moons has Mars?"]}
    asked["reviews"] = ["A dull and lifeless film", "Funny, warm and beautifully acted"]
    for name, lines in asked.items():
        for line, answer in zip(lines, bundle.texts().answer(lines, name), strict=True):
            print(f"{name}: {line} {answer.document()['label']}")
    copies = sum((folder / f"{name}_model" / "model.safetensors").stat().st_size for name in tables)
    adapters = sum(4 * each.adapter.cost().parameters for each in (merged, whole))
    print(f"two models: {size(copies)}; their adapters: {size(adapters)}, beside one base")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
