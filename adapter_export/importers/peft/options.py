"""`adapter_config.json`: what is read, what may stand there, and what is refused by name.

Keys that say what is computed are read (`r`, `lora_alpha`, …). Those that only say how it was trained, where from, and
by which version may have any value. All others, known or not, must be off: `null`, `false`, or an empty text, list or
object, as PEFT writes what is not used.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from adapter_export.errors import AdapterError, FormatError

# What PEFT can save and this package cannot say, by name and with the reason.

_PROMPT = "it puts trained vectors among the tokens or the keys and values, which is no change at a site"

KINDS: Mapping[str, str] = {
    "ADALORA": "its update has trained singular values between the two matrices, and ranks of its own",
    "VBLORA": "its matrices are put together from a bank of vectors",
    "LN_TUNING": "it holds trained norms of the base, not an adapter beside it",
    "TRAINABLE_TOKENS": "it holds trained rows of the embeddings",
    "XLORA": "it mixes several adapters by a trained gate over two passes of the base",
    "POLY": "it mixes a set of modules by the task",
    **dict.fromkeys(
        ("LOHA", "LOKR", "C3A", "FOURIERFT", "WAVEFT", "MISS"),
        "its update is built of products that the language of adapter graphs has no op for",
    ),
    **dict.fromkeys(
        ("VERA", "PVERA", "RANDLORA"), "its matrices are random numbers that are shared and perhaps not in the file"
    ),
    **dict.fromkeys(("OFT", "BOFT", "HRA", "ROAD"), "it multiplies the base's weights by a trained matrix"),
    **dict.fromkeys(
        ("HIRA", "DELORA", "SHIRA", "OSF"),
        "what it computes depends on the base's weights, which an adapter graph cannot read",
    ),
    **dict.fromkeys(("PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING"), _PROMPT),
    **dict.fromkeys(("CPT", "CARTRIDGE", "ADAPTION_PROMPT"), _PROMPT),
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
Names = str | tuple[str, ...] | None
"""Modules, as PEFT writes them: a regular expression that matches all of a path, or the ends of paths."""

_MOST = 1e9
"""The largest number of an option; products of greater ones are no numbers of float32."""

_KINDS: Mapping[str, Kind] = {"LORA": "lora", "IA3": "ia3"}
"""By `peft_type`."""

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
    """What `adapter_config.json` says of what is computed, by PEFT's names or near them.

    `model_class` and `architecture` (transformers' name) are those of the model that it was trained in, if the folder
    says them. `ranks` and `alphas` are others than `rank` and `alpha`, by regular expressions over module paths.
    `saved` are the ends of the paths of modules that were trained as a whole, `layers` those that it acts on (all, if
    none are named) in lists called `layer_lists`, `feedforward` the modules of IA3 whose input is scaled.
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
    rank_stabilised: bool = False  # alpha/√r (Kalajdzievski 2023, §3), not alpha/r
    bias: Literal["none", "all", "lora_only"] = "none"
    targets: Names = None
    excluded: Names = None
    saved: tuple[str, ...] = ()
    layers: tuple[int, ...] = ()
    layer_lists: tuple[str, ...] = ()
    feedforward: Names = ()
    versioned: bool = True  # configs name PEFT's version since 0.18

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

        It looked for one among those for ranks and alphas together, without a group around it, and behind a dot only.
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

    An AdapterError lists all options that are not known or cannot be expressed; wrong types are FormatErrors.
    """
    if not isinstance(config, dict) or not isinstance(config.get("peft_type"), str):
        raise FormatError(
            "is not the config of a PEFT adapter",
            where=where,
            found="no text for `peft_type`",
            expected="a JSON object as `save_pretrained` of PEFT writes it",
            fix="give the folder that PEFT wrote",
        )
    kind, start = config["peft_type"], config.get("init_lora_weights", True)
    if kind not in _KINDS:
        raise AdapterError(
            f"is an adapter of the kind {kind}, which cannot be imported",
            where=where,
            found=KINDS.get(kind, "a kind that this release does not know"),
            expected=" or ".join(_KINDS),
            fix="train a LoRA, an IA3 or a bottleneck adapter instead",
        )
    faults = [
        f"`{key}` is {value!r}: {OPTIONS.get(key, 'it is not known to this release')}"
        for key, value in config.items()
        if key not in _READ | NO_MATTER and not is_off(value)
    ]
    if faults:
        raise AdapterError(
            "has options that cannot be imported",
            where=where,
            found="; ".join(faults),
            fix="train it without them; if you know that an unknown one changes nothing, delete its key there",
        )

    if not (isinstance(start, bool) or start is None or start in PLAIN_STARTS):
        raise AdapterError(
            f"was started by `init_lora_weights` {start!r}, and cannot be imported as it is",
            where=where,
            found="its start is taken out of the base's weights, so that it fits only a base that is changed in the "
            "same way",
            expected=f"true, false, {', '.join(PLAIN_STARTS)}",
            fix="convert it to plain LoRA: `save_pretrained(folder, path_initial_model_for_weight_conversion=…)` in "
            "PEFT, with the adapter as it was before training",
        )
    return _Reader(config, where).options()


def is_off(value: object) -> bool:
    """Whether a value is how PEFT writes an option that is not used."""
    return value is None or value is False or value in ("", [], {})


class _Reader:
    """Reads values of known types."""

    def __init__(self, config: Mapping[str, Any], where: object) -> None:
        self._config = config
        self._where = where

    def options(self) -> Options:
        architecture = re.fullmatch(r"transformers\.models\.(\w+)\.modeling_\w+", self._mapped("parent_library") or "")
        shared: dict[str, Any] = {
            "task_type": self._text("task_type"),
            "model_class": self._mapped("base_model_class"),
            "architecture": architecture[1] if architecture else None,
            "targets": self._names("target_modules"),
            "excluded": self._names("exclude_modules"),
            "saved": self._list("modules_to_save", str),
            "versioned": self._text("peft_version") is not None,
        }
        if self._config["peft_type"] == "IA3":
            return Options("ia3", feedforward=self._names("feedforward_modules"), **shared)
        bias, stabilised = self._config.get("bias", "none"), self._config.get("use_rslora", False)
        if bias not in ("none", "all", "lora_only"):
            raise self._wrong("bias", bias, "none, all or lora_only")
        if not isinstance(stabilised, bool):
            raise self._wrong("use_rslora", stabilised, "true or false")
        return Options(
            "lora",
            rank=int(self._number("r", self._config.get("r", 8), at_least=1, whole=True)),
            alpha=self._number("lora_alpha", self._config.get("lora_alpha", 8)),
            dropout=self._number("lora_dropout", self._config.get("lora_dropout", 0.0), at_least=0.0),
            ranks={key: int(number) for key, number in self._patterns("rank_pattern", at_least=1, whole=True).items()},
            alphas=self._patterns("alpha_pattern"),
            rank_stabilised=stabilised,
            bias=bias,
            layers=self._list("layers_to_transform", int),
            layer_lists=self._list("layers_pattern", str),
            **shared,
        )

    def _text(self, key: str) -> str | None:
        value = self._config.get(key)
        if value is not None and not isinstance(value, str):
            raise self._wrong(key, value, "a text")
        return value

    def _patterns(self, key: str, *, at_least: float = -math.inf, whole: bool = False) -> dict[str, float]:
        value = self._config.get(key) or {}
        if not isinstance(value, dict):
            raise self._wrong(key, value, "an object of numbers by pattern")
        for pattern in value:
            self._check_pattern(key, pattern)
        return {name: self._number(f"{key}.{name}", one, at_least=at_least, whole=whole) for name, one in value.items()}

    def _number(self, key: str, value: object, *, at_least: float = -math.inf, whole: bool = False) -> float:
        sort = "a whole number" if whole else "a number"
        least = max(at_least, -_MOST)
        if (
            isinstance(value, bool)
            or not isinstance(value, int if whole else int | float)
            or not least <= value <= _MOST
        ):
            raise self._wrong(key, value, f"{sort} of at least {least:g} and at most {_MOST:g}")
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

    def _mapped(self, key: str) -> str | None:
        mapping = self._config.get("auto_mapping")
        name = mapping.get(key) if isinstance(mapping, dict) else None
        return name if isinstance(name, str) else None

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
        if _named(options.excluded, path) or any(f".{name}." in f".{path}." for name in options.saved):
            continue
        if _named(options.targets, path) and (isinstance(options.targets, str) or _in_layers(options, path)):
            yield path


def _named(names: Names, path: str) -> bool:
    if isinstance(names, str):
        return re.fullmatch(names, path) is not None
    return any(path == name or path.endswith(f".{name}") for name in names or ())


def _in_layers(options: Options, path: str) -> bool:
    """Whether the first number behind the name of a list of layers is one of the named layers."""
    if not options.layers:
        return True
    patterns = [rf"(?:^|.*?\.){name}\.(?P<index>\d+)\." for name in options.layer_lists]
    found = (re.match(pattern, path) for pattern in patterns or [r".*?\.[^.]*\.(?P<index>\d+)\."])
    return any(match is not None and int(match["index"]) in options.layers for match in found)
