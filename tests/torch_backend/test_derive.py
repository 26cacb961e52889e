"""Bases with some of the layers of others, or with other weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

import pytest
import torch
import transformers as hf
from small_bases import SIZE, TextBase
from small_task import sites_of
from torch import nn

from adapter_export.errors import BaseModelError
from adapter_export.torch_backend.base.derive import layers_of, with_layers, with_weights
from adapter_export.torch_backend.base.torch_base import TorchBase, base_of, load_base, write_base

FOUR = {**SIZE, "num_hidden_layers": 4, "vocab_size": 50, "max_position_embeddings": 40}
MASK = torch.tensor([[1] * 7, [1] * 5 + [0] * 2])
ROWS = {"input_ids": torch.arange(14).reshape(2, 7) + 3, "attention_mask": MASK}
T5 = {"d_model": 16, "num_layers": 4, "num_heads": 2, "d_ff": 32, "d_kv": 8, "vocab_size": 50}


def random(module: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.2 + (parameter if parameter.dim() == 1 else 0.0))
    return module.eval()


MODELS: Mapping[str, tuple[Callable[[], nn.Module], str]] = {
    "norm behind": (lambda: hf.BertModel(hf.BertConfig(**FOUR)), "encoder.layer"),
    "norm before": (lambda: hf.LlamaModel(hf.LlamaConfig(**FOUR, num_key_value_heads=2, use_cache=False)), "layers"),
    "biases made in the first layer": (lambda: hf.T5EncoderModel(hf.T5Config(**T5)), "encoder.block"),
}


@cache
def base_with(name: str) -> TorchBase:
    return base_of(module_with(name), ROWS)


def module_with(name: str) -> TextBase:
    return random(TextBase(MODELS[name][0]()))


@pytest.mark.parametrize("name", MODELS)
def test_reduced_base_computes_as_the_model_without_those_layers(name: str, tmp_path: Path) -> None:
    module, whole, layers = module_with(name), base_with(name), MODELS[name][1]
    made = with_layers(whole, sites_of(whole), [0, 2])
    owner = module.get_submodule(f"model.{layers.rpartition('.')[0]}".rstrip("."))
    kept = module.get_submodule(f"model.{layers}")
    setattr(owner, layers.rpartition(".")[2], nn.ModuleList([kept[0], kept[2]]))
    module.model.config.num_hidden_layers = 2
    with torch.no_grad():
        torch.testing.assert_close(made.run(ROWS)["output_0"], module(**ROWS))
    write_base(made, tmp_path / "model.pt")
    again = load_base(tmp_path / "model.pt")
    assert again.fingerprint == made.fingerprint != whole.fingerprint
    assert layers_of(sites_of(again)) == [0, 1]
    assert not any(f"{layers}.1." in name for name in again.program.state_dict)


class Widening(nn.Module):
    """Two blocks, the second of which reads 8 features and returns 16."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8))
        self.second = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16))
        self.shortcut, self.last = nn.Linear(8, 16), nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 16))

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        one = values + self.first(values)
        two = self.shortcut(one) + self.second(one)
        return two + self.last(two)


def test_a_layer_of_another_width_stays() -> None:
    base = base_of(random(Widening()), {"values": torch.randn(2, 5, 8)}, {"values": {0: "batch", 1: "tokens"}})
    with pytest.raises(BaseModelError, match="layer 0 of this base cannot be dropped"):
        with_layers(base, sites_of(base), [1, 2])


def test_other_weights_make_another_base() -> None:
    base = base_with("norm behind")
    name = "model.encoder.layer.3.output.dense.weight"
    before = base.program.state_dict[name].clone()
    made = with_weights(base, {name: torch.zeros_like(before)})
    assert made.fingerprint != base.fingerprint
    assert not torch.equal(made.run(ROWS)["output_0"], base.run(ROWS)["output_0"])
    assert torch.equal(base.program.state_dict[name], before)
