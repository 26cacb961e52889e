"""`adapter_config.json`: what is read, what may stand there, and what is refused by name.

The rule for its keys, which grow in number with every version of PEFT:

1. Keys that say what is computed are read (`r`, `lora_alpha`, …).
2. Keys that only say how it was trained, where from, and by which version may have any value.
3. Keys that change what is computed in a way that is not read must be off, and are refused with the reason otherwise.
4. Keys that are not known must be off. Off is `null`, `false`, or an empty text, list or object: so PEFT writes what is
   not used.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from adapter_export.errors import AdapterError, FormatError

# What PEFT can save and this package cannot say, by name and with the reason.

LORA, IA3 = "LORA", "IA3"
"""The values of `peft_type` that are read."""

_PROMPT = "it puts trained vectors among the tokens or the keys and values, which is no change at a site"
_ROTATES = "it multiplies the base's weights by a trained matrix"
_FROM_WEIGHTS = "what it computes depends on the base's weights, which an adapter graph cannot read"
_PRODUCT = "its update is built of products that the language of adapter graphs has no op for"

KINDS: Mapping[str, str] = {
    "ADALORA": "its update has trained singular values between the two matrices, and ranks of its own",
    "LOHA": _PRODUCT,
    "LOKR": _PRODUCT,
    "VERA": "its matrices are random numbers that are shared and perhaps not in the file",
    "PVERA": "its matrices are random numbers that are shared and perhaps not in the file",
    "RANDLORA": "its matrices are random numbers that are shared and perhaps not in the file",
    "VBLORA": "its matrices are put together from a bank of vectors",
    "OFT": _ROTATES,
    "BOFT": _ROTATES,
    "HRA": _ROTATES,
    "ROAD": _ROTATES,
    "C3A": _PRODUCT,
    "FOURIERFT": _PRODUCT,
    "WAVEFT": _PRODUCT,
    "MISS": _PRODUCT,
    "HIRA": _FROM_WEIGHTS,
    "DELORA": _FROM_WEIGHTS,
    "SHIRA": _FROM_WEIGHTS,
    "OSF": _FROM_WEIGHTS,
    "LN_TUNING": "it holds trained norms of the base, not an adapter beside it",
    "TRAINABLE_TOKENS": "it holds trained rows of the embeddings",
    "XLORA": "it mixes several adapters by a trained gate over two passes of the base",
    "POLY": "it mixes a set of modules by the task",
    "PROMPT_TUNING": _PROMPT,
    "MULTITASK_PROMPT_TUNING": _PROMPT,
    "P_TUNING": _PROMPT,
    "PREFIX_TUNING": _PROMPT,
    "CPT": _PROMPT,
    "CARTRIDGE": _PROMPT,
    "ADAPTION_PROMPT": _PROMPT,
}
"""Why a `peft_type` is not read. A type that is not named here is refused as unknown."""

OPTIONS: Mapping[str, str] = {
    "use_dora": "DoRA divides by the norm of the base's weights plus the update, which an adapter graph cannot read",
    "use_qalora": "QA-LoRA pools the input in groups, which no op of the language does",
    "use_bdlora": "block-diagonal LoRA has matrices of another shape",
    "layer_replication": "the base has its layers in another order and number than the one that it names",
    "trainable_token_indices": "trained rows of the embeddings are no change at a site",
    "alora_invocation_tokens": "activated LoRA acts only behind certain tokens, and an adapter acts on every token",
    "megatron_config": "the layers of Megatron are split over devices",
    "target_parameters": "LoRA on a parameter that is no layer, such as a stack of experts, has no site",
    "target_modules_to_tie": "tied modules share the matrices of the embeddings",
    "ensure_weight_tying": "tied modules share the matrices of the embeddings",
    "arrow_config": "it mixes several adapters for each token",
    "kasa_config": "KaSA truncates the base's weights, so that the base is another one",
    "monteclora_config": "it samples its matrices",
    "corda_config": "CorDA takes its start out of the base's weights, so that the base is another one",
    "lora_ga_config": "LoRA-GA takes its start out of the base's weights, so that the base is another one",
    "loftq_config": "LoftQ quantises the base's weights, so that the base is another one",
}
"""Options of LoRA that change what is computed: they must be off, which is `null`, `false` or empty."""

PLAIN_STARTS = ("gaussian", "orthogonal", "eva", "mica")
"""Values of `init_lora_weights`, beside true and false, that leave the base's weights alone."""

START = "its start is taken out of the base's weights, so that it fits only a base that is changed in the same way"
START_FIX = (
    "convert it to plain LoRA: `save_pretrained(folder, path_initial_model_for_weight_conversion=…)` in PEFT, with the "
    "adapter as it was before training"
)

_EMBEDDING = "LoRA on an embedding has no site: it acts on token numbers, not on what a layer reads"

TENSORS: Mapping[str, str] = {
    "lora_embedding_A": _EMBEDDING,
    "lora_embedding_B": _EMBEDDING,
    "lora_magnitude_vector": OPTIONS["use_dora"],
    "lora_E": KINDS["ADALORA"],
    "ranknum": KINDS["ADALORA"],
    "lora_diag": OPTIONS["kasa_config"],
    "trainable_tokens_delta": OPTIONS["trainable_token_indices"],
    "prompt_embeddings": _PROMPT,
    "hada_w1_a": KINDS["LOHA"],
    "lokr_w1": KINDS["LOKR"],
    "vera_lambda_b": KINDS["VERA"],
}
"""Why a tensor with such a word in its name is refused."""


Kind = Literal["lora", "ia3"]
Biases = Literal["none", "all", "lora_only"]
Names = str | tuple[str, ...] | None
"""Modules, as PEFT writes them: a regular expression that matches all of a path, or the ends of paths."""

_KINDS: Mapping[str, Kind] = {LORA: "lora", IA3: "ia3"}

_READ = frozenset(
    {
        "peft_type",
        "task_type",
        "auto_mapping",
        "r",
        "lora_alpha",
        "lora_dropout",
        "rank_pattern",
        "alpha_pattern",
        "use_rslora",
        "bias",
        "lora_bias",
        "target_modules",
        "exclude_modules",
        "feedforward_modules",
        "modules_to_save",
        "layers_to_transform",
        "layers_pattern",
        "init_lora_weights",
    }
)

NO_MATTER = frozenset(
    {
        "base_model_name_or_path",
        "revision",
        "peft_version",
        "inference_mode",
        "fan_in_fan_out",  # the layout of the base's weights; the adapter's own do not depend on it
        "megatron_core",
        "qalora_group_size",
        "eva_config",
        "velora_config",  # another backward pass
        "init_ia3_weights",
        "merge_weights",
    }
)
"""Keys that only say how an adapter was trained, on what, and by which version."""


@dataclass(frozen=True)
class Options:
    """What `adapter_config.json` says of what is computed.

    Attributes:
        kind: `lora` or `ia3`.
        task_type: PEFT's name of the task, such as `SEQ_CLS`.
        model_class: the class of the model that it was trained in, if the folder says it.
        architecture: the name of that model's architecture in transformers, if the folder says it.
        rank: `r`.
        alpha: `lora_alpha`.
        dropout: on what LoRA reads, in training.
        ranks: other ranks, by regular expressions over module paths.
        alphas: other alphas, likewise.
        rank_stabilised: whether the factor is `alpha/√r` (Kalajdzievski 2023, §3), not `alpha/r`.
        bias: which of the base's biases were trained, too.
        targets: the modules that it acts on.
        excluded: those of them that it leaves out.
        saved: the ends of the paths of modules that were trained as a whole.
        layers: the layers that it acts on; all if none are named.
        layer_lists: what the lists of layers are called.
        feedforward: the modules of IA3 whose input is scaled.
        versioned: whether the config names the version of PEFT, as those since 0.18 do.
    """

    kind: Kind
    task_type: str | None = None
    model_class: str | None = None
    architecture: str | None = None
    rank: int = 0
    alpha: float = 0.0
    dropout: float = 0.0
    ranks: Mapping[str, int] = field(default_factory=dict)
    alphas: Mapping[str, float] = field(default_factory=dict)
    rank_stabilised: bool = False
    bias: Biases = "none"
    targets: Names = None
    excluded: Names = None
    saved: tuple[str, ...] = ()
    layers: tuple[int, ...] = ()
    layer_lists: tuple[str, ...] = ()
    feedforward: Names = ()
    versioned: bool = True

    def rank_at(self, path: str) -> int:
        """The rank at a module."""
        return self.ranks.get(_pattern(self.ranks, path), self.rank)

    def factor_at(self, path: str) -> float:
        """The factor on LoRA's update at a module, from the rank that the config gives it."""
        return self._factor(path, self.alphas.get(_pattern(self.alphas, path), self.alpha))

    def idle_patterns(self, paths: Collection[str]) -> tuple[str, ...]:
        """Patterns for ranks or alphas that no module matches, where perhaps one was meant to."""
        used = {_pattern(patterns, path) for patterns in (self.ranks, self.alphas) for path in paths}
        return tuple(pattern for pattern in dict.fromkeys([*self.ranks, *self.alphas]) if pattern not in used)

    def rivals(self, path: str) -> tuple[str, ...]:
        """The patterns for alphas that match a module, where there are several with different alphas.

        PEFT takes the first and saves them sorted: after saving, it may be another one than in training.
        """
        found = tuple(pattern for pattern in self.alphas if re.match(rf"(.*\.)?({pattern})$", path))
        return found if len({self.alphas[pattern] for pattern in found}) > 1 else ()

    def older_factor_at(self, path: str) -> float:
        """The factor as PEFT read the patterns before 0.15.

        It looked for one pattern among those for ranks and those for alphas together, without a group around it, and
        behind a dot only.
        """
        patterns = (pattern for pattern in (*self.ranks, *self.alphas) if re.match(rf".*\.{pattern}$", path))
        return self._factor(path, self.alphas.get(next(patterns, path), self.alpha))

    def _factor(self, path: str, alpha: float) -> float:
        rank = self.rank_at(path)
        return alpha / math.sqrt(rank) if self.rank_stabilised else alpha / rank


def _pattern(patterns: Mapping[str, object], path: str) -> str:
    """The first pattern that matches a module (`peft.utils.other.get_pattern_key`), else the path itself."""
    return next((pattern for pattern in patterns if re.match(rf"(.*\.)?({pattern})$", path)), path)


def read_options(config: object, where: object) -> Options:
    """Read the document of an `adapter_config.json`; `where` names it in messages.

    Raises:
        FormatError: it is not what PEFT writes, or a value has a wrong type.
        AdapterError: a kind, or options that are not known or cannot be expressed; all of these are listed.
    """
    if not isinstance(config, dict) or not isinstance(config.get("peft_type"), str):
        raise FormatError(
            "is not the config of a PEFT adapter",
            where=where,
            found="no text for `peft_type`",
            expected="a JSON object as `save_pretrained` of PEFT writes it",
            fix="give the folder that PEFT wrote",
        )
    _check_kind(config["peft_type"], where)
    _check_keys(config, where)
    _check_start(config.get("init_lora_weights", True), where)
    return _Reader(config, where).options()


def _check_kind(kind: str, where: object) -> None:
    if kind in _KINDS:
        return
    raise AdapterError(
        f"is an adapter of the kind {kind}, which cannot be imported",
        where=where,
        found=KINDS.get(kind, "a kind that this release does not know"),
        expected=" or ".join(_KINDS),
        fix="train a LoRA, an IA3 or a bottleneck adapter instead",
    )


def _check_keys(config: Mapping[str, Any], where: object) -> None:
    faults = list(_faults(config))
    if faults:
        raise AdapterError(
            "has options that cannot be imported",
            where=where,
            found="; ".join(faults),
            fix="train it without them; if you know that an unknown one changes nothing, delete its key there",
        )


def _faults(config: Mapping[str, Any]) -> Iterator[str]:
    for key, value in config.items():
        if key in _READ or key in NO_MATTER or is_off(value):
            continue
        yield f"`{key}` is {value!r}: {OPTIONS.get(key, 'it is not known to this release')}"


def is_off(value: object) -> bool:
    """Whether a value is how PEFT writes an option that is not used."""
    return value is None or value is False or value in ("", [], {})


def _check_start(start: object, where: object) -> None:
    if isinstance(start, bool) or start is None or start in PLAIN_STARTS:
        return
    raise AdapterError(
        f"was started by `init_lora_weights` {start!r}, and cannot be imported as it is",
        where=where,
        found=START,
        expected=f"true, false, {', '.join(PLAIN_STARTS)}",
        fix=START_FIX,
    )


class _Reader:
    """Reads values of known types."""

    def __init__(self, config: Mapping[str, Any], where: object) -> None:
        self._config = config
        self._where = where

    def options(self) -> Options:
        shared: dict[str, Any] = {
            "task_type": self._text("task_type"),
            "model_class": self._mapped("base_model_class"),
            "architecture": self._architecture(),
            "targets": self._names("target_modules"),
            "excluded": self._names("exclude_modules"),
            "saved": self._list("modules_to_save", str),
            "versioned": self._text("peft_version") is not None,
        }
        if self._config["peft_type"] == IA3:
            return Options("ia3", feedforward=self._names("feedforward_modules"), **shared)
        return Options(
            "lora",
            rank=int(self._number("r", 8, at_least=1, whole=True)),
            alpha=self._number("lora_alpha", 8),
            dropout=self._number("lora_dropout", 0.0, at_least=0.0),
            ranks={key: int(number) for key, number in self._patterns("rank_pattern", at_least=1, whole=True).items()},
            alphas=self._patterns("alpha_pattern"),
            rank_stabilised=self._flag("use_rslora"),
            bias=self._bias(),
            layers=self._list("layers_to_transform", int),
            layer_lists=self._list("layers_pattern", str),
            **shared,
        )

    def _text(self, key: str) -> str | None:
        value = self._config.get(key)
        if value is not None and not isinstance(value, str):
            raise self._wrong(key, value, "a text")
        return value

    def _flag(self, key: str) -> bool:
        value = self._config.get(key, False)
        if not isinstance(value, bool):
            raise self._wrong(key, value, "true or false")
        return value

    def _number(self, key: str, default: float, *, at_least: float = -math.inf, whole: bool = False) -> float:
        return self._checked_number(key, self._config.get(key, default), at_least, whole)

    def _patterns(self, key: str, *, at_least: float = -math.inf, whole: bool = False) -> dict[str, float]:
        value = self._config.get(key) or {}
        if not isinstance(value, dict):
            raise self._wrong(key, value, "an object of numbers by pattern")
        for pattern in value:
            self._check_pattern(key, pattern)
        return {name: self._checked_number(f"{key}.{name}", one, at_least, whole) for name, one in value.items()}

    def _checked_number(self, key: str, value: object, at_least: float, whole: bool) -> float:
        sort = "a whole number" if whole else "a number"
        expected = sort if at_least == -math.inf else f"{sort} of at least {at_least:g}"
        if isinstance(value, bool) or not isinstance(value, int if whole else int | float) or value < at_least:
            raise self._wrong(key, value, expected)
        return value

    def _names(self, key: str) -> Names:
        value = self._config.get(key)
        if isinstance(value, str):
            self._check_pattern(key, value)
            return value
        return None if value is None else self._list(key, str)

    def _list(self, key: str, sort: type) -> tuple[Any, ...]:
        value = self._config.get(key)
        values = [] if value is None else value if isinstance(value, list) else [value]
        if not all(isinstance(one, sort) and not isinstance(one, bool) for one in values):
            raise self._wrong(key, value, f"a list of {'texts' if sort is str else 'whole numbers'}")
        return tuple(values)

    def _bias(self) -> Biases:
        value = self._config.get("bias", "none")
        for known in ("none", "all", "lora_only"):
            if value == known:
                return known
        raise self._wrong("bias", value, "none, all or lora_only")

    def _mapped(self, key: str) -> str | None:
        mapping = self._config.get("auto_mapping")
        name = mapping.get(key) if isinstance(mapping, dict) else None
        return name if isinstance(name, str) else None

    def _architecture(self) -> str | None:
        """`bert` of `transformers.models.bert.modeling_bert`."""
        found = re.fullmatch(r"transformers\.models\.(\w+)\.modeling_\w+", self._mapped("parent_library") or "")
        return found[1] if found else None

    def _check_pattern(self, key: str, pattern: str) -> None:
        try:
            re.compile(pattern)
        except re.error as error:
            raise self._wrong(key, f"{pattern} ({error})", "a regular expression") from error

    def _wrong(self, key: str, found: object, expected: str) -> FormatError:
        return FormatError(
            f"`{key}` has a value that PEFT does not write",
            where=self._where,
            found=found,
            expected=expected,
            fix="take the file from its source again, or correct it there",
        )


# Which of the base's modules a config means, to notice tensors that were lost.


def targeted(options: Options, paths: Iterable[str]) -> Iterator[str]:
    """Those of the module paths that the config means (`peft.tuners.tuners_utils.check_target_module_exists`)."""
    for path in paths:
        if _named(options.excluded, path) or _in_saved(options, path):
            continue
        if _named(options.targets, path) and (isinstance(options.targets, str) or _in_layers(options, path)):
            yield path


def _named(names: Names, path: str) -> bool:
    if isinstance(names, str):
        return re.fullmatch(names, path) is not None
    return any(path == name or path.endswith(f".{name}") for name in names or ())


def _in_saved(options: Options, path: str) -> bool:
    return any(f".{name}." in f".{path}." for name in options.saved)


def _in_layers(options: Options, path: str) -> bool:
    """Whether the first number behind the name of a list of layers is one of the named layers."""
    if not options.layers:
        return True
    patterns = [rf"(?:^|.*?\.){name}\.(?P<index>\d+)\." for name in options.layer_lists]
    found = (re.match(pattern, path) for pattern in patterns or [r".*?\.[^.]*\.(?P<index>\d+)\."])
    return any(match is not None and int(match["index"]) in options.layers for match in found)
