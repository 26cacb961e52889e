"""PEFT types with a low-rank change of a weight, the product of `up` [out, r] and `down` [r, in].

Each function implements `get_delta_weight` of `peft/tuners/<type>/layer.py` in PEFT 0.21, in float64, before the
multiplication.
"""

from __future__ import annotations

import math

import numpy as np

from adapter_export.errors import AdapterError, UsageError
from adapter_export.graph.numpy_lowering import activation
from adapter_export.graph.ops import activation_named
from adapter_export.plugins.formats.importers.peft.methods.method import Change, Layer, Matrix

_SAVED_AGAIN = "get the file from its source again"
_PROJECTION = "load it in PEFT, set `save_projection=True` in its config, and save it again"


def lora(layer: Layer) -> Change:
    """`W + s·B A`, with DoRA's magnitudes, and initializations subtracted from the base's weights.

    DoRA (Liu et al. 2024, §4): `m ⊙ (W + s·B A) / ‖W + s·B A‖`, norms over the rows. PiSSA (Meng et al. 2024, §3) and
    OLoRA (Büyükakyüz 2024, §3) subtract the initialization from W: its best approximation of rank r, or the first r
    columns and rows of its QR decomposition, times s.
    """
    down, up, rank = layer["lora_A.weight"], layer["lora_B.weight"], len(layer["lora_A.weight"])
    alpha = layer.config.number_at(layer.path, "lora_alpha", "alpha_pattern", 8)
    factor = alpha / (math.sqrt(rank) if layer.config.flag("use_rslora") else rank)
    up, own_bias, start = factor * up, layer.get("lora_B.bias"), layer.config.values.get("init_lora_weights")
    if start == "pissa":
        left, sizes, right = np.linalg.svd(layer.weight, full_matrices=False)
        up, down = np.hstack([up, -left[:, :rank] * sizes[:rank]]), np.vstack([down, right[:rank]])
    elif start == "olora":
        left, right = np.linalg.qr(layer.weight)
        up, down = np.hstack([up, -factor * left[:, :rank]]), np.vstack([down, right[:rank]])
    bias = None if own_bias is None else factor * own_bias + (0 if layer.bias is None else layer.bias)
    if "lora_magnitude_vector" not in layer.keys:
        return Change(up=up, down=down, bias=bias)
    scale = layer["lora_magnitude_vector"] / np.linalg.norm(layer.weight + up @ down, axis=1)
    return Change(scale=scale, up=scale[:, None] * up, down=down, bias=bias)


def adalora(layer: Layer) -> Change:
    """`W + alpha/(r + 1e-5)·B (E A)` (Zhang et al. 2023, §3.1), E the singular values, r the rank at the start."""
    down, up = layer["lora_E"] * layer["lora_A"], layer["lora_B"]
    ranks = layer.get("ranknum")  # older versions saved it
    rank = layer.config.count("init_r", 12) if ranks is None else float(ranks[0])
    alpha = layer.config.number("lora_alpha", 8)
    # PEFT divides by the rank of the config even after pruning, plus 1e-5
    return Change(up=up * ((alpha if alpha > 0 else len(down)) / (rank + 1e-5)), down=down)


def vera(layer: Layer) -> Change:
    """`W + Λ_b B Λ_d A`, with random A and B that all layers share (Kopiczko et al. 2024, §3)."""
    down, up = layer.common("vera_A", _PROJECTION), layer.common("vera_B", _PROJECTION)
    return Change(
        up=layer["vera_lambda_b"][:, None] * up[: layer.width] * layer["vera_lambda_d"], down=down[:, : layer.width_in]
    )


def pvera(layer: Layer) -> Change:
    """VeRA with the mean of its distribution (arXiv 2512.07703), which PEFT uses at inference."""
    down, up = layer.common("pvera_A", _PROJECTION), layer.common("pvera_B", _PROJECTION)
    half = len(down) // 2
    if layer.config.flag("sample_at_inference"):
        raise AdapterError(
            "draws random numbers in each call",
            where=f"`{layer.path}`",
            found="`sample_at_inference` is true",
            fix="set it to false in the config to use the mean",
        )
    return Change(
        up=layer["pvera_lambda_b"][:, None] * up[: layer.width] * layer["pvera_lambda_d"][:half],
        down=down[:half, : layer.width_in],
    )


def randlora(layer: Layer) -> Change:
    """`W + alpha/r·Σ B_i Λ_i A Γ_i`, with random A and B that all layers share (arXiv 2502.00987)."""
    layer.ignore("randlora_A", "randlora_B")  # duplicates
    first, second = layer.common("randlora_A", _PROJECTION), layer.common("randlora_B", _PROJECTION)
    lambdas, gammas = layer["randlora_lambda"], layer["randlora_gamma"]
    (rank, count), low, high = lambdas.shape, *sorted((layer.width, layer.width_in))
    narrow = (lambdas[:, :, None] * first[:, :count, :low] * gammas).reshape(-1, low)
    wide = second[:high, :count].reshape(high, -1) * (layer.config.number("randlora_alpha", 640) / rank)
    return Change(up=wide, down=narrow) if low == layer.width_in else Change(up=narrow.T, down=wide.T)


def vblora(layer: Layer) -> Change:
    """`W + B A`, whose parts are mixtures of the k most likely vectors of a bank (Li et al. 2024, §3)."""
    bank = layer.common("vblora_vector_bank", _SAVED_AGAIN)
    count = layer.config.count("topk", 2)

    def mixed(side: str) -> Matrix:
        name = f"vblora_logits_{side}"
        if name in layer.keys:
            logits = layer[name]
            chosen = np.argsort(-logits, axis=-1, kind="stable")[..., :count]
            weights = np.exp(np.take_along_axis(logits, chosen, -1) - logits.max(-1, keepdims=True))
            weights /= weights.sum(-1, keepdims=True)
        else:  # `save_only_topk_weights`: all but the last of the weights, whose sum is 1
            chosen, weights = layer.whole(f"{name}_topk_indices", len(bank)), layer[f"{name}_topk_weights"]
            weights = np.concatenate([weights, 1 - weights.sum(-1, keepdims=True)], axis=-1)
        return np.asarray((weights[..., None] * bank[chosen]).sum(-2), np.float64)

    down, up = mixed("A"), mixed("B")
    return Change(up=up.transpose(0, 2, 1).reshape(-1, up.shape[1]), down=down.reshape(len(down), -1))


def unilora(layer: Layer) -> Change:
    """`W + B A`, whose elements are scaled elements of one vector (arXiv 2506.00799)."""
    fix = "load it in PEFT, set `save_indices=True` in its config, and save it again"
    vector = layer.common("unilora_theta_d", _SAVED_AGAIN)
    if "unilora_indices_A" not in layer.keys:
        raise AdapterError(
            "was saved without the positions that its layers are composed from", where=f"`{layer.path}`", fix=fix
        )
    down, up = (
        vector[layer.whole(f"unilora_indices_{side}", len(vector))] * layer[f"unilora_scales_{side}"] for side in "AB"
    )
    return Change(up=up, down=down)


def delora(layer: Layer) -> Change:
    """`W + B Ξ A ‖W‖`, `Ξ = λ/r/(‖A_i‖·‖B_i‖)`, with the norms of W's columns (Bini et al. 2025, §3)."""
    down, up = layer["delora_A"], layer["delora_B"]
    norms = layer.get("delora_w_norm")
    if norms is None:
        norms = np.linalg.norm(layer.weight, axis=0)
    # PEFT's lower bound of both norms
    sizes = np.maximum(np.linalg.norm(down, axis=1), 1e-4) * np.maximum(np.linalg.norm(up, axis=0), 1e-4)
    return Change(up=up * (layer["delora_lambda"] / len(down) / sizes), down=down * norms)


def loha(layer: Layer) -> Change:
    """`W + alpha/r·(B₁ A₁) ⊙ (B₂ A₂)` (Hyeon-Woo et al. 2022, §2.1): a product of rank r²."""
    up_1, up_2 = (layer[f"hada_w{number}_a"] for number in "12")
    down_1, down_2 = (layer[f"hada_w{number}_b"] for number in "12")
    factor = layer.config.number_at(layer.path, "alpha", "alpha_pattern", 8) / len(down_1)
    return Change(
        up=factor * (up_1[:, :, None] * up_2[:, None, :]).reshape(len(up_1), -1),
        down=(down_1[:, None, :] * down_2[None, :, :]).reshape(-1, down_1.shape[1]),
    )


def lokr(layer: Layer) -> Change:
    """`W + alpha/r·(C ⊗ B A)` or `C ⊗ D`, C perhaps a product as well (Yeh et al. 2024, §3.2)."""
    rank = layer.config.number_at(layer.path, "r", "rank_pattern", 8)
    factor = layer.config.number_at(layer.path, "alpha", "alpha_pattern", 8) / rank
    left = layer.get("lokr_w1")
    left = factor * (layer["lokr_w1_a"] @ layer["lokr_w1_b"] if left is None else left)
    right = layer.get("lokr_w2")
    if right is not None:
        return Change(dense=np.kron(left, right))
    up, down = layer["lokr_w2_a"], layer["lokr_w2_b"]
    rows, columns = left.shape
    if columns <= rows:
        return Change(up=np.kron(left, up), down=np.kron(np.eye(columns), down))
    return Change(up=np.kron(np.eye(rows), up), down=np.kron(left, down))


def gralora(layer: Layer) -> Change:
    """A LoRA of rank r/k for each of k² blocks of W, and perhaps one for the whole of it."""
    inner, outer = layer["gralora_A"], layer["gralora_B"]
    (blocks, width_in, rank), width = inner.shape, outer.shape[2]
    part, hybrid = rank // blocks, "gralora_A_general.weight" in layer.keys
    down = np.zeros((blocks, blocks, part, blocks, width_in))
    up = np.zeros((blocks, width, blocks, blocks, part))
    for read in range(blocks):
        for written in range(blocks):
            down[read, written, :, read] = inner[read, :, written * part : (written + 1) * part].T
            up[written, :, read, written] = outer[written, read * part : (read + 1) * part].T
    pairs = [(up.reshape(blocks * width, -1), down.reshape(-1, blocks * width_in))]
    if hybrid:
        pairs.append((layer["gralora_B_general.weight"], layer["gralora_A_general.weight"]))
    general = len(pairs[-1][1]) if hybrid else 0
    factor = layer.config.number("alpha", 64) / (rank + general)
    return Change(up=factor * np.hstack([pair[0] for pair in pairs]), down=np.vstack([pair[1] for pair in pairs]))


def miss(layer: Layer) -> Change:
    """`W + D`, whose columns repeat after r (arXiv 2409.15371); with `bat`, `W + W D + D` block by block."""
    block, kind = layer["miss_block"], layer.config.values.get("init_weights", True)
    if kind == "bat":
        size = block.shape[-1]
        tiles = layer.weight.reshape(layer.width // size, size, layer.width_in // size, size).transpose(2, 0, 1, 3)
        tiles = tiles @ block + block
        return Change(dense=tiles.transpose(1, 2, 0, 3).reshape(layer.weight.shape))
    if kind == "mini":
        block = np.tile(block, (1, layer.width // block.shape[1]))
    return Change(up=block.T, down=np.eye(len(block))[:, np.arange(layer.width_in) % len(block)])


def tinylora(layer: Layer) -> Change:
    """`W + B (Σ v_i P_i) A`, A and B the r largest singular vectors of W, P random (arXiv 2602.04118)."""
    if len([name for name in layer.shared.keys if name.startswith("tinylora_v.")]) > 1:
        raise AdapterError(
            "has trained vectors for several groups of layers without recording the groups",
            where=f"`{layer.path}`",
            expected="one vector for all layers (`weight_tying=1.0`)",
            fix="convert it to LoRA with `save_as_lora` of PEFT",
        )
    vector = layer.common("tinylora_v.0", _SAVED_AGAIN)
    return Change(
        up=layer["tinylora_B"] @ np.einsum("i,ijk->jk", vector, layer["tinylora_P"]), down=layer["tinylora_A"]
    )


def hra(layer: Layer) -> Change:
    """`W H₁ … H_r`, `H_i = I − 2·u_i u_iᵀ` (Yuan et al. 2024, §3): `W + W C Uᵀ` with a column of C for each factor."""
    vectors = layer["hra_u"]
    if layer.config.flag("apply_GS"):
        basis, signs = np.linalg.qr(vectors)
        del signs
        return Change(up=-2 * layer.weight @ basis, down=basis.T)
    vectors = vectors / np.linalg.norm(vectors, axis=0)
    columns = np.zeros_like(vectors)
    for number, vector in enumerate(vectors.T):
        columns[:, number] = -2 * (vector + columns[:, :number] @ (vectors[:, :number].T @ vector))
    return Change(up=layer.weight @ columns, down=vectors.T)


def deft(layer: Layer) -> Change:
    """`(I − Q Pᵀ) W + s·Q R`, with Q and P of one trained matrix."""
    matrix, method = layer["deft_P"], layer.config.text("decomposition_method") or "relu"
    if method not in ("qr", "relu"):
        raise layer.config.wrong("decomposition_method", method, "`qr` or `relu`")
    up = np.linalg.qr(matrix)[0] if method == "qr" else matrix
    down = -((up if method == "qr" else np.maximum(matrix, 0)).T @ layer.weight)
    if not layer.config.flag("para"):
        alpha = layer.config.number("alpha", 0)
        down = down + layer["deft_R"] * (alpha / matrix.shape[1] if alpha else 1.0)
    return Change(up=up, down=down)


def peanut(layer: Layer) -> Change:
    """`W + s·(f(Wᵀ Aᵀ …) Bᵀ)ᵀ`: a small network makes the change of the weights themselves (arXiv 2410.01870)."""
    try:
        bend = activation(activation_named(layer.config.text("act_fn") or "relu"))
    except UsageError as error:
        raise AdapterError(error.what, where="`act_fn`", found=error.found, expected=error.expected) from error
    depth = int(layer.config.number("depth", 0, at_least=0, whole=True))
    value, skipped = bend(layer.weight.T @ layer["peanut_A.weight"].T), []
    for number in range(depth):
        skipped.append(value)
        value = bend(value @ layer[f"peanut_encoders.{number}.weight"].T)
    for number in range(depth):
        value = bend(value @ layer[f"peanut_decoders.{number}.weight"].T) + skipped.pop()
    return Change(up=layer["peanut_B.weight"] * layer.config.number("scaling", 1.0), down=value.T)
