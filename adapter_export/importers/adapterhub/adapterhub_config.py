"""The configs of AdapterHub's adapters, read as its library reads them, and compared with the base."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from adapter_export.errors import UPGRADE, AdapterError, FormatError, VersionError, argument, quoted, within
from adapter_export.format.records import record_from_json
from adapter_export.graph.kinds.bottleneck_config import BottleneckConfig
from adapter_export.importers.base_view import BaseView
from adapter_export.importers.match import check_architecture
from adapter_export.sites.site import Site, SiteMap

_NEWEST = (1, 3)
"""The newest version of the library whose files are known; `adapters.1.3.0` was read and run."""

_LEGACY_NEWEST = 3
"""The last major version under the library's old name, `adapter-transformers`, whose versions have no prefix."""

_PREFIX = "adapters."

_WITHOUT_VERSION = {"gelu": "gelu_new", "gelu_orig": "gelu"}
"""Activations in files of before versions were written (`utils.ACTIVATION_RENAME`)."""

_WITHOUT_EFFECT = ("attention_type", "new_attention_norm")
"""Fields of version 1 that no version of the library reads in its forward pass."""

_REFUSED = {
    "prefix_tuning": (
        "prefix tuning computes (1 − λ)·attention(q, K, V) + λ·attention(q, P_k, P_v), and λ needs the sum of the "
        "base's own attention scores, which no site has",
        "train `scaled_par_bn` instead, the nearest form at a site",
    ),
    "prompt_tuning": (
        "prompt tuning reads [P; x], trained vectors before the text, and moves the positions, the mask and the cache "
        "of the base",
        "train `scaled_par_bn` or LoRA instead",
    ),
    "reft": (
        "ReFT adds Rᵀ(W y + b − R y) to the first and last tokens alone, and no site says where in its text a token "
        "stands",
        "train `adapter_plus` instead, which adds U f(D y) to every token",
    ),
}
"""Unsupported values of `architecture`: the formula that does not fit, and an alternative."""


_MOST = 1e9
"""The largest rank and factor; products of greater ones are no numbers of float32."""


@dataclass(frozen=True)
class LoraConfig:
    """`LoRAConfig` and `MTLLoRAConfig` by their own names: LoRA where `composition_mode` is `add`, else IA3."""

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
        """True for VeRA, whose two matrices all layers share."""
        return self.vera_d is not None or self.vera_b is not None

    @property
    def kind(self) -> Literal["lora", "ia3"]:
        """The kind of the adapter."""
        return "lora" if self.composition_mode == "add" else "ia3"


Method = BottleneckConfig | LoraConfig


@dataclass(frozen=True)
class Config:
    """Contents of an `adapter_config.json`; `notes` list changes made on reading, as the library itself makes them.

    A union has two methods, a bottleneck and LoRA or IA3; all else has one.
    """

    methods: tuple[Method, ...]
    name: str
    hidden_size: int
    model_type: str | None
    notes: tuple[str, ...] = ()


def read_config(document: Mapping[str, Any]) -> Config:
    """Read the JSON of an `adapter_config.json`; errors name what is not known or cannot be expressed."""
    version = _version(document)
    method, name, width = document.get("config"), document.get("name"), document.get("hidden_size")
    if not isinstance(method, dict) or not isinstance(name, str) or not isinstance(width, int):
        raise FormatError(
            "is not the config of an adapter",
            found=f"keys {', '.join(document)}",
            expected="an object `config`, a `name` and a `hidden_size`",
            fix="give the folder that `model.save_adapter(folder, name)` wrote",
        )
    with within("`config`"):
        read = [_method(each, version) for each in _joined(method)]
    methods, notes = tuple(one for one, _ in read), tuple(note for _, told in read for note in told)
    if len({type(one) for one in methods}) < len(methods):
        raise AdapterError(
            "is a union of two methods of one kind, of which each site could have only one",
            found=f"{len(methods)} members",
            expected="a bottleneck, and LoRA or IA3",
            fix="train them as two adapters",
        )
    model_type = document.get("model_type")
    return Config(methods, name, width, model_type if isinstance(model_type, str) else None, notes)


def _joined(method: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The members of a union, or the method itself."""
    members = method.get("configs") if method.get("architecture") == "union" else [method]
    if not isinstance(members, list) or not members or not all(isinstance(one, dict) for one in members):
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
        raise FormatError("states no version that can be read", found=f"`{version}`", expected=f"`{_PREFIX}1.3.0`")
    if numbers > _NEWEST if version.startswith(_PREFIX) else numbers[0] > _LEGACY_NEWEST:
        raise VersionError(
            "was written by a newer version of AdapterHub's library",
            found=f"`{version}`",
            expected=f"at most `{_PREFIX}{'.'.join(map(str, _NEWEST))}`",
            fix=f"{UPGRADE}; what a newer version means is not known here",
        )
    return str(version)


def _numbers(version: str) -> tuple[int, int] | None:
    """The first two numbers of `adapters.1.3.0`, `1.0.0.dev0`, `3.2`."""
    found = re.match(r"(\d{1,6})\.(\d{1,6})", version.removeprefix(_PREFIX))
    return (int(found[1]), int(found[2])) if found else None


def _bottleneck(config: Mapping[str, Any], version: str | None) -> tuple[BottleneckConfig, tuple[str, ...]]:
    known: dict[str, Any] = {key: value for key, value in config.items() if key not in _WITHOUT_EFFECT}
    known.pop("architecture", None)
    notes: list[str] = []
    old = known.pop("invertible_adapter", None)
    if isinstance(old, dict):  # of version 1: two fields now (`BnConfig.__setattr__`)
        known["inv_adapter"] = old.get("block_type")
        known["inv_adapter_reduction_factor"] = old.get("reduction_factor")
    old = known.get("non_linearity")
    if version is None and isinstance(old, str) and old in _WITHOUT_VERSION:
        known["non_linearity"] = _WITHOUT_VERSION[old]
        notes.append(f"the file has no version: its activation `{old}` is what is called `{_WITHOUT_VERSION[old]}` now")
    _check_fields(known, {field.name for field in fields(BottleneckConfig)})
    scaling = known.get("scaling", 1.0)
    if isinstance(scaling, int):
        raise FormatError(
            "AdapterHub's library refuses a whole number here (`Unknown scaling type`)",
            where="`scaling`",
            found=f"`{scaling}`",
            expected="a number with a decimal point, `learned` or `channel`",
            fix=f"write `{scaling}.0` if that is the factor with which it was trained",
        )
    return record_from_json(BottleneckConfig, known), tuple(notes)


def _lora(config: Mapping[str, Any], version: str | None) -> tuple[LoraConfig, tuple[str, ...]]:
    _check_fields(config, {field.name for field in fields(LoraConfig)})
    read = record_from_json(LoraConfig, dict(config))
    if not 1 <= read.r <= _MOST or not abs(read.alpha) <= _MOST:
        expected = f"a rank from 1 to {_MOST:g}, and a factor of at most that"
        raise FormatError(
            "has a rank or a factor of no LoRA", found=f"`r` {read.r}, `alpha` {read.alpha}", expected=expected
        )
    if read.weights_sharpness == 0:
        raise FormatError("the weights of its up-projections are divided by zero", found="`weights_sharpness`: 0")
    if read.use_dora and read.use_gating:
        raise AdapterError(
            "is `m/‖W + B A‖ ⊙ (h + g·B A u)` with a gate g for each text, which no importer makes yet",
            found="`use_dora`, `use_gating`",
            fix="train DoRA without gates",
        )
    numbers = _numbers(version) if version is not None and version.startswith(_PREFIX) else None
    if numbers is None or numbers >= (1, 1) or read.alpha == read.r:
        return read, ()
    # those versions did not apply the factor; the library's own loader sets alpha to r (`_fix_backward_compat`)
    note = f"`{version}` trained without the factor alpha/r: alpha is {read.r}, not {read.alpha:g}, as in the library"
    return replace(read, alpha=float(read.r)), (note,)


def _check_fields(config: Mapping[str, Any], known: set[str]) -> None:
    """An option that is not known may change everything that is computed."""
    unknown = sorted(config.keys() - known)
    if unknown:
        raise FormatError(
            "options that are not known",
            found=quoted(unknown),
            expected=f"only {quoted(sorted(known))}",
            fix=f"{UPGRADE}, or remove them if you know that they have no effect",
        )


# What the base must be, and what of AdapterHub's own computation cannot be expressed there.


def check_base(config: Config, interface: Mapping[str, Any] | None, base: BaseView, *, by_number: bool) -> None:
    """Compare the model that an adapter was trained in with the base, whose architecture may be unknown.

    `interface` is the JSON of the plug-in interface; adapters of the library's own models have none.

    An AdapterError says that the base is another one, or that the library computed what no graph here does.
    """
    if config.hidden_size != base.sites.width:
        raise AdapterError(
            "was trained on a base of another width",
            found=f"`hidden_size`: {config.hidden_size}",
            expected=f"{base.sites.width}",
            fix=f"give the model that it was trained on as {argument('base')}",
        )
    check_architecture(config.model_type, base.model_type, by_number=by_number)
    method = next((one for one in config.methods if isinstance(one, BottleneckConfig)), None)
    if method is None:
        return
    if config.model_type == "albert" and method.mh_adapter:
        raise AdapterError(
            "AdapterHub hands this model's attention adapters the residual instead of the output, and the other "
            "way round, which cannot be expressed",
            found="`model_type`: `albert`, `mh_adapter`",
        )
    if config.model_type == "gptj" and method.original_ln_before:
        raise AdapterError(
            "AdapterHub hands this model's output adapters the attention's output for the residual, "
            "which cannot be expressed",
            found="`model_type`: `gptj`, `original_ln_before`",
        )
    if interface is not None:
        _check_interface(interface, method, base.sites)


# Adapters that the plug-in interface hooked into a model: there the model itself adds the residual and applies its
# norm, and a bottleneck reads what a hook saw. Where its config reads the residual stream or the base's norm, what it
# saw depends on the interface, and one version of the library has a defect: its hooks share one variable, so that every
# layer applies the norm of the last one (`init_bottleneck`).


def _check_interface(document: Mapping[str, Any], config: BottleneckConfig, sites: SiteMap) -> None:
    interface = document.get("interface")
    if not isinstance(interface, dict):
        raise AdapterError("the file of the plug-in interface holds none", found=f"keys {', '.join(document)}")
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
            "acted behind the output projection, perhaps before a norm that this base has in front of the sum",
            found=f"`{norm}` in the plug-in interface, and no norm behind the sum at "
            + quoted(site.name for site in places if site.norm is None),
            expected="an interface without that norm, or a base that normalises the sum",
            fix="train it again with an interface that leaves `layer_ln_1` and `layer_ln_2` out",
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
                "took what the sublayer reads, behind its norm, for the residual stream",
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
                "read the sum without the norm that this base has behind it",
                found=quoted(site.name for site in places if site.norm is not None),
                expected="an interface that names the norm",
            )
