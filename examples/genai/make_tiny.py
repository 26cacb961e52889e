"""Make a tiny Llama with random weights, the folder that onnxruntime-genai's builder makes of it, and two adapters.

    python examples/genai/make_tiny.py work [--precision int4]

Nothing is downloaded. `work/llama` is the Hugging Face folder, `work/model` the folder of onnxruntime-genai, `work/a`
and `work/b` are adapters with random weights, which generate different nonsense.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import adapter_export as ae
from adapter_export.format.adapter_files import write_adapter
from adapter_export.graph.adapter import Adapter
from adapter_export.graph.kinds import BottleneckOptions, Kind, houlsby, pfeiffer
from adapter_export.sites.site import SiteMap

BUILDER = "onnxruntime_genai.models.builder"
WORDS = 96
END = WORDS - 1
WIDTH = 64


def save_llama(folder: Path) -> None:
    """Save a Llama of 2 layers and width 64, and a tokenizer."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=WORDS,
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        bos_token_id=1,
        eos_token_id=END,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.normal_(0, 0.15)
        model.lm_head.weight[END] = 0  # so that no text ends by chance
    model.save_pretrained(folder)
    save_tokenizer(folder)


def save_tokenizer(folder: Path) -> None:
    """Save a tokenizer with the words `w0` to `w95`."""
    words = Tokenizer(models.WordLevel({f"w{index}": index for index in range(WORDS)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="w1", eos_token=f"w{END}", pad_token="w0", unk_token="w0"
    ).save_pretrained(folder)


def run_builder(llama: Path, folder: Path, precision: str) -> None:
    """Run onnxruntime-genai's model builder: `fp32` or `int4`.

    At the default accuracy level of int4, activations are rounded to 8 bits, and two correct programs differ by much
    more than float32 rounds. At level 1 they do not.
    """
    command = [sys.executable, "-m", BUILDER, *builder_options(llama, folder, precision)]
    subprocess.run(command, check=True, capture_output=True)


def builder_options(llama: Path, folder: Path, precision: str) -> list[str]:
    """Return the arguments of the builder."""
    level = ["--extra_options", "accuracy_level=1"] if precision == "int4" else []
    return ["-m", str(llama), "-i", str(llama), "-o", str(folder), "-p", precision, "-e", "cpu", *level]


def random_adapter(name: str, kind: Kind, bottleneck: int, sites: SiteMap, base: str) -> Adapter:
    """An adapter with weights of standard deviation 0.2 at the sites of its kind."""
    rng = np.random.default_rng([*name.encode()])
    placements = kind.with_widths(b=bottleneck).placements(sites)
    weights = {
        f"{site}.{parameter}": (rng.standard_normal(shape) * 0.2).astype(np.float32)
        for site, placement in placements.items()
        for parameter, shape in kind.graph.parameter_shapes(placement.widths).items()
    }
    return Adapter(name, kind.name, base, kind.graphs, placements, weights)


def random_adapters(sites: SiteMap, base: str) -> list[Adapter]:
    """Two adapters of different kinds and widths for one base, named by its fingerprint."""
    return [
        random_adapter("a", houlsby(BottleneckOptions("gelu")), 8, sites, base),
        random_adapter("b", pfeiffer(BottleneckOptions("relu")), 16, sites, base),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--precision", choices=("fp32", "int4"), default="fp32")
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    save_llama(folder / "llama")
    run_builder(folder / "llama", folder / "model", arguments.precision)
    base = ae.open_base(folder / "model")
    for adapter in random_adapters(base.sites.map, base.fingerprint):
        write_adapter(adapter, folder / adapter.name, force=True)
    print(f"wrote {folder}/llama, {folder}/model, {folder}/a and {folder}/b")


if __name__ == "__main__":
    main()
