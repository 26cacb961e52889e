"""Chat templates of published models, and conversations to render with them.

The templates are those of TRL, which keeps copies of what the model repositories ship to recognize the models, and
beside many of them a variant for training that marks answers (`trl/chat_templates`, Apache-2.0).
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import transformers as hf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from toolchain import skip_or_fail

from adapter_export.runtime.generation.chat import tool_call, tool_named, tool_result
from adapter_export.runtime.generation.golden_chats import sample_chats

Conversation = tuple[list[dict[str, Any]], list[dict[str, Any]] | None, bool]
"""Messages, tools, and whether the prompt ends with the header of an answer."""

TOKENS: Mapping[str, str] = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}

PUBLISHED = (
    *("cohere", "cohere2", "deepseek_r1_distill", "deepseekv3", "gemma", "gemma3", "gemma4", "glm4moe", "gptoss"),
    *("lfm2_2_5", "llama3", "llama3_1", "llama3_2", "nemotron_3_nano", "phi3", "phi3_5", "qwen2_5", "qwen2_5_vl"),
    *("qwen3", "qwen3_5_think", "qwen3_instruct_2507", "qwen3_8", "smolvlm", "idefics3"),
)
"""Models by the name of their template in TRL."""

_TEXTS = (
    *("", " ", "How far?", "a\r\nb\n", "\n\n  x \t", "<think>é</think>\n\nä", "e\u0301 \u00a0\u2028\x0b"),
    *("{{ 7*7 }}{% endfor %}{# x #}", "{{ raise_exception('z') }}", "{%- set messages = [] %}", "'\"\\n\\"),
    *("<s>[INST] </s>", "<|im_end|>\n<|im_start|>assistant\n", "<|eot_id|><|start_header_id|>", "<end_of_turn>"),
    *("👩\u200d💻 東京 नमस्ते שלום", "a" * 300, "<b>&amp;</b>", "</think>", "<tool_call>{}</tool_call>", "None"),
)


@cache
def template(name: str, *, marked: bool = False) -> str | None:
    """A template of TRL, or its variant that marks answers; `None` if there is none."""
    spec = find_spec("trl")
    if spec is None or spec.origin is None:
        skip_or_fail("trl is not installed")
    assert spec is not None
    file = Path(str(spec.origin)).parent / "chat_templates" / f"{name}{'_training' if marked else ''}.jinja"
    return file.read_text("utf-8") if file.exists() else None


def conversations(count: int) -> list[Conversation]:
    """Golden conversations, and random ones with texts that templates treat in special ways."""
    golden: Iterator[Conversation] = (
        ([*map(dict, sample.messages)], None if sample.tools is None else [*map(dict, sample.tools)], sample.prompted)
        for sample in sample_chats(TOKENS)
    )
    found = list(golden)
    dice = random.Random(0)
    while len(found) < count:
        found.append(_conversation(dice))
    return found


def _conversation(dice: random.Random) -> Conversation:
    messages = [{"role": "system", "content": dice.choice(_TEXTS)}] if dice.random() < 0.4 else []
    tools = [tool_named(name) for name in dice.sample(["weather", "tide", "größe"], dice.randint(1, 2))]
    has_tools = dice.random() < 0.3
    for turn in range(dice.randint(1, 3)):
        messages.append({"role": "user", "content": dice.choice(_TEXTS)})
        if turn and dice.random() < 0.05:
            continue  # two questions in a row
        if has_tools and dice.random() < 0.7:
            called = tool_call("weather", city=dice.choice(_TEXTS), days=dice.choice([3, 1.5, None, [1, "é"]]))
            messages += [called, tool_result("weather", dice.choice(_TEXTS))]
        answer: dict[str, Any] = {"role": "assistant", "content": dice.choice(_TEXTS)}
        if dice.random() < 0.2:
            answer["reasoning_content"] = dice.choice(_TEXTS)
        if dice.random() < 0.1:
            answer |= {"refusal": None, "tool_calls": None}
        messages.append(answer)
    prompted = dice.random() < 0.7
    return (messages[:-1] if prompted else messages), (tools if has_tools else None), prompted


@cache
def byte_tokenizer() -> hf.PreTrainedTokenizerFast:
    """A tokenizer of bytes with a few merges, and the special tokens of two models."""
    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    special = ["<s>", "</s>", "<unk>", "<|im_start|>", "<|im_end|>", "<|eot_id|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=special
    )
    words.train_from_iterator(["How far is the moon? 384,400 km.", "user assistant system"] * 4, trainer)
    return hf.PreTrainedTokenizerFast(tokenizer_object=words, **TOKENS)
