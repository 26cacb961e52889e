"""Train an adapter only with NumPy and the backward pass of the reference, and pack it: no framework is involved.

    python examples/numpy_training.py base.onnx TOKENIZER_FOLDER train.tsv tone

The table has the columns `text` and `label`. The adapter replaces the last block's output by `y + U(f(D y))`, so that
the base computes `y` once per text, in ONNX Runtime. The rest is NumPy: the adapter, the mean over the tokens, the
classes, the loss, and the backward pass.
"""

from __future__ import annotations

import argparse
import csv
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnxruntime as ort

from adapter_export.bases.base_view import BaseView
from adapter_export.errors import UsageError
from adapter_export.format.adapter_files import write_adapter
from adapter_export.graph.initialise import initialise
from adapter_export.graph.kinds import KINDS, Kind, classification_head
from adapter_export.numerics.evaluate_adapter import evaluate, gradients
from adapter_export.onnx_backend.base.onnx_base import OnnxBase, open_onnx
from adapter_export.plugins.formats.importers.plain_tensors import pack
from adapter_export.sites.site import Site
from adapter_export.text import Tokenizer

BOTTLENECK, STEPS, LEARNING_RATE, MAX_TOKENS = 8, 400, 0.005, 64

Named = dict[str, np.ndarray]


@dataclass
class Adam:
    """Adam without weight decay (Kingma & Ba 2015, algorithm 1)."""

    rate: float = LEARNING_RATE
    step: int = 0
    mean: Named = field(default_factory=dict)
    square: Named = field(default_factory=dict)

    def update(self, parameters: Named, of_parameters: Named) -> None:
        self.step += 1
        for name, gradient in of_parameters.items():
            self.mean[name] = 0.9 * self.mean.get(name, 0) + 0.1 * gradient
            self.square[name] = 0.999 * self.square.get(name, 0) + 0.001 * gradient**2
            mean, square = self.mean[name] / (1 - 0.9**self.step), self.square[name] / (1 - 0.999**self.step)
            parameters[name] = parameters[name] - self.rate * mean / (np.sqrt(square) + 1e-8)


class Model:
    """An adapter at one site and a head behind it: forward, and backward by the reference's rules."""

    def __init__(self, kind: Kind, site: Site, classes: int, seed: int = 0) -> None:
        rng, part = np.random.default_rng(seed), kind.components[0]
        self.adapter, self.head, self.site = part.graph, classification_head("mean"), site
        self.of_adapter: Named = dict(initialise(self.adapter, part.widths_at(site), kind.scheme, rng))
        self.of_head: Named = dict(initialise(self.head, {"d": site.width, "classes": classes}, kind.scheme, rng))

    def logits(self, y: np.ndarray, mask: np.ndarray) -> np.ndarray:
        hidden = evaluate(self.adapter, {"y": y}, self.of_adapter)
        return evaluate(self.head, {"hidden": hidden, "mask": mask}, self.of_head)

    def backward(self, y: np.ndarray, mask: np.ndarray, of_logits: np.ndarray) -> tuple[Named, Named]:
        hidden = evaluate(self.adapter, {"y": y}, self.of_adapter)
        of_values, of_head = gradients(self.head, {"hidden": hidden, "mask": mask}, self.of_head, of_logits)
        _, of_adapter = gradients(self.adapter, {"y": y}, self.of_adapter, of_values["hidden"])
        return of_adapter, of_head

    def tensors(self) -> Named:
        """All weights by the names that `pack` expects."""
        return {f"{self.site.name}.{name}": tensor for name, tensor in self.of_adapter.items()} | {
            f"head.{name}": tensor for name, tensor in self.of_head.items()
        }


def cross_entropy(logits: np.ndarray, classes: np.ndarray) -> tuple[float, np.ndarray]:
    """The mean of −log p of the right class, and its gradient by the logits."""
    shifted = logits - logits.max(-1, keepdims=True)
    shares = np.exp(shifted) / np.exp(shifted).sum(-1, keepdims=True)
    right = np.arange(len(classes)), classes
    of_logits = shares.copy()
    of_logits[right] -= 1
    return float(-np.log(shares[right]).mean()), of_logits / len(classes)


def last_block(base: OnnxBase) -> Site:
    """The last sublayer, if its block's output is the final hidden state: then nothing of the base comes behind it."""
    site = base.sites.sublayers[-1]
    if site.y != base.sites.final:
        raise UsageError(
            "the base has operations after its last block, such as a final norm",
            where=base.path,
            fix="take a base whose last block ends with its norm, or train with `adapter-export train`",
        )
    return site


def hidden_states(base: OnnxBase, inputs: Named) -> np.ndarray:
    """Compute the base's final hidden state."""
    session = ort.InferenceSession(base.path, providers=["CPUExecutionProvider"])
    (hidden,) = session.run([base.sites.final], {name: inputs[name] for name in inputs})
    return np.asarray(hidden)


def read_table(path: Path) -> tuple[list[str], list[str]]:
    with path.open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines, delimiter="\t"))
    return [row["text"] for row in rows], [row["label"] for row in rows]


def train(base: OnnxBase, tokenizer: Tokenizer, texts: list[str], answers: list[str]) -> tuple[Model, list[str], Kind]:
    """Train on all texts at once; the loss is printed every ten steps."""
    labels, site = sorted(set(answers)), last_block(base)
    classes = np.array([labels.index(answer) for answer in answers])
    inputs = dict(tokenizer.batch(texts, [record.name for record in base.inputs]))
    y, mask = hidden_states(base, inputs), inputs[base.mask or ""]
    others = tuple(range(site.layer or 0))
    kind = KINDS["adapter_plus"].changed(scaling=1.0, drop_path=0.0, bottleneck=BOTTLENECK, leave_out=others)
    model, adam, head_adam = Model(kind, site, len(labels)), Adam(), Adam()
    for step in range(STEPS):
        loss, of_logits = cross_entropy(model.logits(y, mask), classes)
        if step % 10 == 0:
            print(f"step {step:3d}  loss {loss:.4f}")
        of_adapter, of_head = model.backward(y, mask, of_logits)
        adam.update(model.of_adapter, of_adapter)
        head_adam.update(model.of_head, of_head)
    right = (model.logits(y, mask).argmax(-1) == classes).mean()
    print(f"{right:.1%} of the training texts are classified right")
    return model, labels, kind


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("base", "tokenizer", "table", "output"):
        parser.add_argument(name, type=Path)
    arguments = parser.parse_args()
    base = open_onnx(arguments.base)
    tokenizer = Tokenizer.from_folder(arguments.tokenizer, MAX_TOKENS)
    model, labels, kind = train(base, tokenizer, *read_table(arguments.table))
    name = arguments.output.name
    packed = pack(model.tensors(), kind, BaseView(base.fingerprint, base.sites), name=name, labels=tuple(labels))
    write_adapter(packed.adapter, arguments.output)
    print(
        f"wrote {arguments.output}. Next: adapter-export build {arguments.base} --adapters {arguments.output} -o bundle"
    )


if __name__ == "__main__":
    main()
