"""PEFT types with a fixed change of the weights: formulas of most, tensors of LoRA and IA3."""

from __future__ import annotations

from collections.abc import Mapping

from adapter_export.plugins.formats.importers.peft.methods import full_rank, low_rank
from adapter_export.plugins.formats.importers.peft.methods.method import Change, IncompleteError, Layer, Method, Shared
from adapter_export.plugins.formats.importers.tensor_map import Recipes, as_it_is, flattened, transposed

__all__ = ["IA3", "LORA", "METHODS", "Change", "IncompleteError", "Layer", "Method", "Shared"]


def _reads(*keys: str) -> frozenset[str]:
    return frozenset(keys)


METHODS: Mapping[str, Method] = {
    "ADALORA": Method(low_rank.adalora, "lora_|ranknum", _reads("lora_alpha", "init_r", "rank_pattern")),
    "BEFT": Method(full_rank.beft, "beft_"),
    "BOFT": Method(full_rank.boft, "boft_"),
    "C3A": Method(full_rank.c3a, "c3a_"),
    "DEFT": Method(low_rank.deft, "deft_", _reads("decomposition_method", "para", "alpha")),
    "DELORA": Method(low_rank.delora, "delora_"),
    "FOURIERFT": Method(full_rank.fourierft, "fourierft_", _reads("scaling", "random_loc_seed")),
    "FROD": Method(full_rank.frod, "frod_"),
    "GLORA": Method(full_rank.glora, "glora_"),
    "GRALORA": Method(low_rank.gralora, "gralora_", _reads("alpha")),
    "HIRA": Method(full_rank.hira, "hira_"),
    "HRA": Method(low_rank.hra, "hra_", _reads("apply_GS")),
    "LOHA": Method(low_rank.loha, "hada_", _reads("alpha", "alpha_pattern")),
    "LOKR": Method(low_rank.lokr, "lokr_", _reads("r", "rank_pattern", "alpha", "alpha_pattern")),
    "MISS": Method(low_rank.miss, "miss_", _reads("init_weights")),
    "OFT": Method(
        full_rank.oft, "oft_", _reads("coft", "eps", "use_cayley_neumann", "num_cayley_neumann_terms", "block_share")
    ),
    "OSF": Method(full_rank.osf, "osf_"),
    "PEANUT": Method(low_rank.peanut, "peanut_", _reads("depth", "act_fn", "scaling")),
    "PVERA": Method(low_rank.pvera, "pvera_", _reads("sample_at_inference")),
    "RANDLORA": Method(low_rank.randlora, "randlora_", _reads("randlora_alpha")),
    "ROAD": Method(full_rank.road, "road_", _reads("variant", "group_size")),
    "SHIRA": Method(full_rank.shira, "shira_"),
    "SUPERTUNING": Method(full_rank.supertuning, "supertuning_", _reads("lora_alpha")),
    "TINYLORA": Method(low_rank.tinylora, "tinylora_"),
    "UNILORA": Method(low_rank.unilora, "unilora_"),
    "VBLORA": Method(low_rank.vblora, "vblora_", _reads("topk")),
    "VERA": Method(low_rank.vera, "vera_"),
    "WAVEFT": Method(full_rank.waveft, "waveft_", _reads("scaling", "random_loc_seed", "wavelet_family", "use_idwt")),
}
"""Methods by `peft_type`. LoRA, IA3 and trained norms are handled in `peft_importer`."""

LORA: Recipes = {
    "lora_A.weight": transposed("lora_A.weight", ("d_in", "r")),
    "lora_B.weight": transposed("lora_B.weight", ("r", "d")),
    "lora_B.bias": as_it_is("lora_B.bias", ("d",)),
}
"""Recipes for the parameters of `lora_graph`, from LoRA's tensors."""

IA3: Mapping[str, Recipes] = {
    "h": {"scaling.weight": flattened("ia3_l", ("d", 1))},
    "u": {"scaling.weight": flattened("ia3_l", (1, "d_in"))},
}
"""Recipes for the parameter of `ia3_graph`, from IA3's vector: scaling a layer's output `h`, or its input `u`."""
