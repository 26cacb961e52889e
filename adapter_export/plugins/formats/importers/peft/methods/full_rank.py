"""PEFT types with a full-rank change of a weight: rotations, products with the weight, spectra, single elements.

Each function implements `get_delta_weight` of `peft/tuners/<type>/layer.py` in PEFT 0.21, in float64.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from adapter_export.errors import AdapterError
from adapter_export.plugins.formats.importers.peft.methods.method import Change, Layer, Matrix

_PROJECTION = "load it in PEFT, set `save_projection=True` in its config, and save it again"


def oft(layer: Layer) -> Change:
    """`W Rᵀ`, R block-diagonal and orthogonal: the Cayley transform of trained skew matrices (Qiu et al. 2023, §3).

    By default PEFT uses the first terms of its Neumann series.
    """
    vectors = layer["oft_R.weight"]
    size = (1 + math.isqrt(1 + 8 * vectors.shape[1])) // 2
    rows, columns = np.triu_indices(size, 1)
    skew = np.zeros((len(vectors), size, size))
    skew[:, rows, columns] = vectors
    skew -= skew.transpose(0, 2, 1)
    if layer.config.flag("coft"):
        least = layer.config.number("eps", 6e-5) / np.sqrt(len(skew))
        norms = np.linalg.norm(skew, axis=(1, 2), keepdims=True)
        skew = np.where(norms <= least, skew, least * skew / np.maximum(norms, least))
    if layer.config.flag("use_cayley_neumann", True):
        rotations = _neumann(skew, layer.config.count("num_cayley_neumann_terms", 5))
    else:
        rotations = _cayley(skew)
    return Change(dense=_rotated(layer.weight, rotations) - layer.weight)


def _neumann(skew: Matrix, terms: int) -> Matrix:
    """`I + 2Q + 2Q² + … + Qⁿ`, with the last power once (`OFTRotationModule._cayley_batch`, which takes 3 as 4)."""
    last = max(terms, 4) - 1 if terms > 2 else terms - 1
    total = np.broadcast_to(np.eye(skew.shape[-1]), skew.shape)
    power = total
    for number in range(1, last + 1):
        power = power @ skew
        total = total + power * (1 if number == last and terms > 2 else 2)
    return total


def _cayley(skew: Matrix) -> Matrix:
    """`(I − Q)(I + Q)⁻¹`."""
    identity = np.eye(skew.shape[-1])
    return np.linalg.solve((identity + skew).transpose(0, 2, 1), (identity - skew).transpose(0, 2, 1)).transpose(
        0, 2, 1
    )


def _rotated(weight: Matrix, rotations: Matrix) -> Matrix:
    """`W Rᵀ`, with R of these blocks, or of one that repeats."""
    size = rotations.shape[-1]
    count = weight.shape[1] // size
    blocks = np.broadcast_to(rotations, (count, size, size))
    turned = np.einsum("orc,rkc->ork", weight.reshape(-1, count, size), blocks)
    return np.asarray(turned, np.float64).reshape(weight.shape)


def boft(layer: Layer) -> Change:
    """`s ⊙ (W Rᵀ)`, R orthogonal and block-diagonal (Liu et al. 2024, §4), s a factor for each output."""
    trained = layer["boft_R"]
    if len(trained) != 1:
        raise AdapterError(
            "rotates with several butterfly factors, which PEFT supports only on CUDA, so that the formula is untested",
            where=f"`{layer.path}`",
            found=f"`boft_R` {list(trained.shape)}",
            expected="`boft_n_butterfly_factor` 1",
            fix="merge it with PEFT (`merge_and_unload`) and use the result as a base",
        )
    rotations = _cayley(0.5 * (trained[0] - trained[0].transpose(0, 2, 1)))
    return Change(dense=layer["boft_s"] * _rotated(layer.weight, rotations) - layer.weight)


def hira(layer: Layer) -> Change:
    """`W + W ⊙ (B A)`."""
    return Change(dense=layer.weight * (layer["hira_B"] @ layer["hira_A"]))


def road(layer: Layer) -> Change:
    """`R (W u + b)`, R rotating and stretching pairs of outputs (arXiv 2409.00119, §3)."""
    variant, size = layer.config.text("variant") or "road_1", layer.config.count("group_size", 64)
    angles, factors = layer["road_theta"], layer["road_alpha"]
    if variant == "road_1":
        angles, factors = (
            np.repeat(numbers.reshape(-1, size // 2), 2, axis=0).ravel() for numbers in (angles, factors)
        )
    elif variant not in ("road_2", "road_4"):
        raise layer.config.wrong("variant", variant, "road_1, road_2 or road_4")
    cosines, sines = angles, angles
    along = across = factors
    if variant == "road_4":
        cosines, sines = (angles.reshape(-1, 2, size)[:, side].ravel() for side in range(2))
        along, across = (factors.reshape(-1, 2, size)[:, side].ravel() for side in range(2))
    straight, turned = along * np.cos(cosines), across * np.sin(sines)

    def rotated(value: Matrix) -> Matrix:
        halves = value.reshape(-1, 2, size // 2, *value.shape[1:])
        swapped = np.stack([-halves[:, 1], halves[:, 0]], axis=1).reshape(value.shape)
        shape = (-1,) + (1,) * (value.ndim - 1)
        return value * straight.reshape(shape) + swapped * turned.reshape(shape)

    bias = None if layer.bias is None else rotated(layer.bias)
    return Change(dense=rotated(layer.weight) - layer.weight, bias=bias)


def glora(layer: Layer) -> Change:
    """`W + W ⊙ A + B` and `b + b ⊙ D + E + W C`, each part a product, a vector or a number (Chavan et al. 2023, §3)."""

    def part(name: str) -> Matrix | float:
        if f"glora_{name}.Xd" in layer.keys:
            return layer[f"glora_{name}.Xd"] @ layer[f"glora_{name}.Xu"]
        tensor = layer.get(f"glora_{name}.X")
        return 0.0 if tensor is None else tensor

    layer.ignore(*(f"glora_{name}.zeros" for name in "ABCDE"))
    dense = layer.weight * part("A") + part("B")
    if layer.bias is None:
        return Change(dense=dense)
    column = layer.weight @ np.broadcast_to(part("C"), (layer.width_in, 1))
    return Change(dense=dense, bias=layer.bias * (1 + part("D")) + part("E") + column[:, 0])


def osf(layer: Layer) -> Change:
    """`W − U S V + U' S' V'`, the smallest singular vectors of W after training and before."""
    left, sizes, right = np.linalg.svd(layer.weight, full_matrices=False)
    trained = layer["osf_svd_params.S_low"]
    frozen = len(sizes) - len(trained)
    return Change(
        up=np.hstack([layer["osf_svd_params.U_low"] * trained, -left[:, frozen:] * sizes[frozen:]]),
        down=np.vstack([layer["osf_svd_params.V_low"], right[frozen:]]),
    )


def frod(layer: Layer) -> Change:
    """`U (S + Λ) Vᵀ` instead of W, with U of unit columns so that `W = U L Vᵀ`, and S sparse."""
    names = layer.path.split(".")
    category = names[-1] if len(names) < 2 or names[-2].isdecimal() else "_".join(names[-2:])
    if category == "output_dense" and names[-3:-2] == ["attention"]:
        category = "attention_output"
    right = layer.common(f"frod_V.{category}", _PROJECTION)
    places = layer.whole(f"frod_s_indices.{category}", layer.width_in)
    layer.ignore(f"frod_s_size.{category}")
    left = np.linalg.solve(right, layer.weight.T).T
    norms = np.linalg.norm(left, axis=0)
    middle = np.diag(layer["frod_lambda_l"])
    np.add.at(middle, (places[0], places[1]), layer["frod_lambda_s_values"])
    left = np.where(norms > 1e-12, left / np.maximum(norms, 1e-12), 0)
    return Change(dense=left @ middle @ right.T - layer.weight)


def c3a(layer: Layer) -> Change:
    """`W + C/in`, C of circulant blocks (`peft.tuners.c3a.utils.get_circulant_fast`)."""
    kernel = layer["c3a_kernel"]
    rows, columns, size = kernel.shape
    places = (np.arange(size)[None, :] - np.arange(size)[:, None]) % size
    blocks = kernel[:, :, places] / layer.width_in
    return Change(dense=blocks.transpose(0, 2, 1, 3).reshape(rows * size, columns * size))


def fourierft(layer: Layer) -> Change:
    """`W + s·Re(F⁻¹(S))`, S zero but for n trained numbers (Gao et al. 2024, §3)."""
    spectrum = _scattered(layer, layer["fourierft_spectrum"])
    return Change(dense=np.fft.ifft2(spectrum).real * layer.config.number("scaling", 150.0))


def waveft(layer: Layer) -> Change:
    """`W + s·S`, S zero but for n trained numbers, or the inverse Haar transform of it."""
    numbers = layer["waveft_spectrum"]
    factor, family = layer.config.number("scaling", 25.0), layer.config.text("wavelet_family") or "db1"
    if not layer.config.flag("use_idwt", True):
        return Change(dense=factor * _scattered(layer, numbers))
    if family != "db1":
        raise AdapterError(
            "has an unknown wavelet",
            where="`wavelet_family`",
            found=f"`{family}`",
            expected="`db1`",
            fix="merge it with PEFT (`merge_and_unload`) and use the result as a base",
        )
    rows, columns = layer.width + layer.width % 2, layer.width_in + layer.width_in % 2
    spectrum = np.zeros((rows, columns))
    spectrum[: layer.width, : layer.width_in] = _scattered(layer, numbers)
    (low, across), (along, both) = (np.split(half, 2, axis=1) for half in np.split(spectrum, 2))
    tiles = np.empty((rows // 2, 2, columns // 2, 2))
    for row, row_sign in enumerate((1, -1)):
        for column, column_sign in enumerate((1, -1)):
            tiles[:, row, :, column] = low + column_sign * along + row_sign * across + row_sign * column_sign * both
    return Change(dense=factor / 2 * tiles.reshape(rows, columns)[: layer.width, : layer.width_in])


def _scattered(layer: Layer, numbers: Matrix) -> Matrix:
    """Return a matrix [out, in] with these numbers at positions drawn like `torch.randperm`."""
    seed = int(layer.config.number("random_loc_seed", 777, at_least=0, whole=True))
    flat = np.zeros(layer.width * layer.width_in)
    flat[first_of_permutation(flat.size, len(numbers), seed)] = numbers
    return flat.reshape(layer.width, layer.width_in)


def first_of_permutation(length: int, count: int, seed: int) -> npt.NDArray[np.int64]:
    """Return the first numbers of `torch.randperm(length)` with a CPU generator of this seed.

    torch shuffles from the front (Fisher–Yates) with the Mersenne Twister, which NumPy also has. AdapterError for
    matrices so large that torch uses another algorithm.
    """
    if length >= (2**32 - 1) // 20:
        raise AdapterError("has a layer too large to reproduce its random positions", found=f"{length} elements")
    draws = np.random.RandomState(seed)
    moved: dict[int, int] = {}
    firsts = np.empty(count, np.int64)
    raw = draws.randint(0, 2**32, size=count, dtype=np.uint32).astype(np.int64)
    for place in range(count):
        other = place + int(raw[place]) % (length - place) if place < length - 1 else place
        firsts[place] = moved.get(other, other)
        moved[other] = moved.get(place, place)
    return firsts


def shira(layer: Layer) -> Change:
    """`W + S`, S zero but for trained elements (Bhardwaj et al. 2024, §3)."""
    places = layer.whole("shira_indices", max(layer.width, layer.width_in))
    dense = np.zeros((layer.width, layer.width_in))
    np.add.at(dense, (places[0], places[1]), layer["shira_weight"])
    return Change(dense=dense)


def supertuning(layer: Layer) -> Change:
    """`W + S`, S zero but for the largest elements of W, and perhaps a LoRA (arXiv 2607.09287)."""
    dense = np.zeros(layer.width * layer.width_in)
    np.add.at(dense, layer.whole("supertuning_indices", dense.size), layer["supertuning_values"])
    change = Change(dense=dense.reshape(layer.width, layer.width_in))
    if "supertuning_lora_A.weight" not in layer.keys:
        return change
    down = layer["supertuning_lora_A.weight"]
    factor = layer.config.number("lora_alpha", 8) / len(down)
    return Change(dense=change.dense, up=factor * layer["supertuning_lora_B.weight"], down=down)


def beft(layer: Layer) -> Change:
    """`b + c` (arXiv 2509.15974)."""
    return Change(bias=layer["beft_bias"].ravel() + (0 if layer.bias is None else layer.bias))
