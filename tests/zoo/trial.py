"""One model through the whole pipeline, compared with the live module: hooked values and outputs."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from random_kinds import random_of_kind
from recipes import Model
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import adapter_export as ae
from adapter_export.errors import AdapterExportError, BaseModelError, InputError, UsageError
from adapter_export.graph.kinds import houlsby
from adapter_export.numerics.sample_inputs import input_cases
from adapter_export.sites.site import SiteMap
from adapter_export.torch_backend.base.capture_module import settled

TOLERANCE = 1e-4
"""Tolerance relative to the largest value: the live module and the captured graph only sum in different orders."""

FOUND = "; found "
"""Prefix of facts that may name other values on each machine."""

MOST_TOKENS = 40
"""The positions of the models that have a table of them."""


class LiveError(BaseModelError):
    """The captured graph does not compute the results of the live module."""


@dataclass
class Outcome:
    """Outcome of a model.

    Attributes:
        verdict: `complete`; `refused`; or `wrong`: the result is incomplete or differs from the model.
        sublayers: detected sublayers, out of those counted by hand.
        seen: values `h` and `y` of sublayers that are inputs or outputs of modules.
        error: largest difference from torch: between bundle and live module, and with an adapter between bundle and
            archive.
        reason: reason of a refusal, or the form of the capture, a sentence.
    """

    verdict: str = "wrong"
    sublayers: str = ""
    seen: str = ""
    error: float | None = None
    reason: str = ""


def examine(model: Model, folder: Path) -> Outcome:
    """Capture a model, find its sites, look for their values with hooks, build and check it with a random adapter."""
    warnings.simplefilter("ignore")  # those of transformers and of torch's exporter
    transformers.logging.set_verbosity(logging.CRITICAL)
    transformers.logging.disable_progress_bar()
    module, outcome = model.build(), Outcome()
    step = "capture"
    try:
        base, note = _captured(model, module, folder)
        step = "sites"
        sites = base.sites.map
        outcome.sublayers = f"{len(sites.sublayers)} of {model.sublayers}"
        base.sites.complete  # noqa: B018 - raises where it is not
        found = _seen(base, module, sites)
        outcome.seen = f"{sum(found)} of {len(found)}"
        step = "build"
        adapter = random_of_kind("random", houlsby().with_widths(b=4), sites, base.fingerprint)
        bundle = ae.build(base, [adapter], folder / "bundle", max_tokens=base.max_tokens, variants=["slots"])
        step = "check"
        report = ae.check(bundle, against=base)
        report.raise_for_failure()
        live = _off_live(bundle, base, module)
        outcome.error = max(live, *(float(each.absolute) for each in report.outputs))
    except AdapterExportError as error:
        outcome.verdict = "wrong" if step == "check" or isinstance(error, LiveError) else "refused"
        outcome.reason = f"`{step}`: {_words(error, folder)}"
        return outcome
    counted = len(sites.sublayers) == model.sublayers
    outcome.verdict = "complete" if counted else "wrong"
    outcome.reason = note if counted else "a part of the model was built as if it were the whole"
    return outcome


def _captured(model: Model, module: nn.Module, folder: Path) -> tuple[ae.Base, str]:
    """The model as a base: from a folder if it can be one, else by example inputs; and which of the two."""
    archive, refused = folder / "model.pt", ""
    fixed = f", with {' and '.join(f'`{each}`' for each in model.lengths)}" if model.lengths else ""
    if isinstance(module, transformers.PreTrainedModel):
        module.save_pretrained(folder / "hf")
        try:
            return ae.capture(folder / "hf", archive, lengths=model.lengths), f"from its folder{fixed}"
        except (InputError, UsageError) as error:
            if model.inputs is None:
                raise
            refused = f"; its folder is refused: {_words(error, folder)}"
    assert model.inputs is not None
    base = ae.capture(module, archive, example_inputs=dict(model.inputs()), axes=model.axes, lengths=model.lengths)
    return base, f"by example inputs{fixed}{refused}"


def _words(error: AdapterExportError, folder: Path) -> str:
    """Return an error without the facts that differ from run to run."""
    known = error.facts()
    text = known["what"] + (f"{FOUND}{known['found']}" if "found" in known else "")
    text = " ".join(text.replace(str(folder), "").split())
    return text if len(text) <= 180 else f"{text[:179].rpartition(' ')[0]} …"


def _seen(base: ae.Base, module: nn.Module, sites: SiteMap) -> list[bool]:
    """For `h` and `y` of each sublayer, whether the value goes into or comes out of a module of the live model."""
    arrays = _cases(base, beyond=False)[-1]
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    kept: dict[int, list[Tensor]] = {}

    def keep(value: object) -> None:
        for tensor in pytree.tree_leaves(value):
            if isinstance(tensor, Tensor) and tensor.is_floating_point():
                kept.setdefault(tensor.numel(), []).append(tensor.detach().clone())

    handles = []
    for inner in module.modules():
        handles.append(inner.register_forward_pre_hook(lambda _m, given, named: keep((given, named)), with_kwargs=True))
        handles.append(inner.register_forward_hook(lambda _m, _given, result: keep(result)))
    _live(module, tensors)
    for handle in handles:
        handle.remove()
    wanted = [value for site in sites.sublayers for value in (site.h, site.y) if value is not None]
    values = _Recorder(base.torch.module(), set(wanted)).values(base.torch.ordered(tensors))
    return [any(_equal(values[name], other) for other in kept.get(values[name].numel(), [])) for name in wanted]


def _equal(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors are equal up to the layout of tokens and batch."""
    scale = float(one.abs().max())
    layouts = [other, other.transpose(0, 1)] if other.dim() > 1 else [other]
    return any(float((one - each.reshape(one.shape)).abs().max()) <= TOLERANCE * scale for each in layouts)


class _Recorder(torch.fx.Interpreter):
    """Runs a graph and keeps some values."""

    def __init__(self, graph: torch.fx.GraphModule, wanted: set[str]) -> None:
        super().__init__(graph)
        self._wanted, self._kept = wanted, dict[str, Tensor]()

    def run_node(self, n: torch.fx.Node) -> Any:
        result = super().run_node(n)
        if n.name in self._wanted:
            self._kept[n.name] = result.detach().clone()
        return result

    def values(self, inputs: list[Tensor]) -> Mapping[str, Tensor]:
        with torch.no_grad():
            self.run(*inputs)
        return self._kept


def _cases(base: ae.Base, *, beyond: bool) -> list[dict[str, np.ndarray]]:
    """Inputs of the lengths that a base takes, and with `beyond` of others."""
    cases = input_cases(base.inputs, seed=7, lengths=base.lengths, max_tokens=base.max_tokens or MOST_TOKENS)
    cases += input_cases(base.inputs, seed=7, max_tokens=MOST_TOKENS) if beyond else []
    return [dict(case.arrays) for case in cases]


def _live(module: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """Return the output of a copy: some models adapt to their first input."""
    try:
        with settled(module), torch.no_grad():
            return {name: value.numpy() for name, value in copy.deepcopy(module)(**tensors).items()}
    except (RuntimeError, IndexError) as error:
        raise LiveError("the live module does not take what the base takes", found=error) from error


def _off_live(bundle: ae.Bundle, base: ae.Base, module: nn.Module) -> float:
    """Return the deviation of the bundle without an adapter from the live module at real tokens; raise if too large."""
    session, largest, compared = bundle.session(), 0.0, 0
    for arrays in _cases(base, beyond=True):
        try:
            found = session.run(arrays, None)
        except InputError:  # a length that the bundle does not take, and says so
            continue
        expected = _live(module, {name: torch.from_numpy(array) for name, array in arrays.items()})
        for name, one, other in _pairs(found, expected):
            mask = arrays.get("attention_mask")
            real = mask == 1 if mask is not None and mask.shape == other.shape[:2] else slice(None)
            off = float(np.abs(one[real] - other[real]).max(initial=0))
            compared, largest = compared + 1, max(largest, off)
            if off > 10 * TOLERANCE * max(1.0, float(np.abs(other).max())):
                shape = ", ".join(f"`{key}` {list(array.shape)}" for key, array in arrays.items())
                raise LiveError(f"the bundle is off the live module by {off:.0e} at {shape}, `{name}`")
    if not compared:
        raise LiveError("no output of the live module could be compared")
    return largest


def _pairs(
    found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    for name in found.keys() & expected.keys():
        if expected[name].dtype.kind == "f" and expected[name].shape == found[name].shape:
            yield name, found[name], expected[name]
