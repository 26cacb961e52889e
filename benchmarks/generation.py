"""Texts of several adapters: all in one batch of a bank, beside one adapter at a time.

    python benchmarks/generation.py
    python benchmarks/generation.py --width 1024 --layers 12 --rows 16

The model is a Llama with random weights; each prompt has a LoRA of its own. Times are of the calling thread's
processor, and all ways write the same tokens.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from kit.machine import description, load_average, warn_if_busy
from kit.tables import Table
from kit.timing import Pace, clock_of, interleaved, milliseconds, ratio
from transformers import LlamaConfig, LlamaForCausalLM

import adapter_export as ae
from adapter_export.graph.adapter import Adapter
from adapter_export.graph.kinds import LoraOptions, lora
from adapter_export.runtime import Bundle, Decoding

WORDS, TOKENS, SEED = 8192, 32, 0


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--rows", type=int, default=8, help="prompts, each with an adapter of its own")
    parser.add_argument("--rounds", type=int, default=10)
    arguments = parser.parse_args()
    load = load_average()
    warn_if_busy(load)
    print(description(load, "cpu"), end="\n\n")
    with tempfile.TemporaryDirectory() as folder:
        save_llama(Path(folder) / "llama", arguments.width, arguments.layers)
        bundle = with_adapters(Path(folder), arguments.rows)
        print(_measured(bundle, arguments.rows, arguments.rounds).markdown())


def _measured(folder: Path, rows: int, rounds: int) -> Table:
    session = Bundle.open(folder).session(threads=1)
    prompts = np.random.default_rng(SEED).integers(2, WORDS, (rows, 16)).tolist()
    names, decoding = list(session.adapters), Decoding(TOKENS)

    def one_at_a_time() -> list[list[int]]:
        return [session.generate([row], name, decoding=decoding)[0] for row, name in zip(prompts, names, strict=True)]

    def bank() -> list[list[int]]:
        return session.generate(prompts, adapters=names, decoding=decoding)

    def one_for_all() -> list[list[int]]:
        return session.generate(prompts, names[0], decoding=decoding)

    assert bank() == one_at_a_time()
    ways = {"one": one_at_a_time, "bank": bank, "all": one_for_all}
    times = interleaved(ways, Pace(rounds, 120.0, clock_of("cpu", 1)))
    words = {
        "one": "one prompt after the other, each with its adapter",
        "bank": "all prompts in one batch, each with its adapter",
        "all": "all prompts in one batch, with one adapter",
    }
    lines = [[words[way], milliseconds(times, way), ratio(times, way, "one")] for way in ways]
    note = f"{rows} prompts of 16 tokens, {TOKENS} tokens written behind each, on one thread."
    return Table("Texts of several adapters", ["way", "ms", "time over the first"], lines, note)


def save_llama(folder: Path, width: int, layers: int, words: int = WORDS, end: int | None = None) -> None:
    """Save a Llama with random weights; `end` ends its texts, and is never the most likely token."""
    torch.manual_seed(SEED)
    config = LlamaConfig(
        vocab_size=words,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=256,
    )
    if end is not None:
        config.eos_token_id = end
    model = LlamaForCausalLM(config)
    if end is not None:
        with torch.no_grad():
            model.lm_head.weight[end] = 0
    model.save_pretrained(folder)


def with_adapters(folder: Path, count: int) -> Path:
    """Build a bundle with slots and a bank of the model in `llama` and some random adapters."""
    base = ae.capture(folder / "llama", folder / "llama.pt")
    kind = lora(LoraOptions())
    placements = kind.with_widths(r=8).placements(base.sites.map)
    shapes = {
        f"{site}.{name}": shape
        for site, placement in placements.items()
        for name, shape in kind.graphs[placement.graph].parameter_shapes(placement.widths).items()
    }
    adapters = []
    for number in range(count):
        random = np.random.default_rng([SEED, number])
        weights = {name: (random.standard_normal(shape) * 0.2).astype(np.float32) for name, shape in shapes.items()}
        adapters.append(Adapter(f"a{number}", "lora", base.fingerprint, kind.graphs, placements, weights))
    ae.build(base, adapters, folder / "bundle", variants=("slots", "bank"))
    return folder / "bundle"


if __name__ == "__main__":
    main()
