"""What PEFT can save and this package cannot say, by name and with the reason."""

from __future__ import annotations

from collections.abc import Mapping

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
