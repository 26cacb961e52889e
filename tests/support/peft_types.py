"""Adapters of every PEFT type, made by PEFT on small bases, and compared with their imports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
import transformers as hf
from packed import unpacked

import adapter_export as ae
from adapter_export.onnx_backend.model_session import open_session
from adapter_export.onnx_backend.rewrite.insert import insert_slots
from adapter_export.onnx_backend.slots import plan_slots, slot_tensors
from adapter_export.runtime.graphs import run_session
from adapter_export.torch_backend.base.to_onnx import export_onnx
from adapter_export.torch_backend.torch_runner import TorchRunner

BASES = unpacked("peft") / "bases"
SQUARE_SUFFIX = "_square"
SQUARE: Mapping[str, hf.PretrainedConfig] = {
    "bert": hf.BertConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=32,
        vocab_size=60,
        max_position_embeddings=32,
    ),
    "llama": hf.LlamaConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        intermediate_size=32,
        vocab_size=60,
        max_position_embeddings=32,
    ),
    "gpt2": hf.GPT2Config(n_embd=32, n_layer=2, n_head=4, n_inner=32, n_positions=32, vocab_size=60),
}
"""Configs of bases with square matrices and equal numbers of heads, by architecture."""

STD = 0.2
OUTPUTS = ("last_hidden_state", "pooler_output")
TARGETS = {
    "bert": ["query", "value", "intermediate.dense", "output.dense", "pooler.dense"],
    "llama": ["q_proj", "v_proj", "o_proj", "up_proj", "down_proj"],
    "gpt2": ["c_attn", "attn.c_proj", "c_fc", "mlp.c_proj"],
}

LINEAR = ("bert", "llama")
EVERY = (*LINEAR, "gpt2")


@dataclass(frozen=True)
class Case:
    """One adapter: the class of its config, its options, and the architectures on which PEFT makes it.

    PEFT does not make most types on `Conv1D`, the layers of GPT-2.
    """

    config: str
    options: Mapping[str, Any] = field(default_factory=dict)
    bases: tuple[str, ...] = LINEAR
    noise: float = 0.0
    """Standard deviation, instead of `STD`, of changes to tensors that must stay near their initialization."""
    tolerance: float = 2e-5


_EMBEDDINGS = ["word_embeddings", "embed_tokens", "wte"]

CASES: Mapping[str, Case] = {
    "LORA": Case("LoraConfig", {"r": 4, "lora_alpha": 6}, bases=EVERY),
    "LORA, DoRA": Case("LoraConfig", {"r": 4, "lora_alpha": 6, "use_dora": True}, bases=EVERY),
    "LORA, PiSSA": Case(
        "LoraConfig", {"r": 4, "lora_alpha": 6, "init_lora_weights": "pissa"}, noise=0.05, tolerance=5e-5, bases=EVERY
    ),
    "LORA, OLoRA": Case("LoraConfig", {"r": 4, "lora_alpha": 6, "init_lora_weights": "olora"}, noise=0.05),
    "LORA, embeddings": Case("LoraConfig", {"r": 4, "lora_alpha": 6, "target_modules": _EMBEDDINGS}, bases=EVERY),
    "ADALORA": Case("AdaLoraConfig", {"init_r": 6, "target_r": 4, "lora_alpha": 6, "total_step": 10}, bases=EVERY),
    "BEFT": Case("BeftConfig"),
    "BOFT": Case("BOFTConfig", {"boft_block_size": 4}),
    "BOFT, its biases": Case("BOFTConfig", {"boft_block_size": 4, "bias": "boft_only"}, ("bert",)),
    "C3A": Case("C3AConfig", {"block_size": 8}),
    "DEFT": Case("DeftConfig", {"r": 4, "alpha": 6, "decomposition_method": "qr"}, bases=EVERY),
    "DEFT, relu": Case("DeftConfig", {"r": 4}, bases=EVERY),
    "DELORA": Case("DeloraConfig", {"r": 4}),
    "FOURIERFT": Case("FourierFTConfig", {"n_frequency": 50}, bases=EVERY),
    "FROD": Case("FrodConfig", {"sparse_rate": 0.05, "progressbar": False}, bases=EVERY),
    "GLORA": Case("GloraConfig", {"r": 4}),
    "GLORA, vectors": Case("GloraConfig", {"config_A_B": "vector", "config_C": "vector", "config_D_E": "vector"}),
    "GRALORA": Case("GraloraConfig", {"r": 4, "gralora_k": 2, "hybrid_r": 2, "alpha": 6}, bases=EVERY),
    "HIRA": Case("HiraConfig", {"r": 4}, bases=EVERY),
    "HRA": Case("HRAConfig", {"r": 4}),
    "HRA, orthogonal": Case("HRAConfig", {"r": 4, "apply_GS": True}),
    "IA3": Case("IA3Config", {"feedforward_modules": ["output.dense", "down_proj", "mlp.c_proj"]}, bases=EVERY),
    "LN_TUNING": Case("LNTuningConfig", {"target_modules": ["LayerNorm"]}, ("bert",)),
    "LOHA": Case("LoHaConfig", {"r": 3, "alpha": 6}),
    "LOKR": Case("LoKrConfig", {"r": 2, "alpha": 6, "decompose_both": True}),
    "LOKR, full": Case("LoKrConfig", {"r": 8, "alpha": 6}),
    "MISS": Case("MissConfig", {"r": 4}),
    "MISS, bat": Case("MissConfig", {"r": 4, "init_weights": "bat"}),
    "MISS, mini": Case("MissConfig", {"r": 4, "mini_r": 4, "init_weights": "mini"}),
    "OFT": Case("OFTConfig", {"oft_block_size": 4}),
    "OFT, exact Cayley": Case("OFTConfig", {"oft_block_size": 4, "use_cayley_neumann": False, "block_share": True}),
    "OFT, constrained": Case("OFTConfig", {"oft_block_size": 4, "coft": True, "eps": 0.1}),
    "OSF": Case("OSFConfig", {"effective_rank": 12}, noise=0.05),
    "PEANUT": Case("PeanutConfig", {"r": 4, "depth": 2, "act_fn": "silu"}),
    "PVERA": Case("PveraConfig", {"r": 8}, bases=EVERY),
    "RANDLORA": Case("RandLoraConfig", {"r": 4, "randlora_alpha": 8}, bases=EVERY),
    "ROAD": Case("RoadConfig", {"group_size": 8}),
    "ROAD, road_2": Case("RoadConfig", {"group_size": 8, "variant": "road_2"}),
    "ROAD, road_4": Case("RoadConfig", {"group_size": 8, "variant": "road_4"}),
    "SHIRA": Case("ShiraConfig", {"r": 2}),
    "SUPERTUNING": Case("SupertuningConfig", {"sparsity": 0.9, "r": 2, "lora_alpha": 3}),
    "TINYLORA": Case("TinyLoraConfig", {"r": 2, "u": 8, "weight_tying": 1.0}, bases=EVERY),
    "TRAINABLE_TOKENS": Case(
        "TrainableTokensConfig", {"target_modules": _EMBEDDINGS, "token_indices": [*range(3, 30)]}, EVERY
    ),
    "UNILORA": Case("UniLoraConfig", {"r": 4, "theta_d_length": 64, "save_indices": True}, bases=EVERY),
    "VBLORA": Case("VBLoRAConfig", {"r": 4, "num_vectors": 16, "vector_length": 8, "topk": 2}, bases=EVERY),
    "VBLORA, k weights": Case(
        "VBLoRAConfig",
        {"r": 4, "num_vectors": 16, "vector_length": 8, "topk": 2, "save_only_topk_weights": True},
        bases=EVERY,
    ),
    "VERA": Case("VeraConfig", {"r": 8}, bases=EVERY),
    "WAVEFT": Case("WaveFTConfig", {"n_frequency": 50, "scaling": 3}, bases=EVERY),
    "WAVEFT, no transform": Case("WaveFTConfig", {"n_frequency": 50, "scaling": 3, "use_idwt": False}, bases=EVERY),
}


@dataclass(frozen=True)
class Opened:
    """A base in all its forms, with inputs for it; `folder` is the model's, `family` its architecture."""

    family: str
    folder: Path
    model: ae.Base
    exported: ae.Base
    runner: TorchRunner
    inputs: Mapping[str, np.ndarray]


def bases_of(case: Case) -> tuple[str, ...]:
    """Return the names of the bases for a case, including those with square matrices."""
    return tuple(f"{family}{shape}" for family in case.bases for shape in ("", SQUARE_SUFFIX))


def save_square_base(family: str, folder: Path) -> Path:
    """Write a base whose matrices are square."""
    torch.manual_seed(0)
    model = hf.AutoModel.from_config(SQUARE[family])
    with torch.no_grad():
        for parameter in model.parameters():
            is_scale = parameter.dim() == 1 and bool((parameter == 1).all())
            parameter.copy_(STD * torch.randn_like(parameter) + float(is_scale))
    model.save_pretrained(folder)
    return folder


def capture_base(folder: Path, name: str) -> None:
    """Capture and export a base, such as `gpt2` or `gpt2_square`, into an empty folder; `open_types_base` opens it."""
    family = name.removesuffix(SQUARE_SUFFIX)
    source = BASES / family if family == name else save_square_base(family, folder / "model")
    base = ae.capture(source, folder / "base.pt")
    export_onnx(base.torch, folder / "base.onnx")


def open_types_base(folder: Path, name: str) -> Opened:
    """Open what `capture_base` wrote."""
    family = name.removesuffix(SQUARE_SUFFIX)
    base = ae.open_base(folder / "base.pt")
    shape = (2, 7) if family == name else (4, 4)  # as many rows as tokens and heads
    ids = np.random.default_rng(0).integers(3, 60, shape)
    inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    if any(record.name == "token_type_ids" for record in base.inputs):
        inputs["token_type_ids"] = np.zeros_like(ids)
    source = BASES / family if family == name else folder / "model"
    return Opened(family, source, base, ae.open_base(folder / "base.onnx"), TorchRunner(base.torch), inputs)


def outputs_of_peft(case: Case, base: Opened, folder: Path) -> dict[str, np.ndarray]:
    """Save an adapter with PEFT; return the results of PEFT once it has loaded it, by output."""
    torch.manual_seed(0)
    options, targets = dict(case.options), TARGETS[base.family]
    options.setdefault("target_modules", targets)
    if "feedforward_modules" in options:
        options["feedforward_modules"] = [module for module in options["feedforward_modules"] if module in targets]
    model = peft.get_peft_model(hf.AutoModel.from_pretrained(base.folder), getattr(peft, case.config)(**options))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                if case.noise:
                    parameter.add_(case.noise * torch.randn_like(parameter))
                else:
                    parameter.normal_(std=STD)
    model.save_pretrained(folder)
    loaded = peft.PeftModel.from_pretrained(hf.AutoModel.from_pretrained(base.folder), folder).eval()
    with torch.no_grad():
        output = loaded(**{name: torch.from_numpy(array) for name, array in base.inputs.items()})
    return {name: output[name].numpy() for name in OUTPUTS if name in output}


def errors_of(case: Case, base: Opened, folder: Path) -> tuple[float, str]:
    """Return the largest difference to PEFT in both backends, and the names of the graphs.

    Each backend imports the adapter with its own form of the base, which may store matrices in another layout.
    """
    wanted = outputs_of_peft(case, base, folder)
    adapter, exported = (ae.import_peft(folder, form, dense=True, name="a") for form in (base.model, base.exported))
    plain = base.runner.run(dict(base.inputs), None)
    assert all(np.abs(plain[key] - wanted[key]).max() > 1e-3 for key in wanted), "PEFT's adapter does nothing"
    onnx = base.exported.model
    plan = plan_slots([exported], onnx.sites)
    session = open_session(insert_slots(onnx, plan), onnx.folder)
    outputs = [
        base.runner.run(dict(base.inputs), adapter),
        run_session(session, dict(base.inputs) | dict(slot_tensors(plan, exported))),
    ]
    errors = [np.abs(output[key] - wanted[key]).max() for output in outputs for key in wanted]
    return float(max(errors)), ", ".join(adapter.graphs)
