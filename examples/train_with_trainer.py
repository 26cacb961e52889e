"""Train an adapter with the `Trainer` of transformers, then build and check a bundle of it (needs `accelerate`).

python examples/train_with_trainer.py MODEL_FOLDER OUTPUT_FOLDER
"""

import sys
from pathlib import Path

from torch.nn.functional import cross_entropy
from transformers import AutoModel, AutoTokenizer, DataCollatorWithPadding, Trainer, TrainingArguments

import adapter_export as ae

folder, output = map(Path, sys.argv[1:])
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModel.from_pretrained(folder, dtype="float32")
labels = ["bad", "good"]
reviews = [("a dull and empty film", 0), ("warm, funny, finely acted", 1), ("what a waste", 0), ("a real joy", 1)]
rows = [{**tokenizer(text), "label": label} for text, label in reviews * 8]

# %% The base as it will be deployed: the same weights as the model that is trained.
base = ae.capture(model, output / "model.pt", example_inputs=tokenizer(["one", "two"], return_tensors="pt"))

# %% The adapter acts in the model, which runs as usual; all else in it is frozen.
with ae.attach(model, kind="houlsby", bottleneck=16, labels=labels) as adapter:
    Trainer(
        model,
        TrainingArguments(output / "runs", num_train_epochs=5, learning_rate=1e-3, remove_unused_columns=False),
        train_dataset=rows,
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_loss_func=lambda outputs, classes, **_: cross_entropy(outputs.logits, classes),
    ).train()
    adapter.save(output / "reviews")

# %% One graph, checked against the model.
bundle = ae.build(base, [output / "reviews"], output / "bundle")
ae.check(bundle, against=base).raise_for_failure()
