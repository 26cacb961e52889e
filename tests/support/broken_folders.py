"""Adapters that PEFT saved, and folders broken in the ways of public threads; each has the cause that explains it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
import transformers as hf
from safetensors.numpy import load_file, save_file
from torch import nn

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
SIZES = {"vocab_size": 60, "max_position_embeddings": 32, "initializer_range": 0.2, "num_hidden_layers": 2}
BERT_SIZES = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48}
LLAMA_SIZES = {**BERT_SIZES, "num_key_value_heads": 2}

Arrays = dict[str, np.ndarray]


def llama(**sizes: Any) -> nn.Module:
    torch.manual_seed(0)
    return hf.LlamaForCausalLM(hf.LlamaConfig(**{**SIZES, **LLAMA_SIZES, **sizes})).eval()


def gpt2() -> nn.Module:
    torch.manual_seed(0)
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32, "vocab_size": 60, "initializer_range": 0.2}
    ids = dict.fromkeys(("bos_token_id", "eos_token_id"), 0)
    return hf.GPT2LMHeadModel(hf.GPT2Config(**sizes, **ids)).eval()


def bert(labels: int = 3, **sizes: Any) -> nn.Module:
    torch.manual_seed(0)
    config = hf.BertConfig(**{**SIZES, **BERT_SIZES, **sizes}, num_labels=labels)
    return hf.BertForSequenceClassification(config).eval()


BASES: Mapping[str, Callable[[], nn.Module]] = {"llama": llama, "gpt2": gpt2, "bert": bert}


def lora(**options: Any) -> peft.LoraConfig:
    return peft.LoraConfig(
        **{"r": 4, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM", **options}
    )


def wrapped(model: nn.Module, config: peft.PeftConfig, *, trained: bool = True) -> Any:
    """The model with an adapter whose trained values have a standard deviation of 0.2."""
    made = peft.get_peft_model(model, config)
    if trained:
        fill(made)
    return made


def fill(model: Any) -> None:
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.2)


def saved(folder: Path, model: nn.Module, config: peft.PeftConfig, *, trained: bool = True) -> Path:
    wrapped(model, config, trained=trained).save_pretrained(folder)
    return folder


def changed_tensors(folder: Path, change: Callable[[Arrays], Arrays]) -> Path:
    tensors = {key: np.ascontiguousarray(value) for key, value in change(load_file(folder / TENSORS)).items()}
    save_file(tensors, folder / TENSORS)
    return folder


def changed_config(folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    config = json.loads((folder / CONFIG).read_text())
    change(config)
    (folder / CONFIG).write_text(json.dumps(config))
    return folder


def state_dict(folder: Path, model: nn.Module, keep: Callable[[str], bool]) -> Path:
    """Replace the tensors by those of a state dict, as scripts do that call `torch.save` themselves."""
    state = {key: value.numpy().copy() for key, value in model.state_dict().items() if keep(key)}
    return changed_tensors(folder, lambda _: state)


# Folders by name. Each receives an empty folder's path.


def _untrained(folder: Path) -> Path:
    return saved(folder, llama(), lora(), trained=False)


def _compiled(folder: Path) -> Path:
    """`torch.compile` wraps the model, and `get_peft_model_state_dict` of a wrapped model keeps its name."""
    model = wrapped(llama(), lora())
    model.save_pretrained(folder)
    return state_dict(folder, torch.compile(model, backend="eager"), lambda key: "lora_" in key)


def _no_prefix(folder: Path) -> Path:
    plain = saved(folder, llama(), lora())
    return changed_tensors(plain, lambda old: {key.removeprefix("base_model.model."): old[key] for key in old})


def _transposed(folder: Path) -> Path:
    made = saved(folder, gpt2(), lora(target_modules=["c_attn", "attn.c_proj"], fan_in_fan_out=True))
    return changed_tensors(made, lambda old: {key: value.T for key, value in old.items()})


def _no_alpha(folder: Path) -> Path:
    return changed_config(saved(folder, llama(), lora()), lambda config: config.pop("lora_alpha"))


def _alpha_tensors(folder: Path) -> Path:
    """As kohya's scripts save it."""
    made = saved(folder, llama(), lora())

    def with_alphas(old: Arrays) -> Arrays:
        paths = {key.partition(".lora_")[0] for key in old}
        return old | {f"{path}.alpha": np.array(16, np.float32) for path in paths}

    return changed_tensors(made, with_alphas)


def _quantized(folder: Path) -> Path:
    """The state dict of a model that bitsandbytes loaded in four bits, reduced to one layer."""
    made = saved(folder, llama(), lora())
    path = "base_model.model.model.layers.0.self_attn.q_proj.base_layer.weight"
    packed: Arrays = {
        path: np.zeros((512, 1), np.uint8),
        f"{path}.absmax": np.zeros(16, np.float32),
        f"{path}.quant_map": np.zeros(16, np.float32),
        f"{path}.quant_state.bitsandbytes__nf4": np.zeros(80, np.uint8),
    }
    return changed_tensors(made, lambda old: old | packed)


def _missing_shard(folder: Path) -> Path:
    made = saved(folder, llama(), lora())
    tensors = load_file(made / TENSORS)
    first = dict(list(tensors.items())[:4])
    save_file(first, made / "adapter_model-00001-of-00002.safetensors")
    (made / TENSORS).unlink()
    names = {key: f"adapter_model-0000{1 if key in first else 2}-of-00002.safetensors" for key in tensors}
    (made / "adapter_model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    return made


def _lost_module(folder: Path) -> Path:
    lost = "model.layers.1.self_attn.v_proj"
    return changed_tensors(
        saved(folder, llama(), lora()), lambda old: {key: old[key] for key in old if lost not in key}
    )


def _lost_half(folder: Path) -> Path:
    lost = "layers.1.self_attn.v_proj.lora_B"
    return changed_tensors(
        saved(folder, llama(), lora()), lambda old: {key: old[key] for key in old if lost not in key}
    )


def _two_adapters(folder: Path) -> Path:
    model = wrapped(llama(), lora())
    model.add_adapter("second", lora(r=2))
    fill(model)
    model.save_pretrained(folder, selected_adapters=["default"])
    return state_dict(folder, model, lambda key: "lora_" in key)


def _name_in_keys(folder: Path) -> Path:
    model = wrapped(llama(), lora())
    model.save_pretrained(folder)
    return state_dict(folder, model, lambda key: "lora_" in key)


def _vocabulary(folder: Path) -> Path:
    """PEFT saves the embeddings if tokens were added."""
    model = llama()
    model.resize_token_embeddings(64)
    wrapped(model, lora(modules_to_save=["embed_tokens", "lm_head"])).save_pretrained(folder)
    return folder


def _more_layers(folder: Path) -> Path:
    return saved(folder, llama(num_hidden_layers=3), lora())


def _fewer_layers(folder: Path) -> Path:
    return saved(folder, llama(num_hidden_layers=1), lora())


def _wider(folder: Path) -> Path:
    return saved(folder, llama(hidden_size=64), lora())


def _other_architecture(folder: Path) -> Path:
    """Without a task, PEFT records the class."""
    return saved(folder, bert(), lora(target_modules=["query"], task_type=None))


def _empty(folder: Path) -> Path:
    """DeepSpeed ZeRO-3 leaves empty tensors on the processes that do not own them."""
    made = saved(folder, llama(), lora())
    return changed_tensors(made, lambda old: {key: np.zeros(0, np.float32) for key in old})


def _diverged(folder: Path) -> Path:
    made = saved(folder, llama(), lora())
    return changed_tensors(made, lambda old: {key: value * np.float32("nan") for key, value in old.items()})


def _rank(folder: Path) -> Path:
    return changed_config(saved(folder, llama(), lora()), lambda config: config.update(r=8))


def _mlx(folder: Path) -> Path:
    """As mlx-lm writes it: other names, both matrices transposed, and a scale."""
    made = saved(folder, llama(), lora())
    (made / CONFIG).write_text(json.dumps({"fine_tune_type": "lora", "lora_parameters": {"rank": 4, "scale": 4.0}}))

    def renamed(key: str) -> str:
        return (
            key.removeprefix("base_model.model.").replace("lora_A.weight", "lora_a").replace("lora_B.weight", "lora_b")
        )

    return changed_tensors(made, lambda old: {renamed(key): value.T for key, value in old.items()})


def _pointer(folder: Path) -> Path:
    made = saved(folder, llama(), lora())
    (made / TENSORS).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 4096\n")
    return made


def _no_config(folder: Path) -> Path:
    made = saved(folder, llama(), lora())
    (made / CONFIG).unlink()
    return made


def _whole_model(folder: Path) -> Path:
    wrapped(llama(), lora()).merge_and_unload().save_pretrained(folder)
    return folder


def _several(folder: Path) -> Path:
    for name in ("one", "two"):
        saved(folder / name, llama(), lora())
    return folder


def _prompt_tuning(folder: Path) -> Path:
    return saved(folder, llama(), peft.PromptTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM"))


def _good(folder: Path) -> Path:
    return saved(folder, llama(), lora())


def _rslora(folder: Path) -> Path:
    return saved(folder, llama(), lora(use_rslora=True))


def _alpha_pattern(folder: Path) -> Path:
    return saved(folder, llama(), lora(alpha_pattern={"v_proj": 64}))


def _other_class(folder: Path) -> Path:
    """Trained on the bare model, and opened as a language model."""
    return saved(folder, llama().model, lora(task_type=None)) and changed_config(
        folder, lambda config: config.update(task_type="CAUSAL_LM", auto_mapping=None)
    )


def _idle_layer(folder: Path) -> Path:
    made = saved(folder, llama(), lora())
    return changed_tensors(
        made, lambda old: {key: value * ("layers.0" in key or "lora_B" not in key) for key, value in old.items()}
    )


def _labels(folder: Path) -> Path:
    return saved(folder, bert(5), lora(target_modules=["query"], task_type="SEQ_CLS"))


def _dora(folder: Path) -> Path:
    return saved(folder, llama(), lora(use_dora=True))


def _ia3(folder: Path) -> Path:
    options = {"target_modules": ["k_proj", "down_proj"], "feedforward_modules": ["down_proj"]}
    return saved(folder, llama(), peft.IA3Config(**options, task_type="CAUSAL_LM"))


@dataclass(frozen=True)
class Folder:
    """A folder by its maker: the base that it is examined with, and the names of its causes."""

    make: Callable[[Path], Path]
    causes: tuple[str, ...] = ()
    base: str = "llama"


BROKEN: Mapping[str, Folder] = {
    "untrained": Folder(_untrained, ("untrained",)),
    "compiled": Folder(_compiled, ("adapter-name-in-keys", "wrong-prefix")),
    "no_prefix": Folder(_no_prefix, ("wrong-prefix",)),
    "transposed": Folder(_transposed, ("transposed",), "gpt2"),
    "no_alpha": Folder(_no_alpha, ("alpha-missing",)),
    "alpha_tensors": Folder(_alpha_tensors, ("alpha-in-tensors",)),
    "quantized": Folder(_quantized, ("quantized-base",)),
    "missing_shard": Folder(_missing_shard, ("missing-shard",)),
    "lost_module": Folder(_lost_module, ("missing-tensors",)),
    "lost_half": Folder(_lost_half, ("missing-tensors",)),
    "two_adapters": Folder(_two_adapters, ("two-adapters",)),
    "name_in_keys": Folder(_name_in_keys, ("adapter-name-in-keys",)),
    "vocabulary": Folder(_vocabulary, ("other-vocabulary",)),
    "more_layers": Folder(_more_layers, ("other-layers",)),
    "fewer_layers": Folder(_fewer_layers, ("other-layers",)),
    "wider": Folder(_wider, ("other-width",)),
    "architecture": Folder(_other_architecture, ("other-architecture",)),
    "empty": Folder(_empty, ("empty-tensors",)),
    "diverged": Folder(_diverged, ("not-finite",)),
    "rank": Folder(_rank, ("rank",)),
    "mlx": Folder(_mlx, ("mlx-adapter",)),
    "pointer": Folder(_pointer, ("pointer-file",)),
    "no_config": Folder(_no_config, ("missing-config",)),
    "whole_model": Folder(_whole_model, ("whole-model",)),
    "several": Folder(_several, ("several-adapters",)),
    "prompt_tuning": Folder(_prompt_tuning, ("not-expressible",)),
    "merged_again": Folder(_good, ("already-merged",), "merged"),
}
"""Folders that do not work, with the broken causes that doctor must name, and no others."""

WORKING: Mapping[str, Folder] = {
    "good": Folder(_good),
    "dora": Folder(_dora),
    "ia3": Folder(_ia3),
    "rslora": Folder(_rslora, ("other-strength",)),
    "alpha_pattern": Folder(_alpha_pattern, ("other-strength", "other-strength")),
    "other_class": Folder(_other_class, ("ignored-by-peft", "ignored-elsewhere")),
    "idle_layer": Folder(_idle_layer, ("idle-sites",)),
    "labels": Folder(_labels, ("head-of-other-labels",), "bert"),
}
"""Folders that work here, with the cautions about other tools."""

FOLDERS: Mapping[str, Folder] = {**BROKEN, **WORKING}


def write_bases(folder: Path) -> None:
    """Write all bases, among them the model with the adapter `good` merged."""
    for name, make in BASES.items():
        make().save_pretrained(folder / name)
    wrapped(llama(), lora()).merge_and_unload().save_pretrained(folder / "merged")


def copied(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to))
