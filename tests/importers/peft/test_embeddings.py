"""Embeddings that PEFT changed: LoRA, trained rows and saved tables give the outputs of PEFT itself."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from heard import Heard
from once import once
from safetensors.numpy import load_file
from small_models import SIZES, small

import adapter_export as ae
from adapter_export.errors import AdapterError
from adapter_export.graph.adapter import Adapter

peft = pytest.importorskip("peft")
pytestmark = [
    pytest.mark.extended,
    pytest.mark.filterwarnings("ignore::FutureWarning"),  # between PEFT and transformers
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning"),
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`:UserWarning"),
]

TOKENS = [3, 7, 50]
BASES: Mapping[str, tuple[str, str, str]] = {  # the head of the model, the layer of a LoRA, and the embedding
    "Bert": ("Model", "query", "word_embeddings"),
    "Llama": ("ForCausalLM", "q_proj", "embed_tokens"),
    "GPT2": ("LMHeadModel", "c_attn", "wte"),
}
OPTIONS: Mapping[str, Mapping[str, Any]] = {"Llama": {"tie_word_embeddings": True}}


def config(name: str, method: str) -> Any:
    _, layer, embedding = BASES[name]
    lora = {"r": 3, "lora_alpha": 5, "fan_in_fan_out": name == "GPT2"}
    choices = {
        "plain": lambda: peft.LoraConfig(target_modules=[layer], **lora),
        "lora": lambda: peft.LoraConfig(target_modules=[layer, embedding], **lora),
        "rows": lambda: peft.LoraConfig(target_modules=[layer], trainable_token_indices=TOKENS, **lora),
        "tokens": lambda: peft.TrainableTokensConfig(token_indices=TOKENS, target_modules=[embedding]),
        "dora": lambda: peft.LoraConfig(target_modules=[embedding], use_dora=True, **lora),
        "saved": lambda: peft.LoraConfig(target_modules=[layer], modules_to_save=[embedding], **lora),
        "positions": lambda: peft.LoraConfig(target_modules=["position_embeddings"], **lora),
    }
    return choices[method]()


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Archives of the bases, by their names."""

    def make(folder: Path) -> None:
        for name, (head, *_) in BASES.items():
            small(name, head, **OPTIONS.get(name, {})).save_pretrained(folder / name)
            ae.capture(folder / name, folder / f"{name}.pt", reporter=Heard())

    return once(tmp_path_factory, "bases_of_changed_embeddings", make)


def trained(name: str, method: str, place: Path, **options: Any) -> torch.nn.Module:
    """Save an adapter with random weights; return PEFT's model."""
    model = small(name, BASES[name][0], **OPTIONS.get(name, {}), **options)
    model = peft.get_peft_model(model, config(name, method))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(0, 0.2)
    model.save_pretrained(place)
    return model.eval()


def request() -> torch.Tensor:
    ids = torch.from_numpy(np.random.default_rng(0).integers(0, SIZES["vocab_size"], (3, 9)))
    ids[0, :3] = torch.tensor(TOKENS)
    return ids


def expected(model: torch.nn.Module) -> np.ndarray:
    with torch.no_grad():
        return np.asarray(model(input_ids=request())[0].numpy())


def feeds(base: ae.Base) -> dict[str, np.ndarray]:
    """All tokens are real, of one text, and nothing is cached."""
    arrays = {}
    for record in base.inputs:
        sizes = {"batch": 3, "sequence": 9}
        shape = [axis if isinstance(axis, int) else sizes.get(axis, 0) for axis in record.axes]
        shape = [3, 9] if record.role in ("ids", "mask") else shape
        kind = np.ones if record.role == "mask" else np.zeros
        arrays[record.name] = request().numpy() if record.name == "input_ids" else kind(shape, record.dtype)
    return arrays


def assert_close(found: np.ndarray, wanted: np.ndarray, tolerance: float = 1e-5) -> None:
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() <= tolerance * np.abs(wanted).max()


@pytest.mark.parametrize("method", ["lora", "rows", "tokens"])
@pytest.mark.parametrize("name", BASES)
def test_changed_embeddings_give_the_outputs_of_peft(name: str, method: str, bases: Path, tmp_path: Path) -> None:
    """The heads of Llama and GPT-2 are tied: trained rows change them too, and LoRA does not."""
    base = ae.open_base(bases / f"{name}.pt")
    model = trained(name, method, tmp_path / "a")
    adapter = ae.import_peft(tmp_path / "a", base, reporter=Heard())
    (site,) = [site.name for site in base.sites.map.of_roles(("lookup",)) if site.name in adapter.placements]
    assert site.endswith(BASES[name][2])
    assert ("lm_head" in adapter.placements) == (name != "Bert" and method != "lora")
    runner, arrays = base.runner(), feeds(base)
    found, before = (next(iter(runner.run(arrays, each).values())) for each in (adapter, None))
    wanted = expected(model)
    assert_close(found, wanted)
    assert np.abs(wanted - before).max() > 0.01 * np.abs(wanted).max()


def test_trained_rows_of_untied_heads_leave_the_head(tmp_path: Path) -> None:
    small("Llama", "ForCausalLM").save_pretrained(tmp_path / "base")
    peft.get_peft_model(small("Llama", "ForCausalLM"), config("Llama", "rows")).save_pretrained(tmp_path / "a")
    adapter = ae.import_peft(tmp_path / "a", tmp_path / "base", reporter=Heard())
    assert "lm_head" not in adapter.placements


METHODS = ("plain", "lora", "rows")
"""Adapters of a bundle: LoRA and rows of embeddings, and a LoRA without."""


@pytest.fixture(scope="module")
def place(bases: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    def make(folder: Path) -> None:
        base = ae.open_base(bases / "Bert.pt")
        for method in METHODS:
            np.save(folder / f"{method}.npy", expected(trained("Bert", method, folder / f"peft_{method}")))
            ae.import_peft(folder / f"peft_{method}", base, folder / method, reporter=Heard())
        ae.build(base, [folder / method for method in METHODS], folder / "bundle", checksums=True)

    return once(tmp_path_factory, "changed_embeddings", make)


def bert_inputs() -> dict[str, np.ndarray]:
    ids = request().numpy()
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}


@pytest.mark.parametrize("file", ["model.onnx", "model.inputs.onnx"])
def test_slots_and_inputs_give_the_outputs_of_peft(file: str, place: Path) -> None:
    session = ort.InferenceSession(place / "bundle" / file, providers=["CPUExecutionProvider"])
    for method in METHODS:
        tensors = load_file(place / "bundle" / "adapters" / f"{method}.safetensors")
        (found,) = session.run(["last_hidden_state"], {**bert_inputs(), **tensors})
        assert_close(found, np.load(place / f"{method}.npy"))


def test_rows_of_a_batch_have_their_own_embeddings(place: Path) -> None:
    session = ae.open_bundle(place / "bundle").session()
    found = session.run(bert_inputs(), adapters=list(METHODS))["last_hidden_state"]
    for row, method in enumerate(METHODS):
        assert_close(found[row], np.load(place / f"{method}.npy")[row])


def test_the_bundle_is_verified(place: Path) -> None:
    ae.verify(place / "bundle").raise_for_failure()


def test_trained_rows_are_a_small_table(place: Path) -> None:
    rows = ae.load_adapter(place / "rows").weights
    site = "embeddings.word_embeddings"
    assert {name: list(rows[f"{site}.{name}"]) for name in ("tokens.high", "tokens.low")} == {
        "tokens.high": [0, 0, 0],
        "tokens.low": TOKENS,
    }
    assert rows[f"{site}.rows.weight"].shape == (3, 32)


def test_a_bundle_without_embeddings_has_no_slots_for_them(bases: Path, place: Path, tmp_path: Path) -> None:
    bundle = ae.build(bases / "Bert.pt", [place / "plain"], tmp_path / "plain", variants=("slots",))
    assert not [slot for slot in bundle.manifest.slots if slot.site == "embeddings.word_embeddings"]


@pytest.mark.parametrize("precision", ["fp16", "int8", "int4-weights"])
def test_reduced_precisions_are_verified(precision: Any, bases: Path, place: Path, tmp_path: Path) -> None:
    folders = [place / method for method in METHODS]
    ae.build(bases / "Bert.pt", folders, tmp_path / "b", base_precision=precision, adapter_precision="float16")
    ae.verify(tmp_path / "b").raise_for_failure()
    session = ae.open_bundle(tmp_path / "b").session()
    for method in METHODS:
        found = session.run(bert_inputs(), method)["last_hidden_state"]
        wanted = np.load(place / f"{method}.npy")
        spread = np.sqrt(np.mean((found - wanted) ** 2) / np.mean(wanted**2))
        assert spread < {"fp16": 0.01, "int8": 0.2, "int4-weights": 0.2}[precision]


def imported(method: str, bases: Path, place: Path, **options: Any) -> Adapter:
    trained("Bert", method, place / "a", **options)
    return ae.import_peft(place / "a", bases / "Bert.pt", reporter=Heard())


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("dora", "DoRA, PiSSA and OLoRA of an embedding also depend on its table"),
        ("positions", r"position_embeddings`, at which the base looks up no ids of a request"),
        ("saved", "full-rank matrices"),
    ],
)
def test_other_changes_of_embeddings_are_refused_with_their_reason(
    method: str, words: str, bases: Path, tmp_path: Path
) -> None:
    with pytest.raises(AdapterError, match=words):
        imported(method, bases, tmp_path)


def test_another_vocabulary_is_refused_with_both_sizes(bases: Path, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match=r"is for 105 tokens, and the base has 99: new tokens need a base"):
        imported("lora", bases, tmp_path, vocab_size=105)


def test_saved_tables_with_few_changed_rows_become_rows(bases: Path, tmp_path: Path) -> None:
    """A fully trained embedding is a table as large as the base's, but few of its rows may differ."""
    model = small("Bert")
    wrapped = peft.get_peft_model(model, config("Bert", "saved"))
    with torch.no_grad():
        wrapped.get_submodule("base_model.model.embeddings.word_embeddings").weight[TOKENS] += 0.2
    wrapped.save_pretrained(tmp_path / "a")
    base = ae.open_base(bases / "Bert.pt")
    adapter = ae.import_peft(tmp_path / "a", base, reporter=Heard())
    assert list(adapter.weights["embeddings.word_embeddings.tokens.low"]) == TOKENS
    assert_close(next(iter(base.runner().run(feeds(base), adapter).values())), expected(wrapped.eval()))
