"""Rules that name the cause of a failure, each with a measurement, a reason and a fix.

A rule that knows a repair applies it to a copy of the tensors and asks the importer again: the cause is proved if the
copy is imported.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from adapter_export.bases.base_view import BaseView
from adapter_export.dtypes import FLOAT_TYPES
from adapter_export.errors import (
    AdapterError,
    AdapterExportError,
    FileError,
    FormatError,
    OtherModulesError,
    TensorError,
    UsageError,
)
from adapter_export.graph.adapter import Adapter
from adapter_export.graph.tasks import CLASSES
from adapter_export.plugins.formats.doctor.adapter_files import (
    PREFIX,
    AdapterFiles,
    layer_numbers,
    plain_key,
    site_path,
)
from adapter_export.plugins.formats.doctor.diagnosis import Cause, Severity, ToolReading
from adapter_export.plugins.formats.doctor.site_changes import SiteChange
from adapter_export.plugins.formats.importers.peft.peft_importer import LOST_MODULES
from adapter_export.plugins.formats.importers.peft.peft_options import STARTS_OF_BASE
from adapter_export.tables import number_of, verb_for
from adapter_export.words import joined

Match = tuple[str, str]
"""The measurement of a rule, and the values it expects."""


@dataclass(frozen=True)
class Case:
    """An adapter whose files can be read, with what the importer made of it.

    Attributes:
        files: its files.
        base: the base.
        base_config: the base's `config.json`; empty for other forms.
        error: the importer's refusal, if any.
        adapter: the imported adapter, if there is no refusal.
        changes: its change at each site.
        tools: what other tools make of it.
        imports: whether the importer accepts other files of the same folder.
    """

    files: AdapterFiles
    base: BaseView
    base_config: Mapping[str, Any]
    error: AdapterExportError | None
    adapter: Adapter | None
    changes: Sequence[SiteChange]
    tools: Mapping[str, ToolReading]
    imports: Callable[[AdapterFiles], bool]

    def misfit(self) -> str | None:
        """Return the first module of a LoRA whose matrices are incomplete, or do not fit the base's layer."""
        for path, pair in self.pairs.items():
            known, down, up = self.widths(path), pair.get("lora_A.weight"), pair.get("lora_B.weight")
            if down is None or up is None or (known is not None and (len(up), down.shape[1]) != known):
                return path
        return next((tensor.path for tensor in self.files.modules if self.files.tensors[tensor.key].size == 0), None)

    @cached_property
    def linear_paths(self) -> dict[str, tuple[int, int]]:
        """Widths (out, in) of the base's linear layers by module path."""
        linear = self.base.sites.of_roles(("linear",))
        return {site.path: (site.width, site.width_in) for site in linear if site.path is not None}

    @cached_property
    def pairs(self) -> dict[str, dict[str, np.ndarray]]:
        """Matrices `lora_A.weight` [r, in] and `lora_B.weight` [out, r] of each module of a LoRA."""
        pairs: dict[str, dict[str, np.ndarray]] = {}
        for tensor in self.files.modules:
            if tensor.role in ("lora_A.weight", "lora_B.weight") and self.files.tensors[tensor.key].ndim == 2:
                pairs.setdefault(tensor.path, {})[tensor.role] = self.files.tensors[tensor.key]
        return pairs

    def widths(self, path: str) -> tuple[int, int] | None:
        """Return the widths (out, in) of the base's layer for a module of the adapter."""
        known = site_path(path, self.linear_paths)
        return None if known is None else self.linear_paths[known]


@dataclass(frozen=True)
class Rule:
    """A rule that finds one cause.

    Attributes:
        name: its name in reports.
        severity: whether the adapter is broken.
        reason: reason why it matters.
        fix: an imperative clause.
        find: yields the measurement and the expected values.
    """

    name: str
    severity: Severity
    reason: str
    fix: str
    find: Callable[[Case], Iterator[Match]]


def causes_of(case: Case) -> tuple[Cause, ...]:
    """Apply all rules; a refusal that none explains is a cause by itself."""
    rules = [rule for rule in RULES if rule.severity == "broken" or case.error is None]
    causes = [
        Cause(rule.name, rule.severity, *match, rule.reason, rule.fix) for rule in rules for match in rule.find(case)
    ]
    if case.error is not None and not any(cause.severity == "broken" for cause in causes):
        causes.insert(0, cause_of_error(case.error))
    return tuple(causes)


_OF_ERRORS: tuple[tuple[type[AdapterExportError], str], ...] = (
    (OtherModulesError, "other-modules"),
    (TensorError, "tensors-do-not-fit"),
    (FormatError, "damaged-file"),
    (FileError, "missing-file"),
    (AdapterError, "not-expressible"),
    (UsageError, "more-information"),
)
"""Names of refusals without a rule of their own, by class."""


def cause_of_error(error: AdapterExportError, name: str | None = None) -> Cause:
    """Return a refusal of the importer as a cause."""
    named = name or next((name for kind, name in _OF_ERRORS if isinstance(error, kind)), "refused")
    measured = joined(filter(None, (error.where, error.what, error.found)), ": ")
    return Cause(named, "broken", measured, error.expected or "", "the importer refuses it", error.fix or "")


# Rules on the tensors.


def _empty(case: Case) -> Iterator[Match]:
    empty = [key for key, tensor in case.files.tensors.items() if tensor.size == 0]
    if empty:
        count = f"{len(empty)} of {number_of(len(case.files.tensors), 'tensor')} {verb_for(len(empty), 'are')} empty"
        yield f"{count}, such as `{empty[0]}`", "no empty tensor"


def _not_finite(case: Case) -> Iterator[Match]:
    floats = {key: tensor for key, tensor in case.files.tensors.items() if tensor.dtype.name in FLOAT_TYPES}
    wrong = [key for key, tensor in floats.items() if not np.isfinite(tensor).all()]
    if wrong:
        yield f"{number_of(len(wrong), 'tensor')} with NaN or Inf, such as `{wrong[0]}`", "finite numbers"


_QUANTIZED = re.compile(r"\.(?:absmax|quant_map|nested_absmax|nested_quant_map|SCB|weight_format|quant_state\.\w+)$")


def _quantized(case: Case) -> Iterator[Match]:
    packed = [key for key, tensor in case.files.tensors.items() if tensor.dtype.name in ("uint8", "int8")]
    records = [key for key in case.files.tensors if _QUANTIZED.search(key)]
    if packed or records:
        count = len({*packed, *records})
        yield f"{count} tensors are of a quantized base, such as `{[*records, *packed][0]}`", "tensors of the adapter"


def _alpha_in_tensors(case: Case) -> Iterator[Match]:
    alphas = [key for key in case.files.tensors if key.endswith(".alpha")]
    if alphas:
        yield f"{number_of(len(alphas), 'tensor')} `….alpha`, which PEFT ignores", "`lora_alpha` in the config"


def _names_in_keys(case: Case) -> dict[str, int]:
    """Return the adapter names inside keys, as in `lora_A.default.weight`, with their numbers of tensors."""
    names: dict[str, int] = {}
    for tensor in case.files.modules:
        match = re.fullmatch(r"lora_(?:[AB]|embedding_[AB]|magnitude_vector)\.(\w+)(?:\.weight|\.bias)?", tensor.role)
        if match and match[1] not in ("weight", "bias"):
            names[match[1]] = names.get(match[1], 0) + 1
    return names


def _two_adapters(case: Case) -> Iterator[Match]:
    names = _names_in_keys(case)
    if len(names) > 1:
        counted = ", ".join(f"`{name}` ({count} tensors)" for name, count in names.items())
        yield f"the file contains the adapters {counted}", "one adapter in a file"


def _name_in_keys(case: Case) -> Iterator[Match]:
    names = list(_names_in_keys(case))
    if len(names) == 1 and case.error is not None:
        proof = "; without it, they import" if case.imports(_with_plain_keys(case)) else ""
        yield f"keys contain the adapter's name `{names[0]}`{proof}", "keys as `save_pretrained` writes them"


def _with_plain_keys(case: Case) -> AdapterFiles:
    """Return the files with keys as PEFT saves them."""
    names = list(_names_in_keys(case))
    name = f".{names[0]}." if len(names) == 1 else ""
    return case.files.with_keys(lambda key: plain_key(key.replace(name, ".") if name else key))


def _halves(case: Case) -> Iterator[Match]:
    halves = [f"{path}.{role}" for path, pair in case.pairs.items() if len(pair) == 1 for role in _other_half(pair)]
    if case.error is not None and halves:
        count = f"{number_of(len(halves), 'matrix', 'matrices')} {verb_for(len(halves), 'are')} missing"
        yield f"{count}, such as `{halves[0]}`", "`lora_A` and `lora_B` for each module"
    elif case.error is not None and case.error.what == LOST_MODULES and not list(_other_layers(case)):
        yield f"no tensors for {case.error.found}, which the config selects", "tensors of every selected module"


def _other_half(pair: Mapping[str, np.ndarray]) -> list[str]:
    return [role for role in ("lora_A.weight", "lora_B.weight") if role not in pair]


# Rules on the names of tensors.


def _prefix(case: Case) -> Iterator[Match]:
    paths = {tensor.path: site_path(tensor.path, case.linear_paths) for tensor in case.files.modules}
    if case.files.library != "PEFT" or not paths or not any(paths.values()):
        return
    example = next(path for path, known in paths.items() if known is not None)
    if case.error is not None:
        if plain_key(example) != example and case.imports(_with_plain_keys(case)):
            yield f"`{example}…`; as `{plain_key(example)}…`, it imports", f"keys that begin with `{PREFIX}`"
        return
    reading = case.tools.get("PEFT")
    if reading is not None and reading.reads == "none":
        expected = f"`{reading.missing[0]}`" if reading.missing else "paths of the model of training"
        yield (
            f"PEFT ignores all of {number_of(len(reading.ignored), 'tensor')}, such as `{reading.ignored[0]}`",
            expected,
        )


def _mlx(case: Case) -> Iterator[Match]:
    keys = [key for key in case.files.tensors if key.endswith((".lora_a", ".lora_b"))]
    if keys and case.files.kind is None:
        yield f"keys such as `{keys[0]}`, and a config without `peft_type`", "an adapter of PEFT"


def _transposed(case: Case) -> Iterator[Match]:
    reversed_paths = []
    for path, pair in case.pairs.items():
        known = case.widths(path)
        down, up = pair.get("lora_A.weight"), pair.get("lora_B.weight")
        if known is None or down is None or up is None or down.shape[0] == down.shape[1]:
            continue
        width, width_in = known
        if down.shape[0] == width_in != down.shape[1] and up.shape[1] == width != up.shape[0]:
            reversed_paths.append(path)
    if reversed_paths and case.error is not None:
        factors = {tensor.key for tensor in case.files.modules if tensor.path in set(reversed_paths)}
        turned = {key: tensor.T if key in factors else tensor for key, tensor in case.files.tensors.items()}
        proof = "; transposed, they import" if case.imports(replace(case.files, tensors=turned)) else ""
        shape = list(case.pairs[reversed_paths[0]]["lora_A.weight"].shape)
        modules = number_of(len(reversed_paths), "module")
        yield f"`lora_A` is {shape} at `{reversed_paths[0]}`, and so at {modules}{proof}", "[r, in]"


# Rules on the config.


def _alpha_missing(case: Case) -> Iterator[Match]:
    if case.files.kind == "LORA" and case.files.config.get("lora_alpha") is None:
        rank = case.files.config.get("r", 8)
        yield f"the config has no `lora_alpha`; PEFT would scale by 8/{rank}", "the alpha of training"


def _rank(case: Case) -> Iterator[Match]:
    stated, pattern = case.files.config.get("r"), case.files.config.get("rank_pattern")
    ranks = {len(pair["lora_A.weight"]) for pair in case.pairs.values() if "lora_A.weight" in pair}
    if case.files.kind != "LORA" or pattern or not isinstance(stated, int) or list(_transposed(case)):
        return
    if case.error is not None and ranks and ranks != {stated}:
        config = {**case.files.config, "r": ranks.pop()} if len(ranks) == 1 else None
        proof = ""
        if config is not None and case.imports(replace(case.files, config=config)):
            proof = f"; with `r` {config['r']}, it imports"
        yield f"the matrices have other ranks than the config's `r`{proof}", f"{stated}"


# Rules on adapter and base.


def _other_architecture(case: Case) -> Iterator[Match]:
    if isinstance(case.error, OtherModulesError) and case.error.what == "was trained on another architecture":
        yield f"trained on {case.error.found}", str(case.error.expected)


def _other_layers(case: Case) -> Iterator[Match]:
    if case.error is None:
        return
    of_adapter = layer_numbers([tensor.path for tensor in case.files.modules])
    of_base = layer_numbers(list(case.linear_paths))
    if not of_adapter or not of_base:
        return
    lost = case.error.what == LOST_MODULES and of_adapter == set(range(max(of_adapter) + 1)) < of_base
    if lost or max(of_adapter) > max(of_base):
        yield f"tensors for {max(of_adapter) + 1} layers", f"the base's {max(of_base) + 1}"


def _other_width(case: Case) -> Iterator[Match]:
    if case.error is None or list(_transposed(case)):
        return
    for path, pair in case.pairs.items():
        known = case.widths(path)
        down, up = pair.get("lora_A.weight"), pair.get("lora_B.weight")
        if known is None or down is None or up is None or 0 in (*down.shape, *up.shape):
            continue
        if (up.shape[0], down.shape[1]) != known:
            yield f"`{path}` maps {down.shape[1]} to {up.shape[0]} features", f"{known[1]} to {known[0]}, as the base"
            return


_VOCABULARY = re.compile(r"(?:embed_tokens|word_embeddings|wte|embed_in|lm_head|embed_out)\.(?:[\w.]+\.)?weight$")


def _other_vocabulary(case: Case) -> Iterator[Match]:
    size = case.base_config.get("vocab_size")
    rows = {
        key: len(tensor)
        for key, tensor in case.files.tensors.items()
        if _VOCABULARY.search(key) and "lora_" not in key and tensor.ndim == 2
    }
    other = next((key for key, count in rows.items() if count != size), None)
    if isinstance(size, int) and other is not None:
        yield f"`{other}` has {rows[other]:,} rows", f"the base's vocabulary of {size:,}"


def _other_labels(case: Case) -> Iterator[Match]:
    labels = case.base_config.get("id2label")
    head = None if case.adapter is None else case.adapter.head
    count = None if head is None else head.widths.get(CLASSES)
    reading = case.tools.get("PEFT")
    if count is None:
        return
    if isinstance(labels, dict) and labels and len(labels) != count:
        yield f"a head of {count} labels", f"the base's {len(labels)}"
    elif reading is not None and reading.reads == "refuses" and "modules_to_save" in reading.reason:
        yield f"a head of {count} labels; PEFT: {reading.reason}", "a model with as many labels"


def _untrained(case: Case) -> Iterator[Match]:
    only_sites = case.adapter is not None and case.adapter.head is None
    if only_sites and case.changes and all(change.zero for change in case.changes):
        yield f"the update is exactly zero at all {number_of(len(case.changes), 'site')}", "a trained adapter"


def _idle_sites(case: Case) -> Iterator[Match]:
    idle = [change.site.name for change in case.changes if change.zero]
    with_head = case.adapter is not None and case.adapter.head is not None
    if idle and (len(idle) < len(case.changes) or with_head):
        sites = number_of(len(case.changes), "site")
        yield f"the update is exactly zero at {len(idle)} of {sites}, such as `{idle[0]}`", "none"


_MERGED_RANGE, _MOST_ERROR, _LEAST_SITES = (0.8, 1.25), 0.1, 2


def _merged(case: Case) -> Iterator[Match]:
    """Find updates that the base already contains: then ⟨W, ΔW⟩ / ‖ΔW‖² is 1 at each layer, else near 0."""
    if case.files.config.get("init_lora_weights") in STARTS_OF_BASE:
        return
    overlaps = [change.overlap for change in case.changes if change.overlap is not None]
    clear = [value for value, error in overlaps if error < _MOST_ERROR]
    low, high = _MERGED_RANGE
    if len(clear) >= _LEAST_SITES and sum(low < value < high for value in clear) > 0.9 * len(clear):
        middle = float(np.median(clear))
        error = math.sqrt(sum(error**2 for _, error in overlaps)) / len(overlaps)
        measured = f"⟨W, ΔW⟩/‖ΔW‖² is {middle:.2f} ± {error:.2f} over {number_of(len(clear), 'layer')}"
        yield measured, "near 0: 1 means that the base already contains the update"


def _strength_elsewhere(case: Case) -> Iterator[Match]:
    for reading in case.tools.values():
        if reading.scale is not None and reading.reads not in ("refuses", "not asked"):
            yield f"{reading.tool} {reading.scale}", "the factor of training"


def _ignored_elsewhere(case: Case) -> Iterator[Match]:
    for reading in case.tools.values():
        if reading.ignored and not (reading.tool == "PEFT" and reading.reads == "none" and list(_prefix(case))):
            tensors = number_of(len(reading.ignored), "tensor")
            yield (
                f"{reading.tool} ignores {tensors} without an error: {reading.reason}",
                "all tensors",
            )


RULES: Sequence[Rule] = (
    Rule(
        "empty-tensors",
        "broken",
        "DeepSpeed ZeRO-3 and FSDP keep the values on other processes, and the file was saved without gathering them",
        "save it again with `stage3_gather_16bit_weights_on_model_save`, or convert the checkpoint with "
        "`zero_to_fp32.py`",
        _empty,
    ),
    Rule("not-finite", "broken", "the training diverged", "take an earlier checkpoint", _not_finite),
    Rule(
        "quantized-base",
        "broken",
        "a state dict of the whole quantized model was saved, and its packed weights are not those of another base",
        "save with `model.save_pretrained` of PEFT, or keep only the keys with `lora_`",
        _quantized,
    ),
    Rule(
        "mlx-adapter",
        "broken",
        "mlx-lm transposes both matrices and stores a scale instead of alpha",
        "convert it to PEFT: transpose both matrices, and write `lora_alpha` = scale · rank",
        _mlx,
    ),
    Rule(
        "two-adapters",
        "broken",
        "a state dict of a model with several adapters was saved; loaders take one of them, or none",
        "save each with `save_pretrained(folder, selected_adapters=[NAME])`",
        _two_adapters,
    ),
    Rule(
        "adapter-name-in-keys",
        "broken",
        "a state dict was saved instead of the adapter, and loaders insert the name a second time",
        "save it with `save_pretrained`, or remove the name from the keys",
        _name_in_keys,
    ),
    Rule(
        "alpha-in-tensors",
        "broken",
        "trainers outside of PEFT store alpha as tensors; without it, the strength is another one",
        "write alpha into the config, and remove these tensors",
        _alpha_in_tensors,
    ),
    Rule(
        "alpha-missing",
        "broken",
        "the strength of the update is unknown, and the default is rarely the alpha of training",
        "add `lora_alpha` to the config",
        _alpha_missing,
    ),
    Rule(
        "wrong-prefix",
        "broken",
        "loaders look up whole paths, find none of them, and leave the adapter at its initialization, which is zero",
        "rename the keys, or unwrap the model before saving",
        lambda case: _prefix(case) if case.error is not None else iter(()),
    ),
    Rule(
        "ignored-by-peft",
        "caution",
        "the paths are those of another class, or of a wrapped model; PEFT keeps the adapter at its initialization",
        "open the model in PEFT with the class of training, or rename the keys",
        lambda case: _prefix(case) if case.error is None else iter(()),
    ),
    Rule(
        "transposed",
        "broken",
        "PEFT stores `lora_A` as [r, in] and `lora_B` as [out, r], also for `Conv1D` layers, which store [in, out]",
        "transpose both matrices",
        _transposed,
    ),
    Rule("rank", "broken", "the config is that of another run", "get both files from one run", _rank),
    Rule(
        "other-architecture",
        "broken",
        "the modules of two architectures do not correspond",
        "pass the model that it was trained on",
        _other_architecture,
    ),
    Rule(
        "other-layers",
        "broken",
        "it was trained on a model with another number of layers, or the file lost those of some",
        "pass the model that it was trained on, or get the file from its source again",
        _other_layers,
    ),
    Rule(
        "other-width",
        "broken",
        "it was trained on a model of another size",
        "pass the model that it was trained on",
        _other_width,
    ),
    Rule(
        "missing-tensors",
        "broken",
        "a shard or a part of the file is lost; loaders leave these modules at their initialization",
        "get the file from its source again",
        _halves,
    ),
    Rule(
        "other-vocabulary",
        "broken",
        "tokens were added in training, so the embeddings are those of another base",
        "resize the base as in training, save it, and pass that one",
        _other_vocabulary,
    ),
    Rule(
        "untrained",
        "broken",
        "LoRA starts with `lora_B` at zero: it was saved before training, by a process without the trained values, or "
        "after loading it under other names",
        "save it again from the trained model",
        _untrained,
    ),
    Rule(
        "already-merged",
        "broken",
        "the base contains this adapter, so it would be applied twice",
        "pass the model before `merge_and_unload`, or use the merged one without the adapter",
        _merged,
    ),
    Rule(
        "idle-sites",
        "caution",
        "these sites were not trained, or their values were lost",
        "train them, or leave them out to save time",
        _idle_sites,
    ),
    Rule(
        "head-of-other-labels",
        "caution",
        "the base's own head has other labels; other tools refuse the adapter, or keep the base's head",
        "in other tools, open the base with the adapter's number of labels; the import takes the adapter's head",
        _other_labels,
    ),
    Rule(
        "other-strength",
        "caution",
        "the tool does not read this option of the config",
        "for that tool, multiply `lora_B` by the quotient of the factors, and write the usual alpha",
        _strength_elsewhere,
    ),
    Rule(
        "ignored-elsewhere",
        "caution",
        "the tool answers without them, and says nothing",
        "merge the adapter for that tool, or build a bundle",
        _ignored_elsewhere,
    ),
)
"""All rules, in the order of reports."""
