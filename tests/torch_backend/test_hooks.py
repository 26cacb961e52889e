"""Adapters attached by hooks to a user's module: the right sites, the user's loop, and an unchanged module."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_encoder
import torch
from small_encoder import WIDTH, Encoder
from small_models import traced_once
from small_task import with_random_weights
from toolchain import skip_or_fail
from torch import Tensor, nn
from transformers import (
    AlbertConfig,
    AlbertModel,
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2Model,
    LlamaConfig,
    LlamaModel,
    Trainer,
    TrainingArguments,
)

import adapter_export as ae
from adapter_export.errors import AdapterError, NoSitesError, TrainingError, UsageError
from adapter_export.format.adapter_files import read_adapter
from adapter_export.graph.adapter import Adapter
from adapter_export.graph.heads import make_head
from adapter_export.graph.kinds import KINDS, BottleneckOptions
from adapter_export.sites.site import Site, SiteMap
from adapter_export.torch_backend import hooks
from adapter_export.torch_backend.attach import attach
from adapter_export.torch_backend.base.example_inputs import obvious_inputs
from adapter_export.torch_backend.base.torch_base import TorchBase, load_base, save_base
from adapter_export.torch_backend.hooks import attach_to_module
from adapter_export.torch_backend.torch_runner import TorchRunner
from adapter_export.training.loop.init_adapter import init_adapter

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
MODELS: dict[str, Callable[[], nn.Module]] = {
    "bert": lambda: BertModel(BertConfig(vocab_size=99, **SIZES)),
    "albert": lambda: AlbertModel(AlbertConfig(vocab_size=99, embedding_size=16, **SIZES)),
    "gpt2": lambda: GPT2Model(GPT2Config(vocab_size=99, n_embd=32, n_layer=2, n_head=4)),
    "llama": lambda: LlamaModel(LlamaConfig(vocab_size=99, **SIZES)),
}


def model_of(name: str) -> nn.Module:
    """Return a small model whose weights have a standard deviation of 0.2."""
    torch.manual_seed(0)
    model = MODELS[name]()
    with torch.no_grad():
        for tensor in model.parameters():
            if tensor.ndim > 1:
                tensor.normal_(0, 0.2)
    return model


_models = cache(model_of)


def shared_model(name: str) -> nn.Module:
    """Return the same model, shared by all tests that leave it unchanged."""
    return _models(name).eval()


@pytest.fixture(scope="module", autouse=True)
def _traced_once() -> Iterator[None]:
    """Trace each model once, for any number of adapters attached one after the other."""
    with traced_once():
        yield


def made(
    kind: str = "houlsby", options: BottleneckOptions | None = None, labels: tuple[str, ...] | None = ("no", "yes")
) -> Callable[[SiteMap, str], Adapter]:
    """Make an adapter with random weights."""

    def make(sites: SiteMap, base: str) -> Adapter:
        made = KINDS[kind](options)
        made = made.with_widths(b=4) if kind in ("houlsby", "seq_bn", "parallel") else made
        head = None if labels is None else make_head(width=sites.width, labels=labels)
        fresh = init_adapter(made, sites, name="a", base=base, head=head)
        return with_random_weights(fresh)

    return make


def inputs_of(seed: int = 1) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.ones(3, 9, dtype=torch.long)
    mask[-1, 4:] = 0
    return {"input_ids": torch.randint(1, 99, (3, 9), generator=generator), "attention_mask": mask}


def captured(model: nn.Module, folder: Path) -> TorchBase:
    """Return a model as a saved base."""
    found = obvious_inputs(model)
    assert found is not None
    save_base(model, found[0], folder / "model.pt", axes=found[1])
    return load_base(folder / "model.pt")


@pytest.fixture(scope="module")
def base_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], TorchBase]:
    """Return the captured base of a model, shared by all its adapters."""
    return cache(lambda name: captured(model_of(name).eval(), tmp_path_factory.mktemp(name)))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *(("bert", kind) for kind in ("houlsby", "seq_bn", "parallel", "lora", "ia3")),
        *(("albert", "houlsby"), ("gpt2", "lora"), ("gpt2", "parallel"), ("llama", "seq_bn")),
    ],
)
def test_adapter_saved_from_a_module_matches_in_the_base(
    name: str, kind: str, base_of: Callable[[str], TorchBase], tmp_path: Path
) -> None:
    model = shared_model(name)
    given = inputs_of()
    with torch.no_grad():
        plain = model(**given).last_hidden_state
        with attach_to_module(model, made(kind)) as adapter:
            output = model(**given)
    adapter.save(tmp_path / "a")
    adapter.detach()
    base = base_of(name)
    names = [record.name for record in base.inputs]
    arrays = {key: given.get(key, torch.zeros_like(given["input_ids"])).numpy() for key in names}
    expected = TorchRunner(base).run(arrays, read_adapter(tmp_path / "a"))
    moved = (output.last_hidden_state - plain).abs().max()
    assert moved > 0.05, "the adapter must have an effect"
    largest = np.abs(expected["last_hidden_state"]).max()
    np.testing.assert_allclose(output.last_hidden_state, expected["last_hidden_state"], atol=1e-5 * largest, rtol=0)
    np.testing.assert_allclose(output.logits, expected["logits"], atol=1e-5 * np.abs(expected["logits"]).max(), rtol=0)


def test_trainer_of_transformers_trains_an_attached_adapter(tmp_path: Path) -> None:
    if importlib.util.find_spec("accelerate") is None:
        skip_or_fail("accelerate is missing, which the Trainer needs: run `make setup`, or `pip install accelerate`")
    model = model_of("bert")
    rows = [{key: value[0] for key, value in inputs_of(seed).items()} | {"labels": seed % 2} for seed in range(16)]
    settings = TrainingArguments(
        str(tmp_path / "runs"), max_steps=4, learning_rate=0.01, remove_unused_columns=False, report_to="none"
    )

    def loss(outputs: Any, labels: Tensor, num_items_in_batch: object = None) -> Tensor:
        return nn.functional.cross_entropy(outputs.logits, labels)

    with attach_to_module(model, made()) as adapter:
        before = {name: tensor.detach().clone() for name, tensor in adapter.tensors().items()}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            Trainer(model, settings, train_dataset=rows, compute_loss_func=loss).train()
        assert all((tensor - before[name]).abs().max() > 0 for name, tensor in adapter.tensors().items())
        with torch.no_grad():
            output = model.eval()(**inputs_of())
    adapter.save(tmp_path / "a")
    adapter.detach()
    runner = TorchRunner(captured(model, tmp_path))
    arrays = {key: value.numpy() for key, value in inputs_of().items()}
    arrays["token_type_ids"] = np.zeros_like(arrays["input_ids"])
    expected = runner.run(arrays, read_adapter(tmp_path / "a"))
    base = ae.open_base(tmp_path / "model.pt")
    bundle = ae.build(base, [tmp_path / "a"], tmp_path / "bundle", variants=("slots",))
    found = bundle.session().run(arrays, "a")
    for name in ("last_hidden_state", "logits"):
        limit = 1e-5 * np.abs(expected[name]).max()
        np.testing.assert_allclose(output[name], expected[name], atol=limit, rtol=0)
        np.testing.assert_allclose(found[name], expected[name], atol=limit, rtol=0)


def test_module_is_restored_at_the_end_of_the_block() -> None:
    model = model_of("bert")
    frozen = model.embeddings.word_embeddings.weight.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    hooks = [len(part._forward_hooks) + len(part._forward_pre_hooks) for part in model.modules()]
    with attach_to_module(model, made()) as adapter:
        optimizer = torch.optim.SGD(adapter.parameters(), lr=0.1)
        model.train()
        model(**inputs_of()).logits.square().sum().backward()
        optimizer.step()
        assert {id(one) for one in model.parameters() if one.requires_grad} == set(map(id, adapter.parameters()))
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert [name for name, tensor in model.named_parameters() if not tensor.requires_grad] == [
        "embeddings.word_embeddings.weight"
    ]
    assert not frozen.requires_grad
    assert [len(part._forward_hooks) + len(part._forward_pre_hooks) for part in model.modules()] == hooks
    assert not hasattr(model, "adapter")


def test_dropout_of_the_module_and_of_the_adapter_act_in_training(tmp_path: Path) -> None:
    model = shared_model("bert")
    with attach_to_module(model, made("houlsby", BottleneckOptions("gelu", dropout=0.5))), torch.no_grad():
        same = [model(**inputs_of()).last_hidden_state for _ in range(2)]
        model.train()
        apart = [model(**inputs_of()).last_hidden_state for _ in range(2)]
    assert torch.equal(*same)
    assert not torch.equal(*apart)


def test_all_of_the_adapter_gets_gradients() -> None:
    model = shared_model("albert").train()
    with attach_to_module(model, made()) as adapter:
        model(**inputs_of()).logits.square().sum().backward()
        assert all(tensor.grad is not None and tensor.grad.abs().max() > 0 for tensor in adapter.parameters())
    assert all(tensor.grad is None for tensor in model.parameters())


def test_head_without_a_mask_pools_every_token() -> None:
    model = shared_model("bert")
    ids = inputs_of()["input_ids"]
    with attach_to_module(model, made()) as adapter, torch.no_grad():
        output = model(ids)
        torch.testing.assert_close(output.logits, adapter.head(output.last_hidden_state))
        torch.testing.assert_close(output.logits, model(ids, torch.ones_like(ids)).logits)


class Scaled(nn.Module):
    """Layers with a factor inside `forward`, after the output projection."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 32), nn.Linear(32, WIDTH)
        self.factor = nn.Parameter(torch.full((WIDTH,), 0.5))

    def forward(self, values: Tensor) -> Tensor:
        for _ in range(2):
            values = values + self.factor * self.down(torch.relu(self.up(self.norm(values))))
        return values


def test_a_site_inside_a_forward_is_named_with_the_way_out() -> None:
    values = {"values": torch.randn(2, 5, WIDTH)}
    axes = {"values": {0: "batch", 1: "sequence"}}
    with pytest.raises(NoSitesError, match=r"site `layers\.0\.ffn`.*inside the `forward`.*`ae.capture`") as caught:
        attach_to_module(Scaled(), made("pfeiffer"), example_inputs=values, axes=axes)
    assert "submodule" in str(caught.value)


def test_plain_modules_without_dicts_have_a_head_to_call() -> None:
    torch.manual_seed(0)
    module = Encoder().eval()
    with attach_to_module(module, made(), example_inputs=small_encoder.inputs()) as adapter, torch.no_grad():
        output = module(**small_encoder.inputs())
        torch.testing.assert_close(
            output["logits"], adapter.head(output["hidden"], small_encoder.inputs()["attention_mask"])
        )


def test_gradient_checkpointing_gives_the_same_gradients() -> None:
    found = []
    for checkpointed in (False, True):
        model = model_of("bert").eval()
        with attach_to_module(model, made()) as adapter:
            if checkpointed:
                model.activation_checkpointing_enable()
                model.train()  # required by the layers
                for part in model.modules():
                    if isinstance(part, nn.Dropout):
                        part.p = 0.0
            model(**inputs_of()).last_hidden_state.square().sum().backward()
            found.append([tensor.grad for tensor in adapter.parameters() if tensor.grad is not None])
    assert found[0]
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_a_call_more_than_was_captured_is_refused() -> None:
    model = shared_model("albert")
    with attach_to_module(model, made()), pytest.raises(TrainingError, match="gradient checkpointing"):
        model.encoder.albert_layer_groups[0].albert_layers[0].attention(torch.zeros(1, 3, 32))


def test_weights_that_changed_meanwhile_are_noticed() -> None:
    model = model_of("bert")
    with attach_to_module(model, made()) as adapter, torch.no_grad():
        model.pooler.dense.weight[0, 0] += 1
        with pytest.raises(TrainingError, match="weights of the module have changed"):
            adapter.to_adapter()


def test_a_value_taken_from_a_wrong_place_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = hooks._Boundaries.of

    def elsewhere(self: hooks._Boundaries, name: str, site: Site | None, *, replaced: bool) -> hooks.Boundary:
        return replace(
            right(self, name, site, replaced=replaced), path="encoder.layer.1.attention.output.dense", key=None
        )

    monkeypatch.setattr(hooks._Boundaries, "of", elsewhere)
    model = shared_model("bert")
    with pytest.raises(NoSitesError, match=r"`layers\.0\.ffn`.*differs from its captured graph there"):
        attach_to_module(model, made("pfeiffer"))
    assert not hasattr(model, "adapter")


def test_second_attached_adapter_is_refused() -> None:
    model = shared_model("bert")
    with attach_to_module(model, made()), pytest.raises(UsageError, match="already has an attribute `adapter`"):
        attach_to_module(model, made())


def test_inputs_that_are_not_obvious_are_asked_for() -> None:
    with pytest.raises(UsageError, match="Pass `example_inputs`"):
        attach_to_module(Scaled(), made())


def test_refused_adapters_leave_the_module_unchanged() -> None:
    model = shared_model("bert")
    other = made()

    def wider(sites: SiteMap, base: str) -> Adapter:
        return other(type(sites)(sites.sites, sites.final, sites.width + 1), base)

    with pytest.raises(AdapterError):
        attach_to_module(model, wider)
    assert not hasattr(model, "adapter")
    assert all(tensor.requires_grad for tensor in model.parameters())


def test_attach_to_a_base_works_as_a_context_manager(tmp_path: Path) -> None:
    base = small_encoder.load_encoder(tmp_path / "model.pt")
    model = attach(base, None)
    sites = model.sites
    with attach(base, made()(sites, base.fingerprint)) as adapter:
        adapter.save(tmp_path / "a", training={"loop": "own"})
    assert read_adapter(tmp_path / "a").training == {"loop": "own"}
