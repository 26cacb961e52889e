"""Train an adapter with the `Trainer` of transformers, which saves it and builds and checks a bundle of it.

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

# %% The base as it will be deployed: the same weights as the model that is trained, and its tokenizer.
base = ae.capture(folder, output / "model.pt")

# %% The adapter acts in the model, which runs as usual; the callback saves it and builds the bundle.
with ae.attach(model, kind="houlsby", bottleneck=16, labels=labels) as adapter:
    saving = ae.trainer_callback(adapter, output / "reviews", base=base, bundle=output / "bundle")
    best = {"eval_strategy": "epoch", "save_strategy": "epoch", "load_best_model_at_end": True, "learning_rate": 1e-3}
    Trainer(
        model,
        TrainingArguments(output / "runs", label_names=["labels"], remove_unused_columns=False, **best),
        train_dataset=rows[:24],
        eval_dataset=rows[24:],
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_loss_func=lambda outputs, classes, **_: cross_entropy(outputs.logits, classes),
        callbacks=[saving],
    ).train()
ae.check(output / "bundle", against=base).raise_for_failure()
