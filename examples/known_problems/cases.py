"""Known problems of adapters: the other library's answer, then ours.

Each case loads a folder with the library itself, and returns whether it failed in silence.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import tiny_models as tiny
import torch
from transformers import AutoModel

import adapter_export as ae
from adapter_export.torch_backend.attach import attach


@dataclass(frozen=True)
class Outcome:
    """Result of a case: `silent` if the other library answers wrongly without an error; `ours` names our causes."""

    other: str
    silent: bool
    ours: str
    warned: bool = False

    @property
    def manner(self) -> str:
        """Manner of the failure."""
        return ("with a warning" if self.warned else "in silence") if self.silent else "with an error"


@dataclass(frozen=True)
class Case:
    """A problem: its thread, one line, and the function that shows it in an empty folder."""

    thread: str
    problem: str
    show: Callable[[Path], Outcome]


def _loaded(folder: Path, model: Any) -> tuple[Any, bool]:
    """Load an adapter with PEFT; return the model, and whether PEFT warned of keys."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        made = peft.PeftModel.from_pretrained(model, str(folder))
    return made, any("adapter keys" in str(warning.message) for warning in caught)


def _base(folder: Path, model: Any) -> Path:
    return tiny.saved(folder / "base", model)


def _causes(folder: Path, base: Path) -> str:
    diagnosis = ae.doctor(folder, base)
    names = ", ".join(cause.name for cause in diagnosis.causes)
    return f"`doctor`: {names}" if names else "`doctor`: works"


def _against_base(folder: Path, base: Path) -> Outcome:
    """Compare PEFT's answer with that of the base without the adapter."""
    model, warned = _loaded(folder, tiny.llama())
    same = torch.equal(tiny.outputs(model), tiny.outputs(tiny.llama()))
    other = "PEFT answers as the base" if same else "PEFT changes the base"
    return Outcome(other, same, _causes(folder, base), warned)


def _against_trained(folder: Path, base: Path, trained: Any) -> Outcome:
    """Compare PEFT's answer with that of the model in training."""
    expected = tiny.outputs(trained)
    model, warned = _loaded(folder, tiny.llama())
    distance = float((tiny.outputs(model) - expected).abs().max() / expected.abs().max())
    return Outcome(f"PEFT's logits are {distance:.0%} off", distance > 0.01, _causes(folder, base), warned)


def compiled(folder: Path) -> Outcome:
    model = tiny.adapted(tiny.llama())
    path = tiny.saved(folder / "adapter", model)
    state = torch.compile(model, backend="eager").state_dict()
    kept = {key.replace(".default.", "."): value for key, value in state.items() if "lora_" in key}
    tiny.change_tensors(path, lambda _: kept)
    return _against_base(path, _base(folder, tiny.llama()))


def other_class(folder: Path) -> Outcome:
    base = _base(folder, tiny.llama())
    trained = tiny.adapted(tiny.llama())
    path = tiny.saved(folder / "adapter", trained)
    expected = tiny.outputs(trained.base_model.model.model)  # the last hidden state of the trained model
    bare = AutoModel.from_pretrained(base)
    unadapted = tiny.outputs(bare)
    model, warned = _loaded(path, bare)
    silent = torch.equal(tiny.outputs(model), unadapted)
    archive = ae.capture(base, folder / "bare.pt", bare=True)
    adapter = ae.import_peft(path, archive)
    with torch.no_grad():
        hidden = attach(archive.torch, adapter, sites=archive.sites.map).hidden(
            input_ids=tiny.IDS, attention_mask=torch.ones_like(tiny.IDS)
        )
    distance = float((hidden - expected).abs().max() / expected.abs().max())
    return Outcome("PEFT answers as the base", silent, f"`import`: the trained answer, {distance:.0e} off", warned)


def untrained(folder: Path) -> Outcome:
    path = tiny.saved(folder / "adapter", tiny.adapted(tiny.llama(), trained=False))
    return _against_base(path, _base(folder, tiny.llama()))


def alpha_missing(folder: Path) -> Outcome:
    trained = tiny.adapted(tiny.llama())
    path = tiny.change_config(tiny.saved(folder / "adapter", trained), lambda config: config.pop("lora_alpha"))
    return _against_trained(path, _base(folder, tiny.llama()), trained)


def alpha_tensors(folder: Path) -> Outcome:
    trained = tiny.adapted(tiny.llama(), lora_alpha=32)
    path = tiny.saved(folder / "adapter", trained)

    def with_alphas(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return tensors | {f"{key.partition('.lora_')[0]}.alpha": torch.tensor(32.0) for key in tensors}

    tiny.change_tensors(path, with_alphas)
    tiny.change_config(path, lambda config: config.update(lora_alpha=4))  # converters write alpha = rank
    return _against_trained(path, _base(folder, tiny.llama()), trained)


def more_layers(folder: Path) -> Outcome:
    trained = tiny.adapted(tiny.llama(3))
    path = tiny.saved(folder / "adapter", trained)
    return _against_trained(path, _base(folder, tiny.llama()), trained)


def merged_again(folder: Path) -> Outcome:
    trained = tiny.adapted(tiny.llama())
    path = tiny.saved(folder / "adapter", trained)
    expected = tiny.outputs(trained)
    merged = trained.merge_and_unload()
    base = _base(folder, merged)
    model, warned = _loaded(path, merged)
    distance = float((tiny.outputs(model) - expected).abs().max() / expected.abs().max())
    return Outcome(f"PEFT's logits are {distance:.0%} off", distance > 0.01, _causes(path, base), warned)


def lost_module(folder: Path) -> Outcome:
    trained = tiny.adapted(tiny.llama())
    path = tiny.saved(folder / "adapter", trained)
    tiny.change_tensors(path, lambda old: {key: value for key, value in old.items() if "layers.1" not in key})
    return _against_trained(path, _base(folder, tiny.llama()), trained)


def empty_tensors(folder: Path) -> Outcome:
    path = tiny.saved(folder / "adapter", tiny.adapted(tiny.llama()))
    tiny.change_tensors(path, lambda old: {key: torch.zeros(0) for key in old})
    return _refused(path, _base(folder, tiny.llama()))


def other_vocabulary(folder: Path) -> Outcome:
    model = tiny.llama()
    model.resize_token_embeddings(64, mean_resizing=False)
    path = tiny.saved(folder / "adapter", tiny.adapted(model, modules_to_save=["embed_tokens", "lm_head"]))
    return _refused(path, _base(folder, tiny.llama()))


def _refused(path: Path, base: Path) -> Outcome:
    try:
        _loaded(path, tiny.llama())
    except RuntimeError as error:
        mismatch = next(line.strip() for line in str(error).splitlines() if "size mismatch" in line)
        return Outcome(f"PEFT refuses: {mismatch.split(':')[0]}", False, _causes(path, base))
    return Outcome("PEFT loads it", True, _causes(path, base))


def mixed_rows(folder: Path) -> Outcome:
    """A LoRA with 3 labels, a DoRA with 5, and the base's own rows, in one call."""
    kinds: Mapping[str, tuple[int, dict[str, Any]]] = {"three": (3, {}), "five": (5, {"use_dora": True})}
    options = {"target_modules": ["query", "value"], "task_type": "SEQ_CLS"}
    trained = {
        name: tiny.adapted(tiny.bert(labels), labels, **options, **more) for name, (labels, more) in kinds.items()
    }
    folders = {name: tiny.saved(folder / name, model) for name, model in trained.items()}
    other = "PEFT loads both"
    try:
        peft.PeftModel.from_pretrained(tiny.bert(3), str(folders["three"])).load_adapter(str(folders["five"]), "five")
    except RuntimeError:
        other = "PEFT refuses the second adapter"
    base = ae.open_base(tiny.saved(folder / "base", tiny.bert(3).base_model))
    adapters = [ae.import_peft(path, base, name=name, task="single_label") for name, path in folders.items()]
    rows = _bank(folder / "bundle", base, adapters).run(_inputs(), adapters=["three", "five"])["logits"]
    errors = [
        float((torch.as_tensor(rows[number][:labels]) - tiny.outputs(trained[name])[0]).abs().max())
        for number, (name, (labels, _)) in enumerate(kinds.items())
    ]
    return Outcome(other, False, f"both rows in one call of a bank, {max(errors):.0e} off")


def mixed_ia3(folder: Path) -> Outcome:
    """A row of the base beside a row with an IA3."""
    config = peft.IA3Config(target_modules=["key", "output.dense"], feedforward_modules=["output.dense"])
    model = tiny.filled(peft.get_peft_model(tiny.bert(3).base_model, config))
    path, unadapted = tiny.saved(folder / "ia3", model), tiny.bert(3).base_model
    expected = (tiny.outputs(model)[0], tiny.outputs(unadapted)[0])
    rows = tiny.outputs(model, tiny.IDS.repeat(2, 1), adapter_names=["default", "__base__"])
    silent = not torch.allclose(rows[1], expected[1], atol=1e-4)
    base = ae.open_base(tiny.saved(folder / "base", unadapted))
    session = _bank(folder / "bundle", base, [ae.import_peft(path, base, name="ia3")])
    ours = session.run(_inputs(), adapters=["ia3", None])["last_hidden_state"]
    error = max(float((torch.as_tensor(row) - right).abs().max()) for row, right in zip(ours, expected, strict=True))
    other = "PEFT adapts the base's row, too" if silent else "PEFT answers each row"
    return Outcome(other, silent, f"both rows in one call of a bank, {error:.0e} off")


def _bank(folder: Path, base: Any, adapters: Any) -> Any:
    ae.build(base, adapters, folder, max_tokens=16)
    return ae.open_bundle(folder).session()


def _inputs() -> dict[str, Any]:
    """Return two equal rows."""
    ids = tiny.IDS.repeat(2, 1).numpy()
    return {"input_ids": ids, "attention_mask": 0 * ids + 1, "token_type_ids": 0 * ids}


CASES: Mapping[str, Case] = {
    "compiled": Case("MakazhanAlpamys/Soup/issues/335", "keys saved from a compiled model", compiled),
    "other_class": Case(
        "huggingface/transformers/issues/36594", "trained on the language model, opened as the bare one", other_class
    ),
    "untrained": Case("huggingface/peft/issues/1402", "`lora_B` is zero after training", untrained),
    "alpha_missing": Case("invergent-ai/surogate/issues/173", "a config without `lora_alpha`", alpha_missing),
    "alpha_tensors": Case("sgl-project/sglang/pull/16935", "alpha stored as tensors", alpha_tensors),
    "more_layers": Case("huggingface/peft/issues/1932", "an adapter of a model with more layers", more_layers),
    "lost_module": Case("huggingface/peft/pull/2118", "tensors of one layer are missing", lost_module),
    "merged_again": Case("huggingface/peft/issues/1381", "a merged adapter loaded again", merged_again),
    "empty_tensors": Case("huggingface/peft/issues/2500", "empty tensors of DeepSpeed ZeRO-3", empty_tensors),
    "other_vocabulary": Case("hiyouga/LlamaFactory/issues/3125", "tokens were added in training", other_vocabulary),
    "mixed_rows": Case("vllm-project/vllm/issues/57766", "classifiers of 3 and 5 labels in one batch", mixed_rows),
    "mixed_ia3": Case("huggingface/peft/pull/1558", "rows of the base beside rows with IA3", mixed_ia3),
}
"""Cases by name; threads are addresses on GitHub."""
