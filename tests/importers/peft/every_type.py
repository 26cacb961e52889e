"""Compare every PEFT type with its import: `make peft`.

PEFT creates each adapter on a small BERT and a small Llama, with trained tensors of standard deviation 0.2, saves it,
and loads it again; torch and ONNX Runtime must reproduce its results with the imported adapter. `--write` puts the
table into `docs/reference/peft.md`. Requires `peft`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
import transformers as hf

sys.path += [str(Path(__file__).parents[2] / "support")]

from packed import unpacked

import adapter_export as ae
from adapter_export.errors import InputError
from adapter_export.importers.peft.methods import METHODS
from adapter_export.importers.peft.peft_options import KINDS
from adapter_export.onnx_backend.base.onnx_base import open_onnx
from adapter_export.onnx_backend.model_session import open_session
from adapter_export.onnx_backend.rewrite.insert import insert_slots
from adapter_export.onnx_backend.slots import plan_slots, slot_tensors
from adapter_export.runtime.graphs import run_session
from adapter_export.torch_backend.base.to_onnx import export_onnx
from adapter_export.torch_backend.torch_runner import TorchRunner

ROOT = Path(__file__).parents[3]
BASES = unpacked("peft") / "bases"
STD = 0.2
OUTPUTS = ("last_hidden_state", "pooler_output")
TARGETS = {
    "bert": ["query", "value", "intermediate.dense", "output.dense", "pooler.dense"],
    "llama": ["q_proj", "v_proj", "o_proj", "up_proj", "down_proj"],
}


@dataclass(frozen=True)
class Case:
    """One adapter: the class of its config, its options, and those of `bases` on which PEFT makes it."""

    config: str
    options: Mapping[str, Any] = field(default_factory=dict)
    bases: tuple[str, ...] = ("bert", "llama")
    noise: float = 0.0
    """Standard deviation, instead of `STD`, of changes to tensors that must stay near their initialization."""
    tolerance: float = 2e-5


CASES: Mapping[str, Case] = {
    "LORA": Case("LoraConfig", {"r": 4, "lora_alpha": 6}),
    "LORA, DoRA": Case("LoraConfig", {"r": 4, "lora_alpha": 6, "use_dora": True}),
    "LORA, PiSSA": Case(
        "LoraConfig", {"r": 4, "lora_alpha": 6, "init_lora_weights": "pissa"}, noise=0.05, tolerance=5e-5
    ),
    "LORA, OLoRA": Case("LoraConfig", {"r": 4, "lora_alpha": 6, "init_lora_weights": "olora"}, noise=0.05),
    "ADALORA": Case("AdaLoraConfig", {"init_r": 6, "target_r": 4, "lora_alpha": 6, "total_step": 10}),
    "BEFT": Case("BeftConfig"),
    "BOFT": Case("BOFTConfig", {"boft_block_size": 4}),
    "BOFT, its biases": Case("BOFTConfig", {"boft_block_size": 4, "bias": "boft_only"}, ("bert",)),
    "C3A": Case("C3AConfig", {"block_size": 8}),
    "DEFT": Case("DeftConfig", {"r": 4, "alpha": 6, "decomposition_method": "qr"}),
    "DEFT, relu": Case("DeftConfig", {"r": 4}),
    "DELORA": Case("DeloraConfig", {"r": 4}),
    "FOURIERFT": Case("FourierFTConfig", {"n_frequency": 50}),
    "FROD": Case("FrodConfig", {"sparse_rate": 0.05, "progressbar": False}),
    "GLORA": Case("GloraConfig", {"r": 4}),
    "GLORA, vectors": Case("GloraConfig", {"config_A_B": "vector", "config_C": "vector", "config_D_E": "vector"}),
    "GRALORA": Case("GraloraConfig", {"r": 4, "gralora_k": 2, "hybrid_r": 2, "alpha": 6}),
    "HIRA": Case("HiraConfig", {"r": 4}),
    "HRA": Case("HRAConfig", {"r": 4}),
    "HRA, orthogonal": Case("HRAConfig", {"r": 4, "apply_GS": True}),
    "IA3": Case("IA3Config", {"feedforward_modules": ["output.dense", "down_proj"]}),
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
    "PVERA": Case("PveraConfig", {"r": 8}),
    "RANDLORA": Case("RandLoraConfig", {"r": 4, "randlora_alpha": 8}),
    "ROAD": Case("RoadConfig", {"group_size": 8}),
    "ROAD, road_2": Case("RoadConfig", {"group_size": 8, "variant": "road_2"}),
    "ROAD, road_4": Case("RoadConfig", {"group_size": 8, "variant": "road_4"}),
    "SHIRA": Case("ShiraConfig", {"r": 2}),
    "SUPERTUNING": Case("SupertuningConfig", {"sparsity": 0.9, "r": 2, "lora_alpha": 3}),
    "TINYLORA": Case("TinyLoraConfig", {"r": 2, "u": 8, "weight_tying": 1.0}),
    "UNILORA": Case("UniLoraConfig", {"r": 4, "theta_d_length": 64, "save_indices": True}),
    "VBLORA": Case("VBLoRAConfig", {"r": 4, "num_vectors": 16, "vector_length": 8, "topk": 2}),
    "VBLORA, k weights": Case(
        "VBLoRAConfig", {"r": 4, "num_vectors": 16, "vector_length": 8, "topk": 2, "save_only_topk_weights": True}
    ),
    "VERA": Case("VeraConfig", {"r": 8}),
    "WAVEFT": Case("WaveFTConfig", {"n_frequency": 50, "scaling": 3}),
    "WAVEFT, no transform": Case("WaveFTConfig", {"n_frequency": 50, "scaling": 3, "use_idwt": False}),
}


@dataclass(frozen=True)
class Opened:
    """A base in all its forms, with inputs for it."""

    model: ae.Base
    runner: TorchRunner
    onnx: Any
    inputs: Mapping[str, np.ndarray]


def opened(name: str, folder: Path) -> Opened:
    """The base of a name, exported into a folder."""
    folder.mkdir()
    base = ae.capture(BASES / name, folder / f"{name}.pt")
    export_onnx(base.torch, folder / f"{name}.onnx")
    ids = np.random.default_rng(0).integers(3, 60, (2, 7))
    inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    if any(record.name == "token_type_ids" for record in base.inputs):
        inputs["token_type_ids"] = np.zeros_like(ids)
    return Opened(base, TorchRunner(base.torch), open_onnx(folder / f"{name}.onnx"), inputs)


def saved(case: Case, base: str, folder: Path, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Save an adapter with PEFT; returns what PEFT computes once it has loaded it, by output."""
    torch.manual_seed(0)
    options = dict(case.options)
    options.setdefault("target_modules", TARGETS[base])
    if "feedforward_modules" in options:
        options["feedforward_modules"] = [one for one in options["feedforward_modules"] if one in TARGETS[base]]
    model = peft.get_peft_model(hf.AutoModel.from_pretrained(BASES / base), getattr(peft, case.config)(**options))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                if case.noise:
                    parameter.add_(case.noise * torch.randn_like(parameter))
                else:
                    parameter.normal_(std=STD)
    model.save_pretrained(folder)
    loaded = peft.PeftModel.from_pretrained(hf.AutoModel.from_pretrained(BASES / base), folder).eval()
    with torch.no_grad():
        output = loaded(**{name: torch.from_numpy(array) for name, array in inputs.items()})
    return {name: output[name].numpy() for name in OUTPUTS if name in output}


def errors_of(case: Case, base: Opened, name: str, folder: Path) -> tuple[float, str]:
    """The largest difference to PEFT in both backends, and the sorts of graphs that came of it."""
    wanted = saved(case, name, folder, base.inputs)
    adapter = ae.import_peft(folder, base.model, dense=True, name="a")
    plain = base.runner.run(dict(base.inputs), None)
    assert all(np.abs(plain[key] - wanted[key]).max() > 1e-3 for key in wanted), "PEFT's adapter does nothing"
    plan = plan_slots([adapter], base.onnx.sites)
    session = open_session(insert_slots(base.onnx, plan), base.onnx.folder)
    outputs = [
        base.runner.run(dict(base.inputs), adapter),
        run_session(session, dict(base.inputs) | dict(slot_tensors(plan, adapter))),
    ]
    errors = [np.abs(output[key] - wanted[key]).max() for output in outputs for key in wanted]
    return float(max(errors)), ", ".join(adapter.graphs)


FORMULAS = {
    "LORA": "`W + s·B A`",
    "IA3": "`l ⊙ (W u + b)`, or `W (l ⊙ u) + b` (Liu et al. 2022, §3.3)",
    "LN_TUNING": "`w'/w ⊙ v + (b' − b·w'/w)` behind norms `v` of weight w and bias b (Zhao et al. 2023)",
}
"""Compute the types that are handled separately."""


def write(rows: Sequence[tuple[str, str, str, float]]) -> None:
    """Put the table into the page, between its marks: all types that PEFT has, those that are refused last."""
    page = ROOT / "docs" / "reference" / "peft.md"
    begin, end = "<!-- peft types: begin -->", "<!-- peft types: end -->"
    lines = ["| type | formula, or why not | graphs | largest error |", "|---|---|---|---|"]
    for kind in sorted({title.partition(",")[0] for title, *_ in rows}):
        own = [row for row in rows if row[0].partition(",")[0] == kind]
        doc = METHODS[kind].formula.__doc__ if kind in METHODS else FORMULAS[kind]
        formula = " ".join((doc or "").split("\n\n")[0].split()).removesuffix(".")
        graphs = ", ".join(f"`{name}`" for name in dict.fromkeys(name for row in own for name in row[1].split(", ")))
        lines.append(f"| `{kind}` | {formula} | {graphs} | {max(row[3] for row in own):.0e} |")
    lines += [f"| `{kind}` | refused: {why} | – | – |" for kind, why in sorted(KINDS.items())]
    known = {kind.value for kind in peft.PeftType}
    assert known == {line.split("`")[1] for line in lines[2:]}, "a type is in no row"
    before, _, rest = page.read_text().partition(begin)
    page.write_text("\n".join([before + begin, "", *lines, "", end]) + rest.partition(end)[2])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", default="", help="types whose names begin so")
    parser.add_argument("--write", action="store_true")
    chosen = parser.parse_args()
    warnings.simplefilter("ignore")
    hf.utils.logging.disable_progress_bar()
    rows, failed = [], 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bases = {base: opened(base, folder / base) for base in TARGETS}
        for number, (title, case) in enumerate(CASES.items()):
            if not title.startswith(chosen.only):
                continue
            found, graphs, why = 0.0, "", ""
            for base in case.bases:
                try:
                    error, graphs = errors_of(case, bases[base], base, folder / f"{number}_{base}")
                    found = max(found, error)
                except (InputError, AssertionError, ValueError, RuntimeError, TypeError, KeyError) as error:
                    why += f" {base}: {type(error).__name__}: {str(error)[:600]}"
            ok = not why and found < case.tolerance
            failed += not ok
            print(f"{title:24} {'ok  ' if ok else 'FAIL'} {found:.1e} {graphs} {why}", flush=True)
            rows.append((title, graphs, ", ".join(case.bases), found))
    print(f"{len({title.split(',')[0] for title in CASES})} types, {failed} failed; refused: {', '.join(KINDS)}")
    if chosen.write and not failed:
        write(rows)
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
