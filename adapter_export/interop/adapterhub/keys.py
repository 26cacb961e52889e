"""The names of tensors in AdapterHub's files: which module of the base, which tensor of the adapter in it.

A name is `<prefix><module>.<container>.<adapter>.<tensor>`: `bert.encoder.layer.0.output` . `adapters` . `task` .
`adapter_up.weight`. The prefix is there or not, depending on the model class that saved the file.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

Container = Literal["adapters", "loras", "invertible_adapters", "shared_parameters", "adapter_fusion_layer"]

_CONTAINERS: Mapping[str, Container] = {
    "adapters": "adapters",
    "attention_text_task_adapters": "adapters",
    "attention_text_lang_adapters": "adapters",
    "layer_text_task_adapters": "adapters",
    "layer_text_lang_adapters": "adapters",
    "invertible_adapters": "invertible_adapters",
    "invertible_lang_adapters": "invertible_adapters",
    "adapter_fusion_layer": "adapter_fusion_layer",
    "loras": "loras",
    "shared_parameters": "shared_parameters",
}
"""What holds the modules of adapters, and what it was called in old files (`AdapterLoader.legacy_weights_mapping`)."""


@dataclass(frozen=True)
class Key:
    """A tensor's name, taken apart.

    Attributes:
        full: the whole name, for messages.
        module: the path of the module, with its prefix: `bert.encoder.layer.0.output`; empty for what belongs to the
            whole model.
        container: what it lies in.
        tensor: the rest: `adapter_up.weight`.
    """

    full: str
    module: str
    container: Container
    tensor: str


def parse_key(full: str, adapter: str) -> Key | None:
    """Take a tensor's name apart; None if it is not one of this adapter."""
    segments = full.split(".")
    for at, segment in enumerate(segments[:-2]):
        if segment in _CONTAINERS and segments[at + 1] == adapter:
            return Key(full, ".".join(segments[:at]), _CONTAINERS[segment], ".".join(segments[at + 2 :]))
    return None


@dataclass(frozen=True)
class Module:
    """The tensors of one adapter in one module of the base.

    Attributes:
        path: the module's path, with its prefix.
        keys: the whole name of each tensor.
        container: what they lie in.
    """

    path: str
    keys: Mapping[str, str]
    container: Container


def modules_of(keys: Iterable[Key], container: Container) -> tuple[Module, ...]:
    """The modules with tensors in a container, in the order of their names in the file."""
    found: dict[str, dict[str, str]] = {}
    for key in keys:
        if key.container == container:
            found.setdefault(key.module, {})[key.tensor] = key.full
    return tuple(Module(path, names, container) for path, names in found.items())
