"""Corpus of faults and of correct bundles: `make faults`, or `python tests/bundle/faults.py --help`.

On a decoder, a vision model and MiniLM with adapters trained on real texts, every kind of fault of `check --self-test`
is planted at other places, seed by seed. Then bundles with an adapter of each kind, with weights of several sizes, must
pass. Parts can be run separately, such as `--base decoder --seeds 2 --right 0`.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from itertools import product
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "tests" / "support"), str(ROOT / "examples")]

import demo_data  # noqa: E402 the data of the demo, found by this path
from random_kinds import random_of_kind  # noqa: E402
from small_media import make_vit_folder  # noqa: E402
from transformers import BertConfig, BertModel, GPT2Config, GPT2Model  # noqa: E402

import adapter_export as ae  # noqa: E402
from adapter_export.graph.adapter import Adapter  # noqa: E402
from adapter_export.graph.kinds import KINDS  # noqa: E402
from adapter_export.reporting import Reporter  # noqa: E402

STDS = (0.02, 0.05, 0.1, 0.2, 0.5)
SMALL = ("houlsby", "pfeiffer", "lora")
"""Adapters of the bundle in which faults are planted: two that share slots, and one at other sites."""

TRAINED = {"trec": "houlsby", "sentiment": "pfeiffer"}
"""Adapters of MiniLM with their kinds; those of `make demo-full` if it has run."""

ROWS = 500
"""Texts for a short training: 300 training rows."""

FOR_PLANTING, FOR_RIGHT = ("decoder", "vision", "minilm"), ("decoder", "encoder", "vision", "minilm")


class Bases:
    """Bases, captured on first use; the small ones have weights with standard deviation 0.2."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ids = {name: torch.ones(2, 7, dtype=torch.int64) for name in ("input_ids", "attention_mask")}
        torch.manual_seed(0)

    @cached_property
    def decoder(self) -> ae.Base:
        sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 96, "use_cache": False}
        ends = {"bos_token_id": 0, "eos_token_id": 0}
        module = GPT2Model(GPT2Config(vocab_size=99, initializer_range=0.2, **sizes, **ends))
        return ae.capture(module, self.folder / "decoder.pt", example_inputs=self._ids)

    @cached_property
    def encoder(self) -> ae.Base:
        sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
        module = BertModel(BertConfig(vocab_size=99, initializer_range=0.2, **sizes))
        return ae.capture(module, self.folder / "encoder.pt", example_inputs=self._ids)

    @cached_property
    def vision(self) -> ae.Base:
        return ae.capture(make_vit_folder(self.folder / "vit"), self.folder / "vision.pt")

    @cached_property
    def minilm(self) -> ae.Base:
        path = ROOT / "demo" / "model.pt"
        return ae.open_base(path) if path.exists() else ae.capture(demo_data.base_folder(), self.folder / "minilm.pt")

    def bundle(self, name: str) -> ae.Bundle:
        """Build the bundle in which faults are planted."""
        base = getattr(self, name)
        adapters: list[Adapter] = []
        if name == "minilm":
            adapters += [self._trained(base, task) for task in TRAINED]
        else:
            adapters += [adapter_of(base, kind, 0.2, seed) for seed, kind in enumerate(SMALL)]
        return ae.build(base, adapters, self.folder / f"{name}-bundle")

    def _trained(self, base: ae.Base, task: str) -> Adapter:
        there = ROOT / "demo" / "full" / task
        if there.exists():
            return ae.load_adapter(there)
        rows = {"trec": demo_data.trec, "sentiment": demo_data.sentiment}[task]()
        data = self.folder / task
        demo_data.write_splits(rows[:ROWS], data)
        return ae.train(
            base,
            data / "train.tsv",
            self.folder / f"{task}-adapter",
            validation_data=data / "validation.tsv",
            kind=TRAINED[task],
            name=task,
            epochs=1,
        )


def adapter_of(base: ae.Base, kind: str, std: float, seed: int) -> Adapter:
    """Make an adapter of a kind with a head; tensors around 0 have the given standard deviation."""
    made = KINDS[kind]()
    made = made.with_widths(b=4) if "b" in made.components[0].widths else made
    name = kind.replace("+", "p")
    labels = ("a", "b", "c") if base.media is None else ()  # a head's task would claim texts as its input
    adapter = random_of_kind(name, made, base.sites.map, base.fingerprint, labels=labels, seed=seed)
    scaled = {
        key: tensor if key.endswith(".scaling.weight") else tensor * tensor.dtype.type(std / 0.2)
        for key, tensor in adapter.weights.items()
    }
    adapter.weights.clear()
    adapter.weights.update(scaled)
    return adapter


class Printed(Reporter):
    """Prints each step to a terminal."""

    def __init__(self, name: str) -> None:
        self.name = name

    def step(self, label: str, done: int = 0, total: int | None = None) -> None:
        if sys.stderr.isatty():
            print(self.name, done, total, label, flush=True)


def plant(bases: Bases, name: str, seeds: Sequence[int], kinds: Sequence[str]) -> Counter[str]:
    """Plant kinds of fault, by default all, at other places for each seed; print those that were not located."""
    bundle, counts = bases.bundle(name), Counter[str]()
    for seed in seeds:
        for fault in ae.self_test(
            bundle,
            against=getattr(bases, name),
            kinds=kinds,
            seed=1000 * seed,
            reporter=Printed(f"{name}, seed {seed}"),
        ).faults:
            counts[fault.status] += 1
            if fault.status in ("missed", "found", "without effect"):
                print(f"{name}, seed {seed}: {fault.status}: {fault.name} {fault.places}: {fault.detail}", flush=True)
    return counts


def right(names: Sequence[str]) -> list[tuple[float, str, str]]:
    """Return standard deviations, kinds and bases of correct bundles: all combinations, but few of MiniLM."""
    small = list(product(STDS, KINDS, [name for name in names if name != "minilm"]))
    return small + [(std, kind, "minilm") for std, kind in zip(STDS, KINDS, strict=False) if "minilm" in names]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", action="append", choices=FOR_RIGHT, help="one base alone; may be repeated")
    parser.add_argument("--seeds", type=int, default=1, help="how often each kind is planted in each base")
    parser.add_argument("--first", type=int, default=0, metavar="SEED", help="the first seed")
    parser.add_argument("--kind", action="append", default=[], help="one kind of fault alone; may be repeated")
    parser.add_argument("--right", type=int, default=200, help="how many right bundles are checked")
    options = parser.parse_args()
    counts, refused = Counter[str](), list[str]()
    with tempfile.TemporaryDirectory() as root:
        bases = Bases(Path(root))
        for name in options.base or FOR_PLANTING if options.seeds else ():
            of_base = plant(bases, name, range(options.first, options.first + options.seeds), options.kind)
            print(f"{name}: {summary(of_base)}", flush=True)
            counts += of_base
        those = right(options.base or FOR_RIGHT)[: options.right]
        for at, (std, kind, name) in enumerate(those):
            base = getattr(bases, name)
            bundle = ae.build(base, [adapter_of(base, kind, std, at)], Path(root) / f"right{at}", variants=["slots"])
            report = ae.check(bundle, against=base, quick=at % 10 > 0)  # every tenth with all shapes and words
            if not report.passed:
                refused.append(f"{name}, {kind}, std {std}, seed {at}")
                wrong = [f"{owed.where}: {owed.detail}" for owed in report.findings if owed.status == "failed"]
                print(f"refused: {refused[-1]}", *wrong[:5], sep="\n  ", flush=True)
            shutil.rmtree(bundle.folder)
            if at % 10 == 9:
                print(f"{at + 1} of {len(those)} right bundles, {len(refused)} refused", flush=True)
    print(f"{summary(counts)}; right bundles refused: {len(refused)} of {len(those)}")
    sys.exit(bool(counts["missed"] or counts["found"] or refused))


def summary(counts: Counter[str]) -> str:
    found = counts["located"] + counts["found"]
    planted = counts.total() - counts["not applicable"]
    return f"planted {planted}, found {found}, located {counts['located']}, without effect {counts['without effect']}"


if __name__ == "__main__":
    main()
