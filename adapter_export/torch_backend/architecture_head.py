"""Heads of a base's own architecture, made by transformers from the base's configuration.

The head of an imported adapter is that of the class in which it was trained. A model of this class with one layer shows
which operations and tensors lie between the final hidden state and the results, like a captured base head; the tensors
of the adapter replace its own, and the model's own forward must compute what the head computes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import nn

from adapter_export.dtypes import Weights
from adapter_export.errors import AdapterError
from adapter_export.format.model_config import class_type
from adapter_export.graph.adapter import Head
from adapter_export.graph.graph import AdapterGraph
from adapter_export.safe_io.documents import parse_json
from adapter_export.safe_io.parsers import parsing
from adapter_export.tables import number_of
from adapter_export.torch_backend.base.base_head import BaseHead, TracedHead, head_results, traced_head
from adapter_export.torch_backend.base.example_inputs import obvious_inputs
from adapter_export.torch_backend.base.huggingface_folder import pretrained, quiet_transformers
from adapter_export.torch_backend.base.log_capture import captured_logs
from adapter_export.torch_backend.base.torch_base import TorchBase, base_of
from adapter_export.words import quoted

_LABELS = 2
"""Number of labels of a head whose tensors do not depend on it."""


@dataclass(frozen=True)
class ArchitectureHead:
    """The head of a class of transformers on a base.

    Attributes:
        name: the class.
        prefix: name of the base in the model.
        shapes: shapes of the tensors that the head reads, by name in the model, including those of the base.
        stored: values that the base's folder has for tensors of the head.
        whole: a model of the class with one layer.
        program: that model's program.
        traced: the head in the program.
        outputs: the model's outputs that are the head's result.
    """

    name: str
    prefix: str
    shapes: Mapping[str, tuple[int, ...]]
    stored: Mapping[str, np.ndarray]
    whole: nn.Module
    program: TorchBase
    traced: TracedHead
    outputs: Sequence[str]

    @property
    def graph(self) -> AdapterGraph:
        """The head's graph."""
        return self.traced.graph

    @property
    def widths(self) -> Mapping[str, int]:
        """Widths of the symbols in the graph."""
        return self.traced.widths

    @property
    def sources(self) -> Mapping[str, tuple[str, bool]]:
        """Return the tensor of each parameter in the graph, and whether the parameter is its transpose."""
        return {name: (source.name, source.turned) for name, source in self.traced.sources.items()}

    def weights(self, tensors: Mapping[str, np.ndarray]) -> Weights:
        """Return the parameters of the graph for these tensors of the model.

        Raises:
            AdapterError: the model computes something else with them than the graph.
        """
        state = self.whole.state_dict()
        with torch.no_grad():
            for name, tensor in tensors.items():
                state[name].copy_(torch.from_numpy(np.array(tensor, np.float32)))
        weights = dict(self.traced.weights)
        for name, source in self.traced.sources.items():
            tensor = tensors[source.name]
            weights[name] = np.ascontiguousarray(tensor.T if source.turned else tensor, np.float32)
        self._check(replace(self.traced, weights=weights))
        return weights

    def _check(self, traced: TracedHead) -> None:
        """Compare base plus head with the complete model, on inputs of several lengths."""
        bare: Any = getattr(self.whole, self.prefix)
        with captured_logs(), quiet_transformers(), parsing(partial(_not_made, self.name)):
            cases, results = head_results(self.whole, self.program, traced, self.outputs)
            examples = obvious_inputs(bare)
            assert examples is not None, "the model with its head has examples"
            base = base_of(bare, *examples)
        head = Head(traced.graph, traced.widths, None)
        found = BaseHead(self.name, head, traced, cases=cases, results=results)
        adapter, notes = found.of(base, model="", unused=())
        if adapter is None:
            raise AdapterError("the imported head differs from transformers' own", found="; ".join(map(str, notes)))


def architecture_head(
    base: TorchBase,
    endings: Sequence[str],
    name: str | None,
    saved: Mapping[str, tuple[int, ...]],
    folder: Path | None = None,
) -> ArchitectureHead | None:
    """Return the head of a base's architecture; `None` if the base does not record its configuration.

    Args:
        base: the base.
        endings: ends of the names of classes with such a head, such as `ForSequenceClassification`.
        name: the class, if known.
        saved: shapes of tensors of the head by name in the model, which determine the number of labels.
        folder: the base's folder, which may have tensors of the head.

    Raises:
        AdapterError: transformers has no such class, it does not have these tensors, or its head has an operation that
            the head language lacks.
    """
    if base.config is None:
        return None
    config = _config(base.config)
    kind = _class_of(config, endings, name)
    settings = _settings(kind, config, saved)
    whole, known = _made(kind, settings, folder)
    _check_same_base(whole, base)
    state = whole.state_dict()
    outputs = ["start_logits", "end_logits"] if class_type(kind.__name__) == "span" else ["logits"]
    examples = obvious_inputs(whole)
    if examples is None:
        raise _refusal(kind.__name__, "inputs that its documentation does not describe")
    with captured_logs(), quiet_transformers(), parsing(partial(_not_made, kind.__name__)):
        program, traced = traced_head(whole, outputs, examples)
    names = dict.fromkeys(source.name for source in traced.sources.values())
    prefix = whole.base_model_prefix
    return ArchitectureHead(
        kind.__name__,
        prefix,
        {each: tuple(state[each].shape) for each in names},
        {each: state[each].numpy() for each in names if each in known and not each.startswith(f"{prefix}.")},
        whole,
        program,
        traced,
        outputs,
    )


def _config(text: str) -> Any:
    """Return the configuration that an archive records; AdapterError if transformers does not accept it."""
    document: Any = parse_json(text.encode(), "the base's configuration")
    with captured_logs(), quiet_transformers(), parsing(partial(_not_made, "the configuration")):
        return transformers.AutoConfig.for_model(**document)


def _class_of(config: Any, endings: Sequence[str], name: str | None) -> Any:
    named: Any = getattr(transformers, name or "", None)
    if isinstance(named, type) and getattr(named, "config_class", None) is type(config) and class_type(str(name)):
        return named
    for ending in endings:
        mapping = getattr(getattr(transformers, f"AutoModel{ending}", None), "_model_mapping", {})
        if type(config) in mapping:
            found = mapping[type(config)]
            return found[0] if isinstance(found, tuple) else found
    raise AdapterError(
        "has a head, and transformers has no class with such a head for the base's architecture",
        found=f"`{config.model_type}` and {quoted(endings)}",
    )


def _settings(kind: Any, config: Any, saved: Mapping[str, tuple[int, ...]]) -> Any:
    """Return the configuration with the number of labels at which all saved tensors fit."""
    counts = list(dict.fromkeys([shape[0] for shape in saved.values() if shape] + [_LABELS]))
    misfits: dict[str, str] = {}
    for number in counts:
        settings = _smaller(config)
        settings.num_labels = number
        with captured_logs(), quiet_transformers(), parsing(partial(_not_made, kind.__name__)), torch.device("meta"):
            shapes = {key: tuple(value.shape) for key, value in kind(settings).state_dict().items()}
        unknown = [key for key in saved if key not in shapes]
        if unknown:
            raise AdapterError(
                f"has fully trained modules that `{kind.__name__}` does not have",
                found=quoted(unknown),
                expected="the modules of the model in which it was trained",
                fix="pass the model that it was trained on",
            )
        wrong = {key: shape for key, shape in saved.items() if shapes[key] != shape}
        if not wrong:
            return settings
        misfits = misfits or {key: f"`{key}` {list(shape)}, not {list(shapes[key])}" for key, shape in wrong.items()}
    raise AdapterError(
        f"has a head whose shapes do not match `{kind.__name__}` on this base",
        found="; ".join(misfits.values()),
        fix="pass the base that it was trained on",
    )


def _smaller(config: Any) -> Any:
    """Return a copy of a configuration with one layer, where it counts layers, and with a padding token.

    Without one, decoders classify single texts only. The one chosen here is only where the mask hides tokens.
    """
    copy = deepcopy(config)
    for each in {id(part): part for part in (copy, copy.get_text_config())}.values():
        if getattr(each, "pad_token_id", 0) is None:
            each.pad_token_id = 0
        if isinstance(getattr(each, "num_hidden_layers", None), int):
            each.num_hidden_layers = 1
            if isinstance(getattr(each, "layer_types", None), list):
                each.layer_types = each.layer_types[:1]
    return copy


def _made(kind: Any, config: Any, folder: Path | None) -> tuple[Any, set[str]]:
    """Return a model with random weights, or those of a folder, and the names of the latter."""
    if folder is None:
        with captured_logs(), quiet_transformers(), parsing(partial(_not_made, kind.__name__)):
            return kind(config).float().eval(), set()
    model, info = pretrained(folder, kind, config=config, ignore_mismatched_sizes=True)
    random = {*info["missing_keys"], *(key[0] for key in info["mismatched_keys"])}
    return model, {*model.state_dict()} - random


def _check_same_base(whole: Any, base: TorchBase) -> None:
    """Reject a configuration of another model than the program's."""
    inner = getattr(whole, whole.base_model_prefix, None)
    known = base.program.state_dict
    if inner is None:
        raise _refusal(type(whole).__name__, "no base inside the model")
    shapes = {name: tuple(value.shape) for name, value in inner.named_parameters()}
    common = {name: tuple(known[name].shape) for name in shapes if name in known}
    differing = [name for name, shape in common.items() if shape != shapes[name]]
    if differing or len(common) * 2 < len(shapes):
        raise AdapterError(
            "the configuration of the base is not that of its program",
            found=quoted(differing[:3]) or f"{len(common)} of {number_of(len(shapes), 'tensor')}",
            fix="capture the base again",
        )


def _refusal(name: str, found: str) -> AdapterError:
    return AdapterError("its head cannot be traced", where=f"`{name}`", found=found)


def _not_made(name: str, reason: str) -> AdapterError:
    return AdapterError(
        "transformers cannot compute with the architecture of the adapter's model",
        where=f"`{name}`" if name.isidentifier() else name,
        found=reason,
        fix="upgrade transformers, or merge the adapter with PEFT (`merge_and_unload`)",
    )
