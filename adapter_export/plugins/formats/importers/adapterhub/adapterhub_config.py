"""Configs of AdapterHub adapters, read with the semantics of its library, and compared with the base."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from adapter_export.bases.base_view import BaseView
from adapter_export.errors import UPGRADE, AdapterError, FormatError, VersionError, within
from adapter_export.format.records import record_from_json
from adapter_export.graph.kinds.bottleneck_config import BottleneckConfig
from adapter_export.plugins.formats.importers.match import check_architecture
from adapter_export.sites.site import Site, SiteMap
from adapter_export.tables import number_of
from adapter_export.words import argument, quoted

_NEWEST = (1, 3)
"""Newest supported version of the library; checked against `adapters.1.3.0`."""

_LEGACY_NEWEST = 3
"""Last major version under the old name `adapter-transformers`, whose versions have no prefix."""

_PREFIX = "adapters."

_WITHOUT_VERSION = {"gelu": "gelu_new", "gelu_orig": "gelu"}
"""Activations in files without a version (`utils.ACTIVATION_RENAME`)."""

_WITHOUT_EFFECT = ("attention_type", "new_attention_norm")
"""Fields of version 1 that no version of the library uses in its forward pass."""

_REFUSED = {
    "prefix_tuning": (
        "prefix tuning computes (1 − λ)·attention(q, K, V) + λ·attention(q, P_k, P_v), and λ needs the sum of the "
        "base's attention scores, which no site provides",
        "train `scaled_par_bn` instead, the closest method at a site",
    ),
    "prompt_tuning": (
        "prompt tuning reads [P; x], trained vectors before the text, and moves the positions, the mask and the cache "
        "of the base",
        "train `scaled_par_bn` or LoRA instead",
    ),
    "reft": (
        "ReFT adds Rᵀ(W y + b − R y) only to the first and last tokens, and sites do not provide token positions",
        "train `adapter_plus` instead, which adds U f(D y) to every token",
    ),
}
"""Unsupported values of `architecture`: the reason, and an alternative."""


_MOST = 1e9
"""Maximum rank and factor; products of larger ones overflow float32."""


@dataclass(frozen=True)
class LoraConfig:
    """`LoRAConfig` and `MTLLoRAConfig`, with their field names: LoRA if `composition_mode` is `add`, else IA3."""

    architecture: Literal["lora", "mtl_lora"]
    r: int
    alpha: float
    attn_matrices: tuple[str, ...]
    selfattn_lora: bool = True
    intermediate_lora: bool = False
    output_lora: bool = False
    leave_out: tuple[int, ...] = ()
    dropout: float = 0.0
    composition_mode: Literal["add", "scale"] = "add"
    init_weights: str = "lora"
    init_weights_seed: int | None = None
    use_gating: bool = False
    use_dora: bool = False
    vera_d: float | None = None
    vera_b: float | None = None
    dtype: str | None = None
    n_up_projection: int = 1
    task_specific_matrix_type: Literal["singular_values"] = "singular_values"
    weights_sharpness: float = 0.05

    @property
    def is_vera(self) -> bool:
        """True for VeRA, whose two matrices are shared by all layers."""
        return self.vera_d is not None or self.vera_b is not None

    @property
    def kind(self) -> Literal["lora", "ia3"]:
        """Kind of the adapter."""
        return "lora" if self.composition_mode == "add" else "ia3"


Method = BottleneckConfig | LoraConfig


@dataclass(frozen=True)
class Config:
    """Contents of an `adapter_config.json`; `notes` list changes made on reading, equal to those of the library.

    A union has two methods, a bottleneck and LoRA or IA3; other configs have one.
    """

    methods: tuple[Method, ...]
    name: str
    hidden_size: int
    model_type: str | None
    notes: tuple[str, ...] = ()


def read_config(document: Mapping[str, Any]) -> Config:
    """Read the JSON of an `adapter_config.json`; errors name unknown or unsupported options."""
    version = _version(document)
    method, name, width = document.get("config"), document.get("name"), document.get("hidden_size")
    if not isinstance(method, dict) or not isinstance(name, str) or not isinstance(width, int):
        raise FormatError(
            "is not the config of an adapter",
            found=f"keys {', '.join(document)}",
            expected="an object `config`, a `name` and a `hidden_size`",
            fix="pass the folder written by `model.save_adapter(folder, name)`",
        )
    with within("`config`"):
        read = [_method(each, version) for each in _joined(method)]
    methods, notes = tuple(parsed for parsed, _ in read), tuple(note for _, told in read for note in told)
    if len({type(parsed) for parsed in methods}) < len(methods):
        raise AdapterError(
            "is a union of two methods of one kind; a site can have only one of them",
            found=number_of(len(methods), "member"),
            expected="a bottleneck, and LoRA or IA3",
            fix="train them as two adapters",
        )
    model_type = document.get("model_type")
    return Config(methods, name, width, model_type if isinstance(model_type, str) else None, notes)


def _joined(method: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the members of a union, or the method itself."""
    members = method.get("configs") if method.get("architecture") == "union" else [method]
    if not isinstance(members, list) or not members or not all(isinstance(member, dict) for member in members):
        raise FormatError("a union without members", found=f"`configs`: {members}")
    return members


def _method(method: Mapping[str, Any], version: str | None) -> tuple[Method, tuple[str, ...]]:
    architecture = method.get("architecture")
    if isinstance(architecture, str) and architecture in _REFUSED:
        why, fix = _REFUSED[architecture]
        raise AdapterError(why, found=f"`{architecture}`", expected="a bottleneck, LoRA or IA3", fix=fix)
    if architecture not in (None, "lora", "mtl_lora"):
        raise FormatError(
            "an unknown method",
            found=f"`architecture`: `{architecture}`",
            expected="none (a bottleneck), `lora`, `mtl_lora` or `union`",
        )
    return _bottleneck(method, version) if architecture is None else _lora(method, version)


def _version(document: Mapping[str, Any]) -> str | None:
    version = document.get("version")
    if version is None:
        return None
    numbers = _numbers(version) if isinstance(version, str) else None
    if numbers is None:
        raise FormatError("has no valid version", found=f"`{version}`", expected=f"`{_PREFIX}1.3.0`")
    if numbers > _NEWEST if version.startswith(_PREFIX) else numbers[0] > _LEGACY_NEWEST:
        raise VersionError(
            "was written by a newer version of AdapterHub's library",
            found=f"`{version}`",
            expected=f"at most `{_PREFIX}{'.'.join(map(str, _NEWEST))}`",
            fix=f"{UPGRADE}; the meaning of newer versions is unknown",
        )
    return str(version)


def _numbers(version: str) -> tuple[int, int] | None:
    """Return the first two numbers of `adapters.1.3.0`, `1.0.0.dev0` or `3.2`."""
    parsed = re.match(r"(\d{1,6})\.(\d{1,6})", version.removeprefix(_PREFIX))
    return (int(parsed[1]), int(parsed[2])) if parsed else None


def _bottleneck(config: Mapping[str, Any], version: str | None) -> tuple[BottleneckConfig, tuple[str, ...]]:
    known: dict[str, Any] = {key: value for key, value in config.items() if key not in _WITHOUT_EFFECT}
    known.pop("architecture", None)
    notes: list[str] = []
    old = known.pop("invertible_adapter", None)
    if isinstance(old, dict):  # version 1; later two fields (`BnConfig.__setattr__`)
        known["inv_adapter"] = old.get("block_type")
        known["inv_adapter_reduction_factor"] = old.get("reduction_factor")
    old = known.get("non_linearity")
    if version is None and isinstance(old, str) and old in _WITHOUT_VERSION:
        known["non_linearity"] = _WITHOUT_VERSION[old]
        notes.append(f"the file has no version: its activation `{old}` is now named `{_WITHOUT_VERSION[old]}`")
    _check_fields(known, {field.name for field in fields(BottleneckConfig)})
    scaling = known.get("scaling", 1.0)
    if isinstance(scaling, int):
        raise FormatError(
            "AdapterHub's library rejects an integer here (`Unknown scaling type`)",
            where="`scaling`",
            found=f"`{scaling}`",
            expected="a number with a decimal point, `learned` or `channel`",
            fix=f"write `{scaling}.0` if that is the factor used in training",
        )
    return record_from_json(BottleneckConfig, known), tuple(notes)


def _lora(config: Mapping[str, Any], version: str | None) -> tuple[LoraConfig, tuple[str, ...]]:
    _check_fields(config, {field.name for field in fields(LoraConfig)})
    read = record_from_json(LoraConfig, dict(config))
    if not 1 <= read.r <= _MOST or not abs(read.alpha) <= _MOST:
        expected = f"a rank from 1 to {_MOST:g}, and a factor of at most that"
        raise FormatError(
            "has an invalid rank or factor", found=f"`r` {read.r}, `alpha` {read.alpha}", expected=expected
        )
    if read.weights_sharpness == 0:
        raise FormatError("`weights_sharpness` must not be 0, a divisor of weights", found="`weights_sharpness`: 0")
    if read.use_dora and read.use_gating:
        raise AdapterError(
            "is `m/‖W + B A‖ ⊙ (h + g·B A u)` with a gate g for each text, which is not supported",
            found="`use_dora`, `use_gating`",
            fix="train DoRA without gates",
        )
    numbers = _numbers(version) if version is not None and version.startswith(_PREFIX) else None
    if numbers is None or numbers >= (1, 1) or read.alpha == read.r:
        return read, ()
    # those versions did not apply the factor; the library's loader sets alpha to r (`_fix_backward_compat`)
    note = f"`{version}` trained without the factor alpha/r: alpha becomes {read.r}, not {read.alpha:g}, as there"
    return replace(read, alpha=float(read.r)), (note,)


def _check_fields(config: Mapping[str, Any], known: set[str]) -> None:
    """Reject unknown options, which may change the computation."""
    unknown = sorted(config.keys() - known)
    if unknown:
        raise FormatError(
            "unknown options",
            found=quoted(unknown),
            expected=f"only {quoted(sorted(known))}",
            fix=f"{UPGRADE}, or remove them if they have no effect",
        )


# Requirements on the base, and computations of AdapterHub that cannot be expressed.


def check_base(config: Config, interface: Mapping[str, Any] | None, base: BaseView, *, by_number: bool) -> None:
    """Compare the model of an adapter with the base, whose architecture may be unknown.

    `interface` is the JSON of the plug-in interface, absent for the library's own models.

    Raises AdapterError if the base differs, or the library's computation cannot be expressed.
    """
    if config.hidden_size != base.sites.width:
        raise AdapterError(
            "was trained on a base of another width",
            found=f"`hidden_size`: {config.hidden_size}",
            expected=f"{base.sites.width}",
            fix="pass the model that it was trained on as " + argument("base"),
        )
    check_architecture(config.model_type, base.model_type, by_number=by_number)
    if config.model_type == "xmod":
        raise AdapterError(
            "AdapterHub removes the language adapters of this model's base, so that its adapters fit no other base",
            found="`model_type`: `xmod`",
        )
    method = next((candidate for candidate in config.methods if isinstance(candidate, BottleneckConfig)), None)
    if method is None:
        return
    if config.model_type == "albert" and method.mh_adapter:
        raise AdapterError(
            "AdapterHub swaps output and residual of this model's attention adapters, which cannot be expressed",
            found="`model_type`: `albert`, `mh_adapter`",
        )
    if config.model_type == "gptj" and method.original_ln_before:
        raise AdapterError(
            "AdapterHub passes the attention's output as the residual of this model's output adapters, "
            "which cannot be expressed",
            found="`model_type`: `gptj`, `original_ln_before`",
        )
    if config.model_type == "whisper" and method.inv_adapter is not None:
        raise AdapterError(
            "AdapterHub applies the invertible adapter of this model after the encoder's last norm, which is no site",
            found=f"`model_type`: `whisper`, `inv_adapter`: `{method.inv_adapter}`",
        )
    if interface is not None:
        _check_interface(interface, method, base.sites)


# Adapters added by the plug-in interface: the model itself adds the residual and applies its norm, and a bottleneck
# reads the value captured by a hook. If its config reads the residual stream or the base's norm, the captured value
# depends on the interface. One version of the library has a defect: its hooks share a variable, so that every layer
# applies the norm of the last one (`init_bottleneck`).


def _check_interface(document: Mapping[str, Any], config: BottleneckConfig, sites: SiteMap) -> None:
    interface = document.get("interface")
    if not isinstance(interface, dict):
        raise AdapterError("the plug-in interface file has no interface", found=f"keys {', '.join(document)}")
    for role, acts, hook, norm in (
        ("attention", config.mh_adapter, "layer_pre_self_attn", "layer_ln_1"),
        ("ffn", config.output_adapter, "layer_pre_ffn", "layer_ln_2"),
    ):
        if acts:
            places = [site for site in sites.sublayers if site.role == role]
            _check_place(config, places, interface.get(hook), interface.get(norm))


def _check_place(config: BottleneckConfig, places: list[Site], hook: str | None, norm: str | None) -> None:
    if norm is not None and any(site.norm is None for site in places):
        raise AdapterError(
            "acted after the output projection, possibly before a norm that precedes the sum in this base",
            found=f"`{norm}` in the plug-in interface, and no norm after the sum at "
            + quoted(site.name for site in places if site.norm is None),
            expected="an interface without that norm, or a base that normalizes the sum",
            fix="train it again with an interface without `layer_ln_1` and `layer_ln_2`",
        )
    if config.is_parallel or config.original_ln_before:
        if hook is None:
            raise AdapterError(
                "reads the residual stream, which the plug-in interface does not name",
                found="`layer_pre_self_attn` or `layer_pre_ffn` is null",
            )
        behind = [site for site in places if site.x != site.u and f".{hook}." in f".{site.path}."]
        if behind:
            raise AdapterError(
                "used the sublayer's normalized input as the residual stream",
                found=f"`{hook}` at {quoted(site.name for site in behind)}",
                expected="an interface that hooks the norm before the sublayer",
                fix="train it again with such an interface",
            )
    if config.original_ln_before and not config.is_parallel:
        if norm is not None and len(places) > 1:
            raise AdapterError(
                "was trained with a defect of AdapterHub's plug-in interface: every layer applied the norm of the "
                "last layer, because its hooks share one variable",
                found=f"`original_ln_before` with `{norm}`",
                expected="an adapter of the library's own model classes, or one that does not read the base's norm",
                fix="train it again there, or as `double_seq_bn`, which has no such norm",
            )
        if norm is None and any(site.norm is not None for site in places):
            raise AdapterError(
                "read the sum before the norm that follows it in this base",
                found=quoted(site.name for site in places if site.norm is not None),
                expected="an interface that names the norm",
            )
