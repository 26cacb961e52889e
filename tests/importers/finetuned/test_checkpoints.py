"""`import finetuned`: the logits are those of the checkpoint in transformers, and every tensor is accounted for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from heard import Heard
from merged_checkpoints import CONFIGS, RANK, STD, adapted, classifier, inputs_of, write_base, write_merged
from once import once
from safetensors.torch import load_file, save_file
from tiers import some_quick

import adapter_export as ae
from adapter_export.errors import AdapterError, OtherModulesError, ParityError, TensorError, UsageError
from adapter_export.plugins.formats.importers.finetuned.library_proof import deviation
from adapter_export.torch_backend.torch_runner import TorchRunner

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning:peft")

WEIGHTS = "model.safetensors"


def import_it(place: Path, base: Path | ae.Base | None = None, **options: Any) -> Any:
    return ae.import_finetuned(place, base or place.parent / "base", name="a", reporter=Heard(), **options)


def outputs(base: ae.Base, adapter: ae.Adapter, inputs: dict[str, torch.Tensor]) -> np.ndarray:
    arrays = {
        record.name: np.zeros_like(inputs["input_ids"].numpy()) for record in base.inputs if "pixel" not in inputs
    }
    arrays |= {name: value.numpy() for name, value in inputs.items()}
    assert adapter.head is not None
    return TorchRunner(base.torch).run(arrays, adapter)[adapter.head.output]


def write_changed(place: Path, change: Callable[[dict[str, torch.Tensor]], object], source: Path) -> Path:
    """Copy a checkpoint, with a change of its tensors."""
    place.mkdir()
    for file in source.iterdir():
        if file.name != WEIGHTS:
            (place / file.name).write_bytes(file.read_bytes())
    tensors = load_file(source / WEIGHTS)
    change(tensors)
    save_file(tensors, place / WEIGHTS, {"format": "pt"})
    return place


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT in `base`, an archive of it in `base.pt`, and with a merged LoRA and a head in `merged`."""

    def make(folder: Path) -> None:
        write_merged(folder, "bert")
        ae.capture(folder / "base", folder / "base.pt", reporter=Heard())

    return once(tmp_path_factory, "finetuned_bert", make)


@pytest.fixture(scope="module")
def base(bert: Path) -> ae.Base:
    return ae.open_base(bert / "base.pt")


@pytest.mark.parametrize("dora", [False, pytest.param(True, marks=pytest.mark.extended)], ids=["lora", "dora"])
@pytest.mark.parametrize("name", some_quick([name for name in CONFIGS if name != "vit"], "bert"))
def test_imported_checkpoint_gives_the_logits_of_transformers(name: str, dora: bool, tmp_path: Path) -> None:
    model = write_merged(tmp_path, name, use_dora=dora)
    imported = import_it(tmp_path / "merged")
    assert imported.is_exact
    assert {layer.rank for layer in imported.layers} == {RANK}
    assert {layer.change.scale is not None for layer in imported.layers} == {dora}
    inputs = inputs_of(name)
    with torch.inference_mode():
        expected = model(**inputs).logits.numpy()
    found = outputs(ae.open_base(tmp_path / "base"), imported.adapter, inputs)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    assert imported.deviation.relative < 1e-5


@pytest.mark.extended
def test_tensors_renamed_by_transformers_are_matched(tmp_path: Path) -> None:
    """Files of ViT have the names of transformers 4."""
    model = write_merged(tmp_path, "vit")
    stored = load_file(tmp_path / "merged" / WEIGHTS)
    assert not stored.keys() <= model.state_dict().keys()
    imported = import_it(tmp_path / "merged")
    assert imported.is_exact
    assert imported.deviation.relative < 1e-5


@pytest.mark.extended
def test_sharded_checkpoints_give_the_same_adapter(bert: Path, base: ae.Base, tmp_path: Path) -> None:
    model = hf.AutoModelForSequenceClassification.from_pretrained(bert / "merged")
    model.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert not (tmp_path / "shards" / WEIGHTS).exists()
    one = import_it(bert / "merged", base)
    several = import_it(tmp_path / "shards", base)
    assert all(np.array_equal(one.adapter.weights[name], several.adapter.weights[name]) for name in one.adapter.weights)


@pytest.mark.extended
def test_bfloat16_rounding_is_not_imported_as_change(tmp_path: Path) -> None:
    """Rounding is no change, and the adapter without it is closer to the trained model than the checkpoint."""
    model = write_merged(tmp_path, "bert", torch.bfloat16)
    write_base(tmp_path, "bert")
    trained = adapted(classifier(tmp_path, "bert"), "bert").merge_and_unload()  # the same random numbers
    imported = import_it(tmp_path / "merged")
    assert imported.dtype == "bfloat16"
    assert {layer.path.rpartition(".")[2] for layer in imported.layers} == {"query", "dense"}
    assert {layer.rank for layer in imported.layers} == {RANK}
    inputs = inputs_of("bert")
    with torch.inference_mode():
        expected, rounded = trained(**inputs).logits.numpy(), model(**inputs).logits.numpy()
    found = outputs(ae.open_base(tmp_path / "base"), imported.adapter, inputs)
    assert 1e-4 < np.abs(rounded - expected).max() < 0.05 * np.abs(expected).max()
    assert np.abs(found - expected).max() < np.abs(rounded - expected).max()


def full_rank(tensors: dict[str, torch.Tensor]) -> None:
    torch.manual_seed(2)
    for name in ("query", "key"):
        weight = tensors[f"bert.encoder.layer.0.attention.self.{name}.weight"]
        weight += 0.05 * torch.randn_like(weight)


@pytest.mark.extended
def test_limited_ranks_match_singular_values_of_torch(bert: Path, base: ae.Base, tmp_path: Path) -> None:
    """Two layers have full rank: their approximations are those of torch's singular values."""
    checkpoint = write_changed(tmp_path / "full", full_rank, bert / "merged")
    with pytest.raises(AdapterError, match=r"full rank; found 2 of 9 changed layers; rank 4: .* of the norm"):
        import_it(checkpoint, base)
    imported = import_it(checkpoint, base, rank=5)
    layers = {layer.path: layer for layer in imported.layers}
    assert not imported.is_exact
    path = "encoder.layer.0.attention.self.key"
    assert {layer.exact for each, layer in layers.items() if "layer.0.attention.self" not in each} == {True}
    after = load_file(checkpoint / WEIGHTS)[f"bert.{path}.weight"]
    left, sizes, right = torch.linalg.svd(after.double() - torch.from_numpy(base.tensor(f"{path}.weight")).double())
    parameters = imported.adapter.parameters("layers.0.attention.key")
    found = (parameters["lora_A.weight"].astype(float) @ parameters["lora_B.weight"]).T
    np.testing.assert_allclose(found, left[:, :5] * sizes[:5] @ right[:5], rtol=0, atol=1e-7)
    assert layers[path].captured == pytest.approx(float(sizes[:5].norm() / sizes.norm()), rel=1e-6)
    assert imported.deviation.difference > 1e-3


@pytest.mark.extended
def test_size_limits_the_parameters(bert: Path, base: ae.Base, tmp_path: Path) -> None:
    checkpoint = write_changed(tmp_path / "full", full_rank, bert / "merged")
    for size, most in (("14kB", 14_000), ("13%", int(0.13 * 4 * base.parameters))):
        imported = import_it(checkpoint, base, size=size)
        assert 0.9 * most < 4 * imported.adapter.cost().parameters <= most
        assert not imported.is_exact
    with pytest.raises(AdapterError, match="larger than the size"):
        import_it(checkpoint, base, size="100B")
    with pytest.raises(UsageError, match=r"`size` is no size; found `5 apples`"):
        import_it(checkpoint, base, size="5 apples")


@pytest.mark.extended
def test_dense_import_is_exact_at_full_rank(bert: Path, base: ae.Base, tmp_path: Path) -> None:
    checkpoint = write_changed(tmp_path / "full", full_rank, bert / "merged")
    imported = import_it(checkpoint, base, dense=True)
    assert imported.is_exact
    assert sum(layer.whole for layer in imported.layers) == 2
    assert imported.deviation.relative < 1e-5
    with pytest.raises(UsageError, match="excludes limits"):
        import_it(checkpoint, base, dense=True, rank=4)


def vectors(tensors: dict[str, torch.Tensor]) -> None:
    """Train norms and biases: after a sum and the embeddings, of a changed layer and of another one."""
    torch.manual_seed(3)
    for path in ("embeddings.LayerNorm", "encoder.layer.1.output.LayerNorm"):
        for role in ("weight", "bias"):
            tensors[f"bert.{path}.{role}"] += STD * torch.randn(32)
    for path in ("attention.self.query", "attention.self.key", "attention.output.LayerNorm"):
        tensors[f"bert.encoder.layer.0.{path}.bias"] += STD * torch.randn(32)


@pytest.mark.extended
def test_changed_norms_and_biases_are_imported_exactly(bert: Path, base: ae.Base, tmp_path: Path) -> None:
    checkpoint = write_changed(tmp_path / "vectors", vectors, bert / "merged")
    imported = import_it(checkpoint, base)
    assert imported.is_exact
    assert imported.deviation.relative < 1e-5
    key = imported.adapter.parameters("layers.0.attention.key")
    assert not key["lora_A.weight"].any()
    assert key["lora_B.bias"].all()


def embeddings(tensors: dict[str, torch.Tensor]) -> None:
    for name in ("word_embeddings", "position_embeddings"):
        tensors[f"bert.embeddings.{name}.weight"][7] += 1


def test_changes_without_a_site_are_refused_unless_left_out(bert: Path, base: ae.Base, tmp_path: Path) -> None:
    checkpoint = write_changed(tmp_path / "embeddings", embeddings, bert / "merged")
    with pytest.raises(AdapterError) as caught:
        import_it(checkpoint, base)
    assert "`embeddings.word_embeddings.weight`: a matrix without a site" in str(caught.value)
    assert "`--leave-out word_embeddings,position_embeddings`" in caught.value.sentence("shell")
    with pytest.raises(UsageError, match="no changed tensor belongs to the module"):
        import_it(checkpoint, base, leave_out=("word_embedding",))
    imported = import_it(checkpoint, base, leave_out=("embeddings",))
    assert imported.left_out == ("embeddings.word_embeddings.weight", "embeddings.position_embeddings.weight")
    assert not imported.is_exact
    assert imported.adapter.training["imported"]["left_out"] == list(imported.left_out)


@pytest.mark.extended
def test_changed_norms_without_a_site_are_refused(tmp_path: Path) -> None:
    write_merged(tmp_path, "llama")
    checkpoint = write_changed(
        tmp_path / "norm", lambda tensors: tensors["model.norm.weight"].add_(0.1), tmp_path / "merged"
    )
    with pytest.raises(AdapterError, match=r"`norm.weight`: a norm or bias without a site"):
        import_it(checkpoint)


@pytest.mark.extended
def test_unchanged_encoder_gives_an_adapter_with_only_a_head(bert: Path, base: ae.Base, tmp_path: Path) -> None:
    def original(tensors: dict[str, torch.Tensor]) -> None:
        for name in tensors:
            known = base.tensor(name.removeprefix("bert."))
            if known is not None and "pooler" not in name:
                tensors[name] = torch.from_numpy(known).clone()

    imported = import_it(write_changed(tmp_path / "head", original, bert / "merged"), base)
    assert not imported.adapter.placements
    assert imported.adapter.task is not None
    with pytest.raises(AdapterError, match="does not differ from the base"):
        import_it(bert / "base", base)


@pytest.mark.extended
def test_unsupported_heads_are_refused(bert: Path, base: ae.Base, tmp_path: Path) -> None:
    hf.BertForMaskedLM.from_pretrained(bert / "merged").save_pretrained(tmp_path / "masked")
    with pytest.raises(AdapterError, match=r"`BertForMaskedLM` has no head that an adapter can carry"):
        import_it(tmp_path / "masked", base)


@pytest.mark.extended
def test_unused_tensors_are_noted(bert: Path, base: ae.Base, tmp_path: Path) -> None:
    checkpoint = write_changed(tmp_path / "more", lambda tensors: tensors.update(unused=torch.ones(2)), bert / "merged")
    imported = import_it(checkpoint, base)
    assert any("does not read `unused`" in note for note in imported.notes)


class TestOtherBases:
    @pytest.mark.extended
    def test_checkpoint_of_another_base_is_refused(self, bert: Path, base: ae.Base, tmp_path: Path) -> None:
        """The layers of the base in reverse order: the nearest ones are named."""

        def reverse(tensors: dict[str, torch.Tensor]) -> None:
            for name in [name for name in tensors if ".layer.0." in name]:
                other = name.replace(".layer.0.", ".layer.1.")
                tensors[name], tensors[other] = tensors[other], tensors[name]

        checkpoint = write_changed(tmp_path / "reversed", reverse, bert / "merged")
        with pytest.raises(OtherModulesError, match="was not fine-tuned from this base") as caught:
            import_it(checkpoint, base)
        assert "nearest is `encoder.layer." in str(caught.value)
        assert base.fingerprint[:19] in str(caught.value)

    def test_tensors_of_other_shapes_are_refused(self, base: ae.Base, tmp_path: Path) -> None:
        config = hf.BertConfig(**{**CONFIGS["bert"].to_dict(), "vocab_size": 70})
        hf.BertModel(config).save_pretrained(tmp_path / "words")
        with pytest.raises(OtherModulesError, match=r"`embeddings.word_embeddings.weight` \[70, 32\], not \[60, 32\]"):
            import_it(tmp_path / "words", base)

    @pytest.mark.extended
    def test_missing_layers_are_named(self, base: ae.Base, tmp_path: Path) -> None:
        config = hf.BertConfig(**{**CONFIGS["bert"].to_dict(), "num_hidden_layers": 1})
        model = hf.BertModel(config)
        own = {name: torch.from_numpy(base.tensor(name)) for name in model.state_dict()}
        model.load_state_dict(own)
        model.save_pretrained(tmp_path / "short")
        with pytest.raises(OtherModulesError, match=r"no such tensors: `encoder.layer.1"):
            import_it(tmp_path / "short", base)

    @pytest.mark.extended
    def test_checkpoint_of_another_architecture_is_refused(self, base: ae.Base, tmp_path: Path) -> None:
        write_base(tmp_path, "deberta")
        with pytest.raises(OtherModulesError, match="another architecture"):
            import_it(tmp_path / "base", base)

    @pytest.mark.extended
    def test_different_configurations_fail_parity(self, bert: Path, base: ae.Base, tmp_path: Path) -> None:
        """The weights are those of a merged LoRA, and the configuration has another activation."""
        checkpoint = write_changed(tmp_path / "relu", lambda _: None, bert / "merged")
        config = json.loads((checkpoint / "config.json").read_text())
        (checkpoint / "config.json").write_text(json.dumps({**config, "hidden_act": "relu"}))
        with pytest.raises(ParityError, match="the configurations of both models may differ"):
            import_it(checkpoint, base)


@pytest.mark.extended
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_merged_language_models_are_imported_exactly(name: str, tmp_path: Path) -> None:
    """The base has its language head and a cache; GPT-2's head shares the embeddings."""
    torch.manual_seed(0)
    model = hf.AutoModelForCausalLM.from_config(CONFIGS[name])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    model.save_pretrained(tmp_path / "base")
    again = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    adapted(again, name).merge_and_unload().save_pretrained(tmp_path / "merged")
    imported = import_it(tmp_path / "merged")
    assert imported.is_exact
    assert {layer.rank for layer in imported.layers} == {RANK}
    assert imported.deviation.relative < 1e-5


@pytest.mark.extended
def test_non_finite_weights_are_refused(bert: Path, base: ae.Base, tmp_path: Path) -> None:
    name = "bert.encoder.layer.0.attention.self.query.weight"
    checkpoint = write_changed(tmp_path / "nan", lambda tensors: tensors[name].fill_(float("nan")), bert / "merged")
    with pytest.raises(TensorError, match=f"NaN or infinity; found `{name}`"):
        import_it(checkpoint, base)


@pytest.mark.parametrize(
    ("computed", "expected", "difference"),
    [
        ([1.0, 2.0], [1.0, 2.5], 0.5),
        ([1.0, -np.inf], [1.0, -np.inf], 0.0),
        ([1.0, np.inf], [1.0, -np.inf], np.inf),
        ([1.0, np.inf], [1.0, 2.0], np.inf),
        ([np.nan, 2.0], [np.nan, 2.0], np.inf),
        ([np.nan, 2.0], [1.0, 2.0], np.inf),
        ([1.0], [1.0, 2.0], np.inf),
    ],
)
def test_outputs_with_nan_never_agree(computed: list[float], expected: list[float], difference: float) -> None:
    assert deviation(np.array(computed), np.array(expected)).difference == difference
