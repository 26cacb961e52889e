"""The configs of AdapterHub's adapters, held against what its library does with them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from adapter_export.errors import AdapterError, FormatError, VersionError, within
from adapter_export.format.records import record_from_json
from adapter_export.graph.kinds.adapterhub import BottleneckConfig

NEWEST = (1, 3)
"""The newest version of the library whose files are known; `adapters.1.3.0` was read and run."""

_LEGACY_NEWEST = 3
"""The last major version under the library's old name, `adapter-transformers`, whose versions have no prefix."""

_PREFIX = "adapters."
_LORA_FIXED = (1, 1)

_WITHOUT_VERSION = {"gelu": "gelu_new", "gelu_orig": "gelu"}
"""Activations in files of before versions were written (`utils.ACTIVATION_RENAME`)."""

_WITHOUT_EFFECT = ("attention_type", "new_attention_norm")
"""Fields of version 1 that no version of the library reads in its forward pass."""

_REFUSED = {
    "prefix_tuning": "prefix tuning puts learned keys and values before each attention",
    "prompt_tuning": "prompt tuning makes the text longer",
    "reft": "ReFT acts on single positions",
    "mtl_lora": "MTL-LoRA mixes several up-projections",
    "union": "a union joins several methods in one adapter",
}


@dataclass(frozen=True)
class LoraConfig:
    """`LoRAConfig` by its own names: LoRA where `composition_mode` is `add`, IA3 where it is `scale`."""

    architecture: Literal["lora"]
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


@dataclass(frozen=True)
class Config:
    """What an `adapter_config.json` says.

    Attributes:
        method: the config of the method.
        name: the adapter's name.
        hidden_size: the width of the base.
        model_type: the architecture's name in transformers.
        version: as the file has it; none in files of before 2021.
        notes: what was changed on reading, as the library itself does.
    """

    method: BottleneckConfig | LoraConfig
    name: str
    hidden_size: int
    model_type: str | None
    version: str | None
    notes: tuple[str, ...] = ()


def read_config(document: Mapping[str, Any]) -> Config:
    """Read the JSON of an `adapter_config.json`.

    Raises:
        FormatError: a field is missing, unknown, or of a wrong type.
        VersionError: a newer version of the library wrote it.
        AdapterError: it is of a method that cannot be expressed; the message names it.
    """
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
        read, notes = _method(method, version)
    model_type = document.get("model_type")
    return Config(read, name, width, model_type if isinstance(model_type, str) else None, version, notes)


def _version(document: Mapping[str, Any]) -> str | None:
    version = document.get("version")
    if version is None:
        return None
    numbers = _numbers(version) if isinstance(version, str) else None
    if numbers is None:
        raise FormatError("states no version that can be read", found=f"`{version}`", expected=f"`{_PREFIX}1.3.0`")
    newer = numbers > NEWEST if version.startswith(_PREFIX) else numbers[0] > _LEGACY_NEWEST
    if newer:
        raise VersionError(
            "was written by a newer version of AdapterHub's library",
            found=f"`{version}`",
            expected=f"at most `{_PREFIX}{'.'.join(map(str, NEWEST))}`",
            fix="run `pip install --upgrade adapter-export`; what a newer version means is not known here",
        )
    return str(version)


def _numbers(version: str) -> tuple[int, int] | None:
    """The first two numbers of `adapters.1.3.0`, `1.0.0.dev0`, `3.2`."""
    found = re.match(r"(\d{1,6})\.(\d{1,6})", version.removeprefix(_PREFIX))
    return (int(found[1]), int(found[2])) if found else None


def _method(config: Mapping[str, Any], version: str | None) -> tuple[BottleneckConfig | LoraConfig, tuple[str, ...]]:
    architecture = config.get("architecture")
    if architecture in _REFUSED:
        raise _inexpressible(f"`{architecture}`", _REFUSED[architecture])
    if architecture is None:
        return _bottleneck(config, version)
    if architecture == "lora":
        return _lora(config, version)
    raise FormatError(
        "an unknown method", found=f"`architecture`: `{architecture}`", expected="none (a bottleneck) or `lora`"
    )


def _inexpressible(found: str, why: str) -> AdapterError:
    return AdapterError(
        f"{why}, which cannot be expressed as an adapter graph",
        found=found,
        expected="a bottleneck, LoRA or IA3",
        fix="train one of those instead",
    )


def _bottleneck(config: Mapping[str, Any], version: str | None) -> tuple[BottleneckConfig, tuple[str, ...]]:
    known: dict[str, Any] = {key: value for key, value in config.items() if key not in _WITHOUT_EFFECT}
    known.pop("architecture", None)
    notes: list[str] = []
    _unnest_invertible(known)
    if version is None and known.get("non_linearity") in _WITHOUT_VERSION:
        old = known["non_linearity"]
        known["non_linearity"] = _WITHOUT_VERSION[old]
        notes.append(f"the file has no version: its activation `{old}` is what is called `{_WITHOUT_VERSION[old]}` now")
    _check_fields(known, {field.name for field in fields(BottleneckConfig)})
    _check_scaling(known.get("scaling", 1.0))
    return record_from_json(BottleneckConfig, known), tuple(notes)


def _unnest_invertible(config: dict[str, Any]) -> None:
    """Version 1 had an object `invertible_adapter` where there are two fields now (`BnConfig.__setattr__`)."""
    old = config.pop("invertible_adapter", None)
    if isinstance(old, dict):
        config["inv_adapter"] = old.get("block_type")
        config["inv_adapter_reduction_factor"] = old.get("reduction_factor")


def _check_scaling(scaling: object) -> None:
    if isinstance(scaling, int):
        raise FormatError(
            "AdapterHub's library refuses a whole number here (`Unknown scaling type`)",
            where="`scaling`",
            found=f"`{scaling}`",
            expected="a number with a decimal point, `learned` or `channel`",
            fix=f"write `{scaling}.0` if that is the factor with which it was trained",
        )


def _lora(config: Mapping[str, Any], version: str | None) -> tuple[LoraConfig, tuple[str, ...]]:
    _check_fields(config, {field.name for field in fields(LoraConfig)})
    read = record_from_json(LoraConfig, dict(config))
    if read.use_dora:
        raise _inexpressible("`use_dora`", "DoRA normalises the base's own weights")
    if read.vera_d is not None or read.vera_b is not None:
        raise _inexpressible("`vera_d`, `vera_b`", "VeRA shares frozen random matrices")
    if version is not None and version.startswith(_PREFIX) and read.alpha != read.r:
        return _before_1_1(read, version)
    return read, ()


def _before_1_1(read: LoraConfig, version: str) -> tuple[LoraConfig, tuple[str, ...]]:
    """Those versions did not apply the factor; the library's own loader sets alpha to r (`_fix_backward_compat`)."""
    numbers = _numbers(version)
    if numbers is None or numbers >= _LORA_FIXED:
        return read, ()
    note = f"`{version}` trained without the factor alpha/r: alpha is {read.r}, not {read.alpha:g}, as in the library"
    return LoraConfig(**{**vars(read), "alpha": float(read.r)}), (note,)


def _check_fields(config: Mapping[str, Any], known: set[str]) -> None:
    """An option that is not known may change everything that is computed."""
    unknown = sorted(set(config) - known)
    if unknown:
        raise FormatError(
            "options that are not known",
            found=", ".join(f"`{name}`" for name in unknown),
            expected=f"only {', '.join(f'`{name}`' for name in sorted(known))}",
            fix="run `pip install --upgrade adapter-export`, or remove them if you know that they have no effect",
        )
