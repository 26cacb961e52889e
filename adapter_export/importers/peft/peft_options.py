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
from typing import Any

from adapter_export.errors import AdapterError, FormatError
from adapter_export.importers.peft.methods import METHODS, Method
from adapter_export.importers.peft.peft_values import Config, Names, matching

# What PEFT can save and this package cannot say, by name and with the reason.

_PROMPT = "it puts trained vectors among the tokens or the keys and values, which is no change at a site"
_TO_LORA = "; `save_as_lora` of PEFT converts it to a LoRA, which rounds its change of the weights to a rank"

KINDS: Mapping[str, str] = {
    "ADAMSS": "it splits the base's weights into clusters that its folder does not hold",
    "LILY": "it mixes its matrices by the mean over all tokens of a batch",
    "POLY": "it mixes a set of modules by the task",
    "PSOFT": "it rotates singular vectors of the base's weights, whose signs its folder does not hold" + _TO_LORA,
    "SHADOW": "it trains a second network beside the base",
    "TRAINABLE_TOKENS": "it holds trained rows of the embeddings",
    "XLORA": "it mixes several adapters by a trained gate over two passes of the base",
    **dict.fromkeys(("PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING"), _PROMPT),
    **dict.fromkeys(("CPT", "CARTRIDGE", "ADAPTION_PROMPT"), _PROMPT),
}
"""Why a `peft_type` is not read. A type that is named neither here nor in `METHODS` is refused as unknown."""

OPTIONS: Mapping[str, str] = {
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

STARTS_OF_BASE = ("pissa", "olora")
"""Values of it that take the start out of the base's weights, in a way that these alone decide."""


_EMBEDDING = "LoRA on an embedding has no site: it acts on token numbers, not on what a layer reads"

TENSORS: Mapping[str, str] = {
    "lora_embedding_A": _EMBEDDING,
    "lora_embedding_B": _EMBEDDING,
    "lora_diag": OPTIONS["kasa_config"],
    "trainable_tokens_delta": OPTIONS["trainable_token_indices"],
    "prompt_embeddings": _PROMPT,
}
"""Why a tensor with such a word in its name is refused."""


CHECKED_WITH = "0.21"
"""The version of PEFT that the formulas were checked with."""

_SHARED_KEYS = frozenset(
    {"peft_type", "task_type", "auto_mapping", "bias", "target_modules", "exclude_modules", "modules_to_save"}
    | {"layers_to_transform", "layers_pattern"}
)

_LORA_KEYS = frozenset(
    {"r", "lora_alpha", "lora_dropout", "rank_pattern", "alpha_pattern", "use_rslora", "lora_bias", "use_dora"}
    | {"init_lora_weights"}
)

_IA3_KEYS = frozenset({"feedforward_modules"})

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
"""Keys of the types in `METHODS` that say how a tensor began, how it was trained, or what its shape shows."""

_DROPOUT = "_dropout"
"""Suffix of the keys with a dropout rate, which only training uses."""


@dataclass(frozen=True)
class Options:
    """Options of `adapter_config.json` that affect the computation, by PEFT's names or close to them.

    `model_class` and `architecture` (transformers' name) are those of the model that it was trained in, if the folder
    says them. `ranks` and `alphas` are others than `rank` and `alpha`, by regular expressions over module paths.
    `dora` and `start` (`init_lora_weights`, where it is a text) are of LoRA; `method` is the formula of every type but
    LoRA, IA3 and trained norms, which reads `config`.
    `saved` are the ends of the paths of modules that were trained as a whole, `layers` those that it acts on (all, if
    none are named) in lists called `layer_lists`, `feedforward` the modules of IA3 whose input is scaled.
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
    version: str | None = None  # configs name PEFT's version since 0.18
    dora: bool = False
    start: str | None = None
    config: Config = field(default_factory=lambda: Config({}, ""), repr=False)
    method: Method | None = None

    @property
    def versioned(self) -> bool:
        """True if the config names the version of PEFT that wrote it."""
        return self.version is not None

    @property
    def of_weights(self) -> bool:
        """True if a LoRA is also computed from the base's own weights."""
        return self.dora or self.start in STARTS_OF_BASE

    def rank_at(self, path: str) -> int:
        """The rank at a module."""
        return self.ranks.get(matching(self.ranks, path), self.rank)

    def factor_at(self, path: str) -> float:
        """The factor on LoRA's update at a module, from the rank that the config gives it."""
        return self._factor(path, self.alphas.get(matching(self.alphas, path), self.alpha))

    def idle_patterns(self, paths: Collection[str]) -> tuple[str, ...]:
        """Patterns for ranks or alphas that no module matches, where perhaps one was meant to."""
        used = {matching(patterns, path) for patterns in (self.ranks, self.alphas) for path in paths}
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
    **{kind: _SHARED_KEYS | SHOWN_BY_TENSORS | method.reads for kind, method in METHODS.items()},
}
"""The keys of the config that may have values, by `peft_type`."""


def is_off(value: object) -> bool:
    """Return whether a value is how PEFT writes an option that is not used."""
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
    if kind == "IA3":
        return Options("ia3", feedforward=config.names("feedforward_modules"), **shared)
    if kind == "LN_TUNING":
        return Options("ln_tuning", **shared)
    shared["layers"] = config.listed("layers_to_transform", int)
    shared["layer_lists"] = config.listed("layers_pattern", str)
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
        **shared,
    )


def _start(config: Config) -> str | None:
    """Return the initialization of LoRA's matrices, if it is a text; `AdapterError` for one that cannot be undone."""
    start = config.values.get("init_lora_weights")
    if start is None or isinstance(start, bool):
        return None
    if start not in (*PLAIN_STARTS, *STARTS_OF_BASE):
        raise AdapterError(
            f"was started by `init_lora_weights` {start!r}, and cannot be imported as it is",
            where=config.where,
            found="its start is taken out of the base's weights in a way that these alone do not decide, so that it "
            "fits only a base that is changed in the same way",
            expected=f"true, false, {', '.join([*PLAIN_STARTS, *STARTS_OF_BASE])}",
            fix="convert it to plain LoRA: `save_pretrained(folder, path_initial_model_for_weight_conversion=…)` in "
            "PEFT, with the adapter as it was before training",
        )
    if start == "olora" and config.flag("fan_in_fan_out"):
        raise AdapterError("was started by `olora` at layers that are stored [in, out]", where=config.where)
    return str(start)


# Which of the base's modules a config means, to notice tensors that were lost.


def targeted(options: Options, paths: Iterable[str]) -> Iterator[str]:
    """Yield the module paths that the config selects (`peft.tuners.tuners_utils.check_target_module_exists`)."""
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
    """Return whether the first number behind the name of a list of layers is one of the named layers."""
    if not options.layers:
        return True
    patterns = [rf"(?:^|.*?\.){name}\.(?P<index>\d+)\." for name in options.layer_lists]
    found = (re.match(pattern, path) for pattern in patterns or [r".*?\.[^.]*\.(?P<index>\d+)\."])
    return any(match is not None and int(match["index"]) in options.layers for match in found)
