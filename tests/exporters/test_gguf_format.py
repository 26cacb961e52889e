"""LoRA in GGUF: the names and the order of rows of llama.cpp, which computes what PEFT computes."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator, Sequence
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from clients import succeed, tool
from exported import FINGERPRINT, random_for_sites, with_factor
from hand_made_sites import site
from kind_products import single_changes
from once import once
from peft import PeftModel
from tiny_gguf import HEADS, INNER, KV_HEADS, LAYERS, WIDTH, save_llama, write_gguf
from toolchain import skip_or_fail
from transformers import LlamaForCausalLM

from adapter_export.bases.base_view import BaseView
from adapter_export.errors import AdapterError, AdapterExportError, UsageError
from adapter_export.graph.adapter import Adapter
from adapter_export.graph.kinds import KINDS, Ia3Options, LoraOptions, ia3, lora
from adapter_export.numerics.merged_layers import Layer
from adapter_export.plugins.formats.exporters import FORMATS
from adapter_export.plugins.formats.exporters.export_format import ExportRequest
from adapter_export.plugins.formats.exporters.proof import compare_with_export
from adapter_export.sites.site import Site, SiteMap

PARTS = {
    "attention.query": ("self_attn.q_proj", WIDTH, WIDTH),
    "attention.key": ("self_attn.k_proj", WIDTH, WIDTH * KV_HEADS // HEADS),
    "attention.value": ("self_attn.v_proj", WIDTH, WIDTH * KV_HEADS // HEADS),
    "attention.output": ("self_attn.o_proj", WIDTH, WIDTH),
    "ffn.gate": ("mlp.gate_proj", WIDTH, INNER),
    "ffn.up": ("mlp.up_proj", WIDTH, INNER),
    "ffn.down": ("mlp.down_proj", INNER, WIDTH),
}
SITES = SiteMap(
    tuple(
        site(f"layers.{layer}.{name}", "linear", layer, width, width_in, f"model.layers.{layer}.{path}")
        for layer in range(LAYERS)
        for name, (path, width_in, width) in PARTS.items()
    ),
    "final",
    WIDTH,
)
TOKENS = (1, 5, 9, 33, 17, 260)

ROUNDING = 2e-2
"""llama.cpp rounds the cache of keys and values to float16, at 5e-4 of values below 10 (measured: 3e-3)."""


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> tuple[LlamaForCausalLM, Path]:
    """The model, and a folder with it as `hf` and `base.gguf`."""
    folder = tmp_path_factory.mktemp("llama")
    model = save_llama(folder / "hf")
    write_gguf(model, folder / "base.gguf")
    return model, folder


def request_for(adapter: Adapter, model: LlamaForCausalLM, file: Path | None) -> ExportRequest:
    weights = {name: tensor.numpy() for name, tensor in model.state_dict().items()}

    def layer_at(place: Site) -> Layer:
        name = f"{place.path}.weight"
        return Layer((name, ""), weights[name], None)

    return ExportRequest(adapter, BaseView(FINGERPRINT, SITES, "llama", layer_at=layer_at), base_file=file)


def random_lora(**options: object) -> Adapter:
    return random_for_sites(lora(LoraOptions(tuple(PARTS), **options)), SITES)  # type: ignore[arg-type]


def write(request: ExportRequest, path: Path) -> gguf.GGUFReader:
    FORMATS["gguf"].write(request, path)
    exported = FORMATS["gguf"].read_back(request, path)
    compare_with_export(request, exported, FORMATS["gguf"].allowed)
    return gguf.GGUFReader(str(path))


def test_exported_lora_has_its_factor_and_paired_query_rows(llama, tmp_path: Path) -> None:
    model, folder = llama
    adapter = random_lora(rank=4, alpha=6)
    reader = write(request_for(adapter, model, folder / "base.gguf"), tmp_path / "lora.gguf")
    assert reader.get_field("general.type").contents() == "adapter"
    assert reader.get_field("general.architecture").contents() == "llama"
    assert reader.get_field("adapter.type").contents() == "lora"
    assert reader.get_field("adapter.lora.alpha").contents() == 6
    tensors = {tensor.name: tensor.data for tensor in reader.tensors}
    assert len(tensors) == 2 * len(adapter.placements)
    up = adapter.weights["layers.1.attention.query.lora_B.weight"].T
    pairs = up.reshape(HEADS, 2, -1, 4).swapaxes(1, 2).reshape(up.shape)
    np.testing.assert_array_equal(tensors["blk.1.attn_q.weight.lora_b"], pairs)
    up = adapter.weights["layers.1.attention.value.lora_B.weight"].T
    np.testing.assert_array_equal(tensors["blk.1.attn_v.weight.lora_b"], up)


def test_other_factors_go_into_b(llama, tmp_path: Path) -> None:
    model, folder = llama
    adapter = random_lora(rank=4, alpha={"attention.query": 3, "default": 6})
    reader = write(request_for(adapter, model, folder / "base.gguf"), tmp_path / "lora.gguf")
    tensors = {tensor.name: tensor.data for tensor in reader.tensors}
    up = adapter.weights["layers.0.attention.query.lora_B.weight"].T
    assert np.abs(tensors["blk.0.attn_q.weight.lora_b"]).max() == np.abs(up).max() / 2


def test_adapters_that_llama_cpp_cannot_compute_are_refused(llama, tmp_path: Path) -> None:
    model, folder = llama
    file, out = folder / "base.gguf", tmp_path / "lora.gguf"
    with pytest.raises(UsageError, match="permutes the rows"):
        write(request_for(random_lora(), model, None), out)
    for options in ({"gate": True}, {"lora_bias": True}):
        with pytest.raises(AdapterError, match=r"cannot be exported to llama\.cpp: its adapters are"):
            write(request_for(random_lora(**options), model, file), out)
    with pytest.raises(AdapterError, match="its adapters are"):
        write(request_for(random_for_sites(ia3(Ia3Options()), SITES), model, file), out)
    other = LlamaForCausalLM(model.config)
    with pytest.raises(AdapterError, match="different weights"):
        write(request_for(random_lora(), other, file), out)
    data = file.read_bytes()
    for name, broken in (("short", data[: len(data) // 2]), ("text", b"GGUF" + bytes(40)), ("empty", b"")):
        (tmp_path / name).write_bytes(broken)
        with pytest.raises(AdapterExportError) as raised:
            write(request_for(random_lora(), model, tmp_path / name), out)
        assert raised.value.exit_code == 3
    assert not out.exists()


@pytest.fixture(scope="module")
def node_llama_cpp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose `node_modules` contain the CPU version of llama.cpp, and the program that runs it."""
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        skip_or_fail("llama.cpp is only installed on Linux for x86-64")
    npm = tool("npm", "npm")

    def make(folder: Path) -> None:
        packages = [f"{name}@3.22.1" for name in ("node-llama-cpp", "@node-llama-cpp/linux-x64")]
        options = ("--ignore-scripts", "--omit=optional", "--no-audit", "--no-fund", "--prefer-offline")
        succeed([npm, "install", *options, *packages], folder)
        script = Path(__file__).parents[1] / "support" / "llama_cpp.mjs"
        (folder / script.name).write_text(script.read_text())

    return once(tmp_path_factory, "llama_cpp", make)


def log_probabilities(folder: Path, scripts: Path, adapters: Sequence[Path]) -> list[np.ndarray]:
    """Return what llama.cpp computes after each of the tokens: for the base, then with each adapter."""
    tokens = ",".join(map(str, TOKENS))
    program = [tool("node", "nodejs"), scripts / "llama_cpp.mjs", folder / "base.gguf", tokens, *adapters]
    printed = succeed(program, scripts).splitlines()
    return [np.log(rows) for rows in json.loads(next(line for line in printed if line.startswith("[[[")))]


def log_probabilities_of_peft(folder: Path, request: ExportRequest, place: Path) -> np.ndarray:
    """Return what PEFT computes with the same adapter, exported to `place`."""
    place.mkdir()
    FORMATS["peft"].write(request, place)
    with torch.no_grad():
        model = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(folder / "hf"), place).eval()
        return np.asarray(model(torch.tensor([TOKENS])).logits[0].log_softmax(-1))


@pytest.mark.extended
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_llama_cpp_computes_what_peft_computes(llama, node_llama_cpp: Path, tmp_path: Path) -> None:
    model, folder = llama
    adapter = random_lora(rank=4, alpha=6)
    request = request_for(adapter, model, folder / "base.gguf")
    write(request, tmp_path / "lora.gguf")
    forgotten = with_factor(adapter, 1.0)
    write(request_for(forgotten, model, folder / "base.gguf"), tmp_path / "forgotten.gguf")
    adapters = [tmp_path / "lora.gguf", tmp_path / "forgotten.gguf"]
    base, found, other = log_probabilities(folder, node_llama_cpp, adapters)
    with torch.no_grad():
        alone = model(torch.tensor([TOKENS])).logits[0].log_softmax(-1).numpy()
    wanted = log_probabilities_of_peft(folder, request, tmp_path / "peft")
    np.testing.assert_allclose(base, alone, rtol=0, atol=ROUNDING)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=ROUNDING)
    assert np.abs(alone - wanted).max() > 20 * ROUNDING
    assert np.abs(other - wanted).max() > 20 * ROUNDING


def accepted_adapters(model: LlamaForCausalLM, folder: Path, place: Path) -> Iterator[tuple[str, ExportRequest, Path]]:
    """Yield each export that is not refused, of every kind with every value of its options."""
    for number, choice in enumerate(choice for kind in KINDS for choice in single_changes(kind)):
        try:
            adapter = random_for_sites(choice.make(), SITES)
        except (UsageError, AdapterError):  # options that exclude each other, or that no site can have
            continue
        request, file = request_for(adapter, model, folder / "base.gguf"), place / f"{number}.gguf"
        try:
            write(request, file)
        except AdapterError:
            assert not file.exists()
            continue
        yield str(choice), request, file


@pytest.mark.extended
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_llama_cpp_computes_every_option_or_the_export_is_refused(llama, node_llama_cpp: Path, tmp_path: Path) -> None:
    model, folder = llama
    accepted = list(accepted_adapters(model, folder, tmp_path))
    assert len(accepted) >= 8
    _, *found = log_probabilities(folder, node_llama_cpp, [file for *_, file in accepted])
    for (name, request, file), computed in zip(accepted, found, strict=True):
        wanted = log_probabilities_of_peft(folder, request, file.with_suffix(""))
        np.testing.assert_allclose(computed, wanted, rtol=0, atol=ROUNDING, err_msg=name)
