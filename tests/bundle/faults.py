"""The corpus of faults, and of bundles that are right: `make faults`, or `python tests/bundle/faults.py --help`.

On three bases, a decoder, an encoder and a vision model, every kind of fault of `check --self-test` is planted at other
places seed by seed; then bundles with adapters of every kind, with weights of several sizes, have to pass.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import torch

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS / "support")]

from random_kinds import random_of_kind  # noqa: E402 tests find their helpers by this path
from small_media import make_vit_folder  # noqa: E402
from transformers import BertConfig, BertModel, GPT2Config, GPT2Model  # noqa: E402

import adapter_export as ae  # noqa: E402
from adapter_export.graph.adapter import Adapter  # noqa: E402
from adapter_export.graph.kinds import KINDS  # noqa: E402

STDS = (0.02, 0.05, 0.1, 0.2, 0.5)
SMALL = ("houlsby", "pfeiffer", "lora")
"""The adapters of the bundle in which faults are planted: two that share slots, and one at other sites."""


def bases(folder: Path, names: list[str]) -> Iterator[tuple[str, ae.Base]]:
    """Capture small bases; their weights have a standard deviation of 0.2."""
    torch.manual_seed(0)
    ids = {name: torch.ones(2, 7, dtype=torch.int64) for name in ("input_ids", "attention_mask")}
    for name in names:
        path = folder / f"{name}.pt"
        if name == "decoder":
            sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 96, "use_cache": False}
            module = GPT2Model(GPT2Config(vocab_size=99, initializer_range=0.2, **sizes))
            yield name, ae.capture(module, path, example_inputs=ids)
        elif name == "encoder":
            sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
            module = BertModel(BertConfig(vocab_size=99, initializer_range=0.2, **sizes))
            yield name, ae.capture(module, path, example_inputs=ids)
        else:
            yield name, ae.capture(make_vit_folder(folder / "hf"), path)


def adapter_of(base: ae.Base, kind: str, std: float, seed: int) -> Adapter:
    """Make an adapter of a kind with a head; of all its tensors those around 0 have the standard deviation."""
    made = KINDS[kind]()
    made = made.with_widths(b=4) if "b" in made.components[0].widths else made
    name = kind.replace("+", "p")
    labels = ("a", "b", "c") if base.media is None else ()  # a head would say that it reads texts
    adapter = random_of_kind(name, made, base.sites.map, base.fingerprint, labels=labels, seed=seed)
    scaled = {
        key: tensor if key.endswith(".scaling.weight") else tensor * tensor.dtype.type(std / 0.2)
        for key, tensor in adapter.weights.items()
    }
    adapter.weights.clear()
    adapter.weights.update(scaled)
    return adapter


def plant(name: str, base: ae.Base, folder: Path, seeds: int) -> Counter[str]:
    """Plant every kind of fault at some places, and print those that were not located."""
    adapters = [adapter_of(base, kind, 0.2, seed) for seed, kind in enumerate(SMALL)]
    bundle, counts = ae.build(base, adapters, folder / f"{name}-bundle"), Counter[str]()
    for seed in range(seeds):
        for fault in ae.self_test(bundle, against=base, seed=1000 * seed).faults:
            counts[fault.status] += 1
            if fault.status in ("missed", "found", "without effect"):
                print(f"{name}, seed {seed}: {fault.status}: {fault.name} {fault.places}: {fault.detail}", flush=True)
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bases", default="decoder,encoder,vision")
    parser.add_argument("--seeds", type=int, default=1, help="how often each kind is planted in each base")
    parser.add_argument("--right", type=int, default=200, help="how many right bundles are checked")
    options = parser.parse_args()
    counts, refused = Counter[str](), list[str]()
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root)
        there = list(bases(folder, options.bases.split(",")))
        for name, base in there if options.seeds else ():
            of_base = plant(name, base, folder, options.seeds)
            print(f"{name}: {dict(of_base)}", flush=True)
            counts += of_base
        right = list(product(STDS, KINDS, there, range(2)))[: options.right]
        for at, (std, kind, (name, base), seed) in enumerate(right):
            bundle = ae.build(base, [adapter_of(base, kind, std, seed)], folder / f"right{at}", flavours=["slots"])
            report = ae.check(bundle, against=base, quick=at % 10 > 0)  # every tenth with all shapes and words
            if not report.passed:
                refused.append(f"{name}, {kind}, std {std}, seed {seed}")
                print(f"refused: {refused[-1]}", flush=True)
    planted = counts.total() - counts["not applicable"]
    print(f"planted {planted}: {dict(counts)}; right bundles refused: {len(refused)} of {len(right)}")
    sys.exit(bool(counts["missed"] or refused))


if __name__ == "__main__":
    main()
