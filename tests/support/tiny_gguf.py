"""A tiny Llama as a Hugging Face folder and as the GGUF file that llama.cpp would convert it to."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from gguf import GGUFWriter, TokenType, get_tensor_name_map
from gguf.constants import MODEL_ARCH
from transformers import LlamaConfig, LlamaForCausalLM

BYTES = 256
WORDS, WIDTH, INNER, LAYERS, HEADS, KV_HEADS = BYTES + 8, 32, 64, 2, 4, 2


def save_llama(folder: Path) -> LlamaForCausalLM:
    """Save a random model with weights of standard deviation 0.2."""
    config = LlamaConfig(
        vocab_size=WORDS,
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        max_position_embeddings=64,
        rms_norm_eps=1e-5,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(1.0 if parameter.ndim == 1 else 0.0, 0.2)
    model.save_pretrained(folder)
    return model


def write_gguf(model: LlamaForCausalLM, path: Path) -> None:
    """Write the model as `convert_hf_to_gguf.py` of llama.cpp does: rows of queries and keys in neighbouring pairs."""
    writer = GGUFWriter(str(path), "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_vocab_size(WORDS)
    writer.add_tokenizer_model("llama")
    words = [b"<unk>", b"<s>", b"</s>", *(f"<0x{byte:02X}>".encode() for byte in range(BYTES))]
    words += [f"w{number}".encode() for number in range(len(words), WORDS)]
    writer.add_token_list(words)
    writer.add_token_scores([0.0] * WORDS)
    kinds = [TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL, *[TokenType.BYTE] * BYTES]
    kinds += [TokenType.NORMAL] * (WORDS - len(kinds))
    writer.add_token_types(kinds)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    names = get_tensor_name_map(MODEL_ARCH.LLAMA, LAYERS)
    for name, tensor in model.state_dict().items():
        array = tensor.numpy().astype(np.float32)
        heads = {"q_proj": HEADS, "k_proj": KV_HEADS}.get(name.split(".")[-2])
        if heads is not None:
            array = array.reshape(heads, 2, -1, WIDTH).swapaxes(1, 2).reshape(array.shape)
        writer.add_tensor(str(names.get_name(name, try_suffixes=(".weight",))), np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
