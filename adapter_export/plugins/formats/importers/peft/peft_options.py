"""Options of `adapter_config.json`: supported, ignored and rejected ones.

Keys that affect the computation are read (`r`, `lora_alpha`, …). Keys on training, origin and version may have any
value. All others, known or not, must be off: `null`, `false`, or an empty text, list or object, as PEFT writes unused
options.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from adapter_export.errors import AdapterError, FormatError
from adapter_export.format.model_config import class_type
from adapter_export.plugins.formats.importers.peft.methods import METHODS, Method
from adapter_export.plugins.formats.importers.peft.peft_values import Config, Names, matches_pattern, matching
from adapter_export.safe_io.linear_regex import linear_pattern

# Unsupported types and options of PEFT, with reasons.

_PROMPT = "it inserts trained vectors between tokens, which is not a change at a site"
_TO_LORA = "; `save_as_lora` of PEFT converts it to a LoRA, which rounds its change of the weights to a rank"

KINDS: Mapping[str, str] = {
    "ADAMSS": "it splits the base's weights into clusters that its folder does not contain",
    "LILY": "it mixes its matrices by the mean over all tokens of a batch",
    "POLY": "it mixes a set of modules by the task",
    "PSOFT": "it rotates singular vectors of the base's weights, whose signs its folder does not contain" + _TO_LORA,
    "SHADOW": "it trains a second network next to the base",
    "XLORA": "it mixes several adapters by a trained gate over two passes of the base",
    **dict.fromkeys(("PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING"), _PROMPT),
    **dict.fromkeys(("CPT", "CARTRIDGE", "ADAPTION_PROMPT"), _PROMPT),
}
"""Reasons for unsupported values of `peft_type`. Types neither here nor in `METHODS` are rejected as unknown."""

OPTIONS: Mapping[str, str] = {
    "use_qalora": "QA-LoRA pools the input in groups, for which the language has no op",
    "use_bdlora": "block-diagonal LoRA has matrices of another shape",
    "layer_replication": "the base has other layers than the model that it names",
    "alora_invocation_tokens": "activated LoRA acts only after certain tokens, and adapters act on every token",
    "megatron_config": "the layers of Megatron are split over devices",
    "target_parameters": "LoRA on a parameter outside of layers, such as a stack of experts, has no site",
    "target_modules_to_tie": "tied modules share the matrices of the embeddings",
    "ensure_weight_tying": "tied modules share the matrices of the embeddings",
    "arrow_config": "it mixes several adapters for each token",
    "kasa_config": "KaSA truncates the base's weights, which changes the base",
    "monteclora_config": "it samples its matrices",
    "corda_config": "CorDA subtracts its initialization from the base's weights, which changes the base",
    "lora_ga_config": "LoRA-GA subtracts its initialization from the base's weights, which changes the base",
    "loftq_config": "LoftQ quantizes the base's weights, which changes the base",
}
"""Unsupported options of LoRA: they must be off, which is `null`, `false` or empty."""

PLAIN_STARTS = ("gaussian", "orthogonal", "eva", "mica")
"""Values of `init_lora_weights`, besides true and false, that leave the base's weights unchanged."""

STARTS_OF_BASE = ("pissa", "olora")
"""Values of `init_lora_weights` that subtract the initialization, which depends only on the base's weights."""


TENSORS: Mapping[str, str] = {
    "lora_diag": OPTIONS["kasa_config"],
    "prompt_embeddings": _PROMPT,
}
"""Reasons to reject tensors, by a word in their name."""


CHECKED_WITH = "0.21"
"""PEFT version used to check the formulas."""

_SHARED_KEYS = frozenset(
    {"peft_type", "task_type", "auto_mapping", "bias", "target_modules", "exclude_modules", "modules_to_save"}
    | {"layers_to_transform", "layers_pattern"}
)

_LORA_KEYS = frozenset(
    {"r", "lora_alpha", "lora_dropout", "rank_pattern", "alpha_pattern", "use_rslora", "lora_bias", "use_dora"}
    | {"init_lora_weights", "trainable_token_indices"}
)

_TOKEN_KEYS = frozenset({"token_indices", "init_weights"})

_IA3_KEYS = frozenset({"feedforward_modules"})

PREFIX_KIND = "prefix_tuning"
"""`Options.kind` of trained keys and values."""

_PREFIX_KEYS = frozenset(
    {"peft_type", "task_type", "auto_mapping", "num_virtual_tokens", "token_dim", "num_transformer_submodules"}
    | {"num_attention_heads", "num_layers", "encoder_hidden_size", "prefix_projection", "init_weights"}
    | {"modules_to_save"}
)
"""Keys of prefix tuning. PEFT saves keys and values after the projection, whose options have no effect."""

NO_MATTER = frozenset(
    {
        "base_model_name_or_path",
        "revision",
        "peft_version",
        "inference_mode",
        "fan_in_fan_out",  # layout of the base's weights; the adapter's do not depend on it
        "megatron_core",
        "qalora_group_size",
        "eva_config",
        "velora_config",  # another backward pass
        "init_ia3_weights",
        "merge_weights",
    }
)
"""Keys on training, data and version, without effect on the computation."""

SHOWN_BY_TENSORS = frozenset(
    {"r", "rank_pattern", "init_weights", "init_lora_weights", "init_r", "target_r", "block_size", "block_size_pattern"}
    | {"boft_block_size", "boft_block_num", "boft_n_butterfly_factor", "oft_block_size", "decompose_both", "u"}
    | {"decompose_factor", "n_frequency", "n_frequency_pattern", "proportional_parameters", "num_vectors", "gralora_k"}
    | {
        "vector_length",
        "save_only_topk_weights",
        "mini_r",
        "effective_rank",
        "hybrid_r",
        "theta_d_length",
        "weight_tying",
    }
    | {"sparsity", "select_top", "config_A_B", "config_C", "config_D_E", "depth", "delora_lambda", "lambda_pattern"}
    | {"d_initial", "projection_prng_key", "save_projection", "sparse", "very_sparse", "mask_type", "random_seed"}
    | {"init_vector_bank_bound", "init_logits_std", "init_scale", "init_theta_d_bound", "init_v_bound", "proj_seed"}
    | {"save_indices", "save_precomputed_indices", "projection_seed", "generator_seed", "sparse_rate", "progressbar"}
    | {"regularization_alpha", "runtime_offload_base_weight", "target_svd_config", "rank_dropout_scale"}
    | {"tinit", "tfinal", "deltaT", "orth_reg_weight", "total_step", "beta1", "beta2", "use_effective_conv2d"}
)
"""Keys of the types in `METHODS` on initialization, training and shapes, without effect on the computation."""

_DROPOUT = "_dropout"
"""Suffix of keys with a dropout rate, used only in training."""


@dataclass(frozen=True)
class Options:
    """Options of `adapter_config.json` that affect the computation, with names like PEFT's.

    `model_class` and `architecture` (transformers' name) describe the model of training, if recorded. `ranks` and
    `alphas` override `rank` and `alpha`, by regular expressions over module paths. `dora` and `start`
    (`init_lora_weights` if a text) belong to LoRA; `method` is the formula of all types except LoRA, IA3 and trained
    norms, and reads `config`. `saved` are path suffixes of fully trained modules; `layers` the layer numbers to adapt
    (default: all) in lists named `layer_lists`; `feedforward` the modules of IA3 whose input is scaled. `tokens` are
    the ids of trained rows by the name of their embedding, an empty one for the embedding of the input.
    """

    kind: str
    task_type: str | None = None
    model_class: str | None = None
    architecture: str | None = None
    rank: int = 0
    alpha: float = 0.0
    dropout: float = 0.0
    ranks: Mapping[str, int] = field(default_factory=dict)
    alphas: Mapping[str, float] = field(default_factory=dict)
    rank_stabilised: bool = False  # alpha/√r (Kalajdzievski 2023, §3), not alpha/r
    bias: str = "none"
    targets: Names = None
    excluded: Names = None
    saved: tuple[str, ...] = ()
    layers: tuple[int, ...] = ()
    layer_lists: tuple[str, ...] = ()
    feedforward: Names = ()
    version: str | None = None  # in configs since PEFT 0.18
    dora: bool = False
    start: str | None = None
    config: Config = field(default_factory=lambda: Config({}, ""), repr=False)
    method: Method | None = None
    tokens: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def versioned(self) -> bool:
        """True if the config contains PEFT's version."""
        return self.version is not None

    @property
    def of_weights(self) -> bool:
        """True if a LoRA also depends on the base's weights."""
        return self.dora or self.start in STARTS_OF_BASE

    @property
    def is_of_another_library(self) -> bool:
        """True if neither the task nor the model's class belongs to transformers."""
        known = self.architecture is not None or class_type(self.model_class or "") is not None
        return self.task_type is None and not known

    def rank_at(self, path: str) -> int:
        """Return the rank at a module."""
        return self.ranks.get(matching(self.ranks, path), self.rank)

    def factor_at(self, path: str) -> float:
        """Return the factor of LoRA's update at a module, from the config's rank."""
        return self._factor(path, self.alphas.get(matching(self.alphas, path), self.alpha))

    def scales_input(self, path: str) -> bool | None:
        """Return whether IA3 scales a layer's input; `None` if the config lacks `feedforward_modules`.

        PEFT matches path suffixes here, not whole names (`IA3Model._check_target_module_feedforward`).
        """
        names = self.feedforward
        if names is None:
            return None
        return bool(linear_pattern(names).matches(path) if isinstance(names, str) else names and path.endswith(names))

    def idle_patterns(self, paths: Collection[str]) -> tuple[str, ...]:
        """Return patterns for ranks or alphas that match no module."""
        used = {matching(patterns, path) for patterns in (self.ranks, self.alphas) for path in paths}
        return tuple(pattern for pattern in dict.fromkeys([*self.ranks, *self.alphas]) if pattern not in used)

    def rivals(self, path: str) -> tuple[str, ...]:
        """Return the matching patterns for a module's alpha, if they differ in alpha.

        PEFT uses the first one and saves patterns sorted: the first may differ between training and loading.
        """
        matching = tuple(pattern for pattern in self.alphas if matches_pattern(pattern, path))
        return matching if len({self.alphas[pattern] for pattern in matching}) > 1 else ()

    def older_factor_at(self, path: str) -> float:
        """Return the factor with the patterns interpreted as by PEFT before 0.15.

        It searched rank and alpha patterns together, without grouping, and only after a dot.
        """
        patterns = (
            pattern
            for pattern in (*self.ranks, *self.alphas)
            if linear_pattern(rf".*\.{pattern}$").matches(path, whole=False)
        )
        return self._factor(path, self.alphas.get(next(patterns, path), self.alpha))

    def _factor(self, path: str, alpha: float) -> float:
        rank = self.rank_at(path)
        return alpha / math.sqrt(rank) if self.rank_stabilised else alpha / rank


def read_options(config: object, where: object) -> Options:
    """Parse an `adapter_config.json`; `where` names it in messages.

    Raises AdapterError, listing all unknown and unsupported options, and FormatError for wrong types.
    """
    if not isinstance(config, dict) or not isinstance(config.get("peft_type"), str):
        raise FormatError(
            "is not the config of a PEFT adapter",
            where=where,
            found="no text for `peft_type`",
            expected="a JSON object as `save_pretrained` of PEFT writes it",
            fix="pass the folder written by PEFT",
        )
    kind = config["peft_type"]
    reads = _READS.get(kind)
    if reads is None:
        raise AdapterError(
            f"is an adapter of the kind {kind}, which cannot be imported",
            where=where,
            found=KINDS.get(kind, "a kind that this release does not know"),
            expected="a fixed change of the base's weights or biases: " + ", ".join(_READS),
            fix="merge it into the base with PEFT (`merge_and_unload`) where PEFT can, and take the result as a base; "
            "or train a LoRA, an IA3 or a bottleneck adapter instead",
        )
    faults = [
        f"`{key}` is {value!r}: {OPTIONS.get(key, 'it is not known to this release')}"
        for key, value in config.items()
        if key not in reads | NO_MATTER and not is_off(value) and not (kind in METHODS and key.endswith(_DROPOUT))
    ]
    if faults:
        raise AdapterError(
            "has options that cannot be imported",
            where=where,
            found="; ".join(faults),
            fix="train it without them; if you know that an unknown one changes nothing, delete its key there",
        )
    return _options(Config(config, where))


_READS: Mapping[str, frozenset[str]] = {
    "LORA": _SHARED_KEYS | _LORA_KEYS,
    "IA3": _SHARED_KEYS | _IA3_KEYS,
    "LN_TUNING": _SHARED_KEYS,
    "TRAINABLE_TOKENS": _SHARED_KEYS | _TOKEN_KEYS,
    "PREFIX_TUNING": _PREFIX_KEYS,
    **{kind: _SHARED_KEYS | SHOWN_BY_TENSORS | method.reads for kind, method in METHODS.items()},
}
"""Keys of the config that may have values, by `peft_type`."""


def is_off(value: object) -> bool:
    """Return whether a value marks an unused option in PEFT."""
    return value is None or value is False or value in ("", [], {})


def _options(config: Config) -> Options:
    architecture = re.fullmatch(r"transformers\.models\.(\w+)\.modeling_\w+", config.mapped("parent_library") or "")
    kind, bias = config.values["peft_type"], config.values.get("bias", "none")
    shared: dict[str, Any] = {
        "task_type": config.text("task_type"),
        "model_class": config.mapped("base_model_class"),
        "architecture": architecture[1] if architecture else None,
        "targets": config.names("target_modules"),
        "excluded": config.names("exclude_modules"),
        "saved": config.listed("modules_to_save", str),
        "version": config.text("peft_version"),
        "config": config,
    }
    if kind == "PREFIX_TUNING":
        return Options(PREFIX_KIND, **shared)
    if kind == "IA3":
        return Options("ia3", feedforward=config.names("feedforward_modules"), **shared)
    if kind == "LN_TUNING":
        return Options("ln_tuning", **shared)
    if kind == "TRAINABLE_TOKENS":
        return Options("trainable_tokens", tokens={"": config.listed("token_indices", int)}, **shared)
    shared["layers"] = config.listed("layers_to_transform", int)
    shared["layer_lists"] = config.listed("layers_pattern", str)
    for name in shared["layer_lists"]:
        if not re.fullmatch(r"[\w.]+", name):  # PEFT reads it as an expression, which may backtrack without end
            raise config.wrong("layers_pattern", name, "the name of a list of layers, such as `layers`")
    if not isinstance(bias, str) or not re.fullmatch(r"none|all|\w+_only", bias):
        raise config.wrong("bias", bias, f"none, all or {kind.lower()}_only")
    shared["bias"] = bias
    if kind != "LORA":
        return Options(kind.lower(), method=METHODS[kind], **shared)
    return Options(
        "lora",
        rank=config.count("r", 8),
        alpha=config.number("lora_alpha", 8),
        dropout=config.number("lora_dropout", 0.0, at_least=0.0),
        ranks={key: int(number) for key, number in config.patterns("rank_pattern", at_least=1, whole=True).items()},
        alphas=config.patterns("alpha_pattern"),
        rank_stabilised=config.flag("use_rslora"),
        dora=config.flag("use_dora"),
        start=_start(config),
        tokens=_tokens(config),
        **shared,
    )


def _tokens(config: Config) -> dict[str, tuple[int, ...]]:
    """Return the ids of trained rows, by the name of their embedding."""
    key = "trainable_token_indices"
    value = config.values.get(key)
    if not isinstance(value, dict):
        ids = config.listed(key, int)
        return {"": ids} if ids else {}
    inner = Config(value, config.where)
    return {name: inner.listed(name, int) for name in value}


def _start(config: Config) -> str | None:
    """Return LoRA's initialization, if it is a text; AdapterError for one that cannot be undone."""
    start = config.values.get("init_lora_weights")
    if start is None or isinstance(start, bool):
        return None
    if start not in (*PLAIN_STARTS, *STARTS_OF_BASE):
        raise AdapterError(
            f"was initialized by `init_lora_weights` {start!r}, which cannot be imported directly",
            where=config.where,
            found="its initialization is subtracted from the base's weights and depends on more than these, so that it "
            "fits only a base with the same change",
            expected=f"true, false, {', '.join([*PLAIN_STARTS, *STARTS_OF_BASE])}",
            fix="convert it to plain LoRA: `save_pretrained(folder, path_initial_model_for_weight_conversion=…)` in "
            "PEFT, with the adapter before training",
        )
    if start == "olora" and config.flag("fan_in_fan_out"):
        raise AdapterError("was started by `olora` at layers that are stored [in, out]", where=config.where)
    return str(start)


# Modules of the base selected by a config, to detect lost tensors.


def targeted(options: Options, paths: Iterable[str]) -> Iterator[str]:
    """Yield the module paths that the config selects (`peft.tuners.tuners_utils.check_target_module_exists`)."""
    for path in paths:
        if _named(options.excluded, path) or any(f".{name}." in f".{path}." for name in options.saved):
            continue
        if _named(options.targets, path) and (isinstance(options.targets, str) or _in_layers(options, path)):
            yield path


def _named(names: Names, path: str) -> bool:
    if isinstance(names, str):
        return linear_pattern(names).matches(path)
    return any(path == name or path.endswith(f".{name}") for name in names or ())


def _in_layers(options: Options, path: str) -> bool:
    """Return whether the first number after the name of a layer list is one of `layers`."""
    if not options.layers:
        return True
    patterns = [rf"(?:^|.*?\.){name}\.(?P<index>\d+)\." for name in options.layer_lists]
    matches = (re.match(pattern, path) for pattern in patterns or [r".*?\.[^.]*\.(?P<index>\d+)\."])
    return any(match is not None and int(match["index"]) in options.layers for match in matches)
