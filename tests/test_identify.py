"""Folders of onnxruntime-genai proved to hold the weights of a torch model, and its adapters, which need no flags."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import numpy_helper
from tiny_llama import PROMPT, example, in_genai, run_builder, save_rounded
from transformers import AutoConfig, AutoModelForCausalLM

import adapter_export as ae
from adapter_export.errors import BaseModelError, FormatError, OutputExistsError
from adapter_export.numerics.paired_sites import SiteWeights, pair_sites
from adapter_export.numerics.weight_match import match_weights
from adapter_export.onnx_backend.base.onnx_base import OnnxBase, open_onnx
from adapter_export.onnx_backend.base.weight_uses import weight_uses
from adapter_export.sites.discover import discover
from adapter_export.torch_backend.base.huggingface_folder import CachedDecoder
from adapter_export.torch_backend.base.torch_base import TorchBase, base_of
from adapter_export.torch_backend.trained_weights import trained_weights

pytestmark = [
    pytest.mark.extended,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),  # PEFT asks transformers 5 for it
]

BUILDS: Mapping[str, tuple[str, ...]] = {
    "fp32": ("fp32",),
    "fp16": ("fp16",),
    "int4": ("int4", "accuracy_level=1"),
    "int4 with zero points": ("int4", "is_symmetric=false"),
    "int4 by k-quant": ("int4", "algo_config=k_quant"),
    "int4 by rtn, blocks of 16": ("int4", "algo_config=rtn", "block_size=16"),
    "int4, dequantized apart": ("int4", "use_qdq=true"),
    "int4, nothing joined": ("int4", "fuse_qkv=false"),
    "int8": ("int8",),
}
RECORD = "base_identity.json"


@pytest.fixture(scope="module")
def source(genai_is_there: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Llama of the example as a Hugging Face folder."""
    folder: Path = tmp_path_factory.mktemp("identify") / "llama"
    example("make_tiny").save_llama(folder)
    return folder


@pytest.fixture(scope="module")
def archive(source: Path) -> ae.Base:
    return ae.capture(source, source.with_name("llama.pt"))


@pytest.fixture(scope="module")
def built(source: Path) -> Callable[[str], Path]:
    """Return the builder's folder by its name in `BUILDS`."""

    def build(name: str) -> Path:
        folder = source.with_name(name.replace(" ", "-"))
        if not folder.exists():
            run_builder(source, folder, *BUILDS[name])
        return folder

    return build


def copied(folder: Path, to: Path) -> Path:
    """A copy without a record."""
    shutil.copytree(folder, to, ignore=shutil.ignore_patterns(RECORD))
    return to


def compare(graph: OnnxBase, trained: TorchBase, where: str = "model") -> int:
    """Compare weights and sites without opening anything; return the number of weights."""
    found = match_weights(weight_uses(graph.model), trained_weights(trained), where)
    pair_sites(SiteWeights(graph.index, graph.sites), SiteWeights(trained.index, discover(trained.flow)), found, where)
    return len(found)


@pytest.mark.parametrize("name", BUILDS)
def test_each_weight_is_within_its_rounding_and_none_is_left_over(name, built, archive):
    graph = open_onnx(built(name) / "model.onnx")
    found = match_weights(weight_uses(graph.model), trained_weights(archive.torch), "model")
    names = [each.trained for each in found]
    assert sorted(names) == sorted(name for name, _ in archive.torch.program.named_parameters())
    exact = name == "fp32"
    assert all(each.steps <= 0.5 for each in found)
    assert (max(each.steps for each in found) == 0) == exact
    joined = {each.weight for each in found if "q_proj" in each.trained} & {
        each.weight for each in found if "v_proj" in each.trained
    }
    assert bool(joined) == (name not in ("fp16", "int4, nothing joined"))


ARCHITECTURES: Mapping[str, Mapping[str, object]] = {
    "gemma2": {"head_dim": 16},
    "olmo": {},
    "phi": {},
    "gpt_oss": {"head_dim": 16, "num_local_experts": 4},
}
"""Tied embeddings and norms of `1 + w`; norms without factors; biases and parallel sublayers; experts and sinks."""


@pytest.mark.parametrize(
    ("name", "precision"), [("gemma2", "int4"), ("olmo", "fp32"), ("phi", "int4"), ("gpt_oss", "fp32")]
)
def test_other_architectures_need_no_table(name, precision, tmp_path, genai_is_there):
    torch.manual_seed(0)
    size = {"vocab_size": 96, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
    ends = {"bos_token_id": 1, "eos_token_id": 95, "pad_token_id": 0}
    config = AutoConfig.for_model(name, **size, **heads, **ends, **ARCHITECTURES[name])
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.2)
    model.save_pretrained(tmp_path / name)
    example("make_tiny").save_tokenizer(tmp_path / name)
    run_builder(tmp_path / name, tmp_path / "model", precision)
    decoder = CachedDecoder(model)
    trained = base_of(decoder, *decoder.example_inputs())
    assert compare(open_onnx(tmp_path / "model" / "model.onnx"), trained) >= 16


@pytest.fixture(scope="module")
def linked(built: Callable[[str], Path], archive: ae.Base) -> Path:
    """The folder in 4 bits with its record."""
    folder = built("int4")
    found = ae.identify(folder, archive)
    assert found.fingerprint == archive.fingerprint
    assert max(each.steps for each in found.weights) <= 0.5
    return folder


def test_identified_base_has_fingerprint_and_paths_of_the_archive(linked, archive):
    base = ae.open_base(linked)
    assert (base.fingerprint, base.model_type) == (archive.fingerprint, "llama")
    paths = {site.name: site.path for site in base.sites.map}
    # the folder's table has no path: its site has another name, and adapters of lookups are refused there
    (table,) = (site.name for site in archive.sites.map if site.role == "lookup")
    expected = {site.name: site.path for site in archive.sites.map if site.name != table} | {"outside.lookup0": None}
    joined = {f"layers.{layer}.attention.qkv" for layer in (0, 1)}
    assert paths == expected | dict.fromkeys(joined)


@pytest.fixture(scope="module")
def peft_folder(source: Path) -> Path:
    """A LoRA that PEFT trained on the folder, as far as its weights show."""
    import peft
    from transformers import LlamaForCausalLM

    torch.manual_seed(1)
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "o_proj", "down_proj"])
    model = peft.get_peft_model(LlamaForCausalLM.from_pretrained(source).eval(), config)
    for name, weight in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight, 0, 0.2)
    folder = source.with_name("peft")
    model.save_pretrained(folder)
    return folder


def test_an_adapter_of_peft_is_imported_by_the_names_of_its_modules(linked, archive, peft_folder):
    onto_folder, onto_archive = (ae.import_peft(peft_folder, base, name="lora") for base in (linked, archive))
    assert onto_folder.base == onto_archive.base == archive.fingerprint
    assert onto_folder.placements.keys() == onto_archive.placements.keys()
    assert len(onto_folder.placements) == 8
    for name, weight in onto_archive.weights.items():
        np.testing.assert_array_equal(onto_folder.weights[name], weight)


@pytest.fixture(scope="module")
def bundle(linked: Path, archive: ae.Base, peft_folder: Path) -> Path:
    """The folder with an adapter that was imported onto the archive: no option silences a check."""
    adapter = ae.import_peft(peft_folder, archive, name="lora")
    return ae.build(linked, {"lora": adapter}, linked.with_name("bundle")).folder


def test_onnxruntime_genai_writes_what_transformers_and_peft_write(bundle, linked, source, peft_folder, tmp_path):
    """With the builder's 4-bit weights in transformers, so that rounding is on both sides."""
    from peft import PeftModel
    from transformers import LlamaForCausalLM

    graph = ir.load(copied(linked, tmp_path / "copy") / "model.onnx")  # onnx-ir refuses files with several hard links
    save_rounded(source, graph, tmp_path / "rounded")
    plain = LlamaForCausalLM.from_pretrained(tmp_path / "rounded").eval()
    model = PeftModel.from_pretrained(plain, peft_folder)
    tokens = torch.tensor([PROMPT])

    def written() -> list[int]:
        made = model.generate(input_ids=tokens, max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=0)
        found: list[int] = made[0, len(PROMPT) :].tolist()
        return found

    with torch.no_grad():
        texts = [written()]
        with model.disable_adapter():
            texts.append(written())
    with_lora, without = (in_genai(bundle, [name] * 12).tokens for name in ("lora", None))
    assert [with_lora, without] == texts
    assert with_lora != without


def test_the_bundle_is_checked_against_the_folder_and_not_against_the_archive(bundle, linked, archive):
    assert ae.check(bundle, against=linked).passed
    assert f"see `{RECORD}`" in str(ae.inspect(bundle))
    assert "21 weights of sha256:" in str(ae.inspect(linked))
    record = json.loads((bundle / RECORD).read_text())
    assert {each["trained"] for each in record["weights"]} >= {"lm_head.weight", "model.norm.weight"}
    with pytest.raises(BaseModelError, match="built from a converted model; found a torch archive"):
        ae.check(bundle, against=archive)


def edited(folder: Path, to: Path, edit: Callable[[dict[str, onnx.TensorProto]], None]) -> OnnxBase:
    """The graph of a copy of a folder with changed weights."""
    model = onnx.load(copied(folder, to) / "model.onnx")
    edit({tensor.name: tensor for tensor in model.graph.initializer})
    onnx.save(model, to / "model.onnx", save_as_external_data=True, location="model.onnx.data")
    return open_onnx(to / "model.onnx")


def _layer(tensors: Mapping[str, onnx.TensorProto], layer: int) -> dict[str, onnx.TensorProto]:
    prefix = f"model.layers.{layer}."
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _swap(tensors: Mapping[str, onnx.TensorProto]) -> None:
    for name, one in _layer(tensors, 0).items():
        other = _layer(tensors, 1)[name]
        one.raw_data, other.raw_data = other.raw_data, one.raw_data


def _repeat(tensors: Mapping[str, onnx.TensorProto]) -> None:
    for name, one in _layer(tensors, 0).items():
        _layer(tensors, 1)[name].raw_data = one.raw_data


def _change(tensors: Mapping[str, onnx.TensorProto]) -> None:
    tensor = tensors["model.layers.1.mlp.up_proj.MatMul.weight"]
    values = numpy_helper.to_array(tensor).copy()
    values[3, 5] = np.nextafter(values[3, 5], np.float32(9))
    tensor.raw_data = values.tobytes()


def _change_norm(tensors: Mapping[str, onnx.TensorProto]) -> None:
    _layer(tensors, 0)["input_layernorm.weight"].raw_data = np.linspace(0.5, 1, 64, dtype=np.float32).tobytes()


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (_swap, r"layers\.0\.attn\.qkv_proj\.MatMul\.weight` is not `model\.layers\.0\.self_attn\.q_proj.*and 11 more"),
        (
            _repeat,
            r"layers\.1\.attn\.qkv_proj\.MatMul\.weight` is not `model\.layers\.1\.self_attn\.q_proj.*and 4 more",
        ),
        (
            _change,
            r"layers\.1\.mlp\.up_proj\.MatMul\.weight` is not `model\.layers\.1\.mlp\.up_proj\.weight`: 1 of 8,192",
        ),
        (
            _change_norm,
            r"layers\.0\.input_layernorm\.weight` is not `.*0\.input_layernorm\.weight`: 63 of 64 .* by up to 0\.5",
        ),
    ],
    ids=["layers swapped", "a layer twice", "one number", "a norm"],
)
def test_other_weights_are_refused_with_the_place_and_the_distance(edit, message, built, archive, tmp_path):
    with pytest.raises(BaseModelError, match=message):
        compare(edited(built("fp32"), tmp_path / "edited", edit), archive.torch)


def test_another_archive_is_refused(linked, source, tmp_path):
    with pytest.warns(UserWarning, match="the head of `LlamaForCausalLM` is left out"):
        bare = ae.capture(source, tmp_path / "bare.pt", bare=True)
    with pytest.raises(BaseModelError, match=r"`lm_head\.MatMul\.weight_Q4` without .*captured with its language head"):
        ae.identify(linked, bare, force=True)


def test_a_record_is_of_one_graph_and_is_not_replaced_silently(linked, archive, built, tmp_path):
    folder = copied(built("fp32"), tmp_path / "model")
    shutil.copy(linked / RECORD, folder)
    with pytest.raises(BaseModelError, match="has changed since it was compared with a trained model"):
        ae.open_base(folder)
    with pytest.raises(OutputExistsError):
        ae.identify(folder, archive)
    assert ae.identify(folder, archive, force=True).fingerprint == ae.open_base(folder).fingerprint
    record = json.loads((folder / RECORD).read_text())
    assert record["renamed"] == {"outside.linear0": "lm_head"}
    (folder / RECORD).write_text(json.dumps({**record, "renamed": {"outside.linear0": "layers.0.ffn"}}))
    with pytest.raises(BaseModelError, match=r"assigns the same name to several sites; found `layers\.0\.ffn`"):
        ae.open_base(folder)
    (folder / RECORD).write_text('{"version": "1.0.0", "weights": 3}')
    with pytest.raises(FormatError, match=RECORD):
        ae.open_base(folder)


def test_only_a_folder_of_the_builder_is_compared(source, archive):
    with pytest.raises(BaseModelError, match="is not an onnxruntime-genai folder; found a Hugging Face folder"):
        ae.identify(source, archive)


def test_the_hugging_face_folder_gives_the_same_proof(built, source, archive, tmp_path):
    folder = copied(built("fp32"), tmp_path / "model")
    assert ae.identify(folder, source).fingerprint == archive.fingerprint
