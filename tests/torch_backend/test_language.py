"""Language modelling: the training targets in texts and answers, and decoders whose adapters generate differently."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as hf
from heard import Heard
from tokenizers import Tokenizer, models, pre_tokenizers, processors

import adapter_export as ae
from adapter_export.errors import AdapterError, BaseModelError, DataError, RequestError, UsageError
from adapter_export.text import Tokenizer as OwnTokenizer
from adapter_export.torch_backend.attach import attach
from adapter_export.training.loop.language import LanguageExamples, Passage

PADDING, BEGIN, END = 0, 1, 2
COUNT = 14
NUMBERS = [f"n{number}" for number in range(COUNT)]
FIRST = 3
"""The id of `n0`."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama with random weights, whose words are numbers; its tokenizer prepends `<s>` to each text."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    special = {"pad_token_id": PADDING, "bos_token_id": BEGIN, "eos_token_id": END}
    config = hf.LlamaConfig(vocab_size=FIRST + COUNT, max_position_embeddings=40, **sizes, **special)
    model = hf.LlamaForCausalLM(config)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, 1.0 if weight.dim() == 1 else 0.0, 0.2)
    folder = tmp_path_factory.mktemp("numbers")
    model.save_pretrained(folder)
    words = {word: place for place, word in enumerate(["<pad>", "<s>", "</s>", *NUMBERS])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BEGIN)])
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def base(folder: Path) -> ae.Base:
    return ae.capture(folder, folder / "model.pt")


def write(path: Path, rows: Sequence[dict[str, str]]) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def ids(*numbers: int) -> tuple[int, ...]:
    return tuple(FIRST + number for number in numbers)


def learnt(base: ae.Base, data: Path, **options: object) -> tuple[ae.Adapter, list[str]]:
    """Return an adapter after one epoch, and the notes."""
    heard = Heard()
    settings = {"kind": "pfeiffer", "bottleneck": 2, "epochs": 1, "validation_data": data, **options}
    return ae.train(base, data, task="causal_lm", reporter=heard, **settings), heard.notes


def test_the_loss_of_a_batch_is_that_of_transformers(folder: Path, base: ae.Base) -> None:
    rows = [Passage((BEGIN, *ids(4, 7, 1, 9), END)), Passage((BEGIN, *ids(3, 2, 8), END), 3), Passage(ids(5, 6))]
    assert base.tokenizer is not None
    examples = LanguageExamples(rows, base.inputs, OwnTokenizer.from_json(base.tokenizer, 40))
    model, every = attach(base.torch, None), np.arange(3)
    losses, right = examples.matched(model.result(examples.inputs(every)), every)[0].unbind(-1)
    labels = torch.full((3, 6), -100)
    labels[0], labels[1, 3:5], labels[2, :2] = (
        torch.tensor(rows[0].ids),
        torch.tensor(rows[1].ids[3:]),
        torch.tensor(ids(5, 6)),
    )
    tokens = examples.inputs(every)["input_ids"]
    decoder = hf.LlamaForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        expected = decoder(input_ids=tokens, attention_mask=(tokens > 0).long(), labels=labels)
    assert len(losses) == 5 + 2 + 1
    torch.testing.assert_close(losses.mean(), expected.loss, rtol=1e-5, atol=0)
    found = expected.logits[:, :-1].argmax(-1) == labels[:, 1:]
    assert right.sum() == found.sum()


def test_answers_are_learnt_and_prompts_are_not(base: ae.Base, tmp_path: Path) -> None:
    """The scores do not depend on a prompt's tokens if nothing reads them."""
    rows = [{"prompt": "n1 n2", "answer": "n3"}, {"prompt": "n4", "answer": "n5 n6"}, {"prompt": "n4", "answer": "n7"}]
    made, notes = learnt(base, write(tmp_path / "a.jsonl", rows))
    # 1 + 2 + 1 words of answers, and the end of each
    assert made.training["data"]["training"]["tokens_to_learn"] == 4 + 3
    assert made.head is None
    assert notes == []
    assert made.training["validation"]["perplexity"] == pytest.approx(np.exp(made.training["validation"]["loss"]))
    ending = Tokenizer.from_str(str(base.tokenizer))
    special = [("<s>", BEGIN), ("</s>", END)]
    ending.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=special)
    ending.save(str(tmp_path / "tokenizer.json"))
    same, notes = learnt(base, tmp_path / "a.jsonl", tokenizer=tmp_path)
    assert all(np.array_equal(same.weights[name], tensor) for name, tensor in made.weights.items())
    assert "removed the end-of-text token from prompts of the training data" in notes[0]
    renamed = [{"question": row["prompt"], "reply": row["answer"]} for row in rows]
    again, _ = learnt(base, write(tmp_path / "b.jsonl", renamed), text="question", pair="reply")
    assert all(np.array_equal(again.weights[name], tensor) for name, tensor in made.weights.items())


def test_training_notes_truncated_packed_and_skipped_texts(base: ae.Base, tmp_path: Path) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("n1 n2 n3 n4 n5 n6\n\nn7\nn1 n2 n3 n4 n5 n6\n")
    cut, notes = learnt(base, texts, max_tokens=4)
    assert cut.training["data"]["training"]["tokens_to_learn"] == 3 + 2
    assert "1 row of the training data repeats another row and was skipped (line 4)" in notes
    assert any("1 text of the training data exceeds 4 tokens and is truncated" in note for note in notes)
    packed, notes = learnt(base, texts, max_tokens=4, packing=True)
    # <s> n1 n2 n3 | n4 n5 n6 </s> | <s> n7 </s>
    assert packed.training["data"]["training"]["tokens_to_learn"] == 3 + 3 + 2
    assert "2 texts of the training data are packed into 3 rows of 4 tokens" in notes
    pairs = write(tmp_path / "a.jsonl", [{"prompt": "n1", "answer": "n2"}, {"prompt": "n1 n2 n3 n4", "answer": "n5"}])
    _, notes = learnt(base, pairs, max_tokens=4)
    assert "1 text of the training data has no tokens to learn and was skipped" in notes
    ended, _ = learnt(base, texts, max_tokens=9, end_token="n0")
    assert ended.training["settings"]["end_token"] == "n0"


def test_two_adapters_write_differently_and_are_swapped_without_a_new_session(
    genai_is_there: None, base: ae.Base, tmp_path: Path
) -> None:
    """One counts up from the end of the prompt, the other down; both end with the last number."""
    import onnxruntime_genai as genai

    starts = range(COUNT)
    up = [{"text": " ".join(NUMBERS[start:])} for start in starts]
    down = [{"prompt": NUMBERS[start], "answer": " ".join(NUMBERS[start - 1 :: -1])} for start in starts if start]
    settings = {"kind": "houlsby", "bottleneck": 32, "epochs": 25, "learning_rate": 0.02, "patience": 25}
    for name, rows in (("up", up), ("down", down)):
        data = write(tmp_path / f"{name}.jsonl", rows)
        made, _ = learnt(base, data, output=tmp_path / name, batch_size=4, **settings)
        assert made.base == base.fingerprint
        assert made.training["validation"]["perplexity"] < 2
    ae.build(base, [tmp_path / "up", tmp_path / "down"], tmp_path / "bundle", variants=["slots"])

    model = genai.Model(str(tmp_path / "bundle"))
    adapters = genai.Adapters(model)
    for name in ("up", "down"):
        adapters.load(str(tmp_path / "bundle/adapters" / f"{name}.onnx_adapter"), name)

    def written(name: str | None) -> list[int]:
        options = genai.GeneratorParams(model)
        options.set_search_options(do_sample=False, max_length=12)
        generator = genai.Generator(model, options)
        if name is not None:
            generator.set_active_adapter(adapters, name)
        generator.append_tokens(np.array([[BEGIN, *ids(8)]], np.int32))
        while not generator.is_done():
            generator.generate_next_token()
        return [int(token) for token in generator.get_sequence(0)][2:]

    assert written("up") == [*ids(9, 10, 11, 12, 13)]
    assert written("down") == [*ids(7, 6, 5, 4, 3, 2, 1, 0)]
    assert written("up") == [*ids(9, 10, 11, 12, 13)]
    assert written(None) not in (written("up"), written("down"))

    other = Tokenizer.from_str(str(base.tokenizer))
    other.add_tokens(["n99"])
    other.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(AdapterError, match="trained with another tokenizer"):
        ae.build(base, [tmp_path / "up"], tmp_path / "b", tokenizer=tmp_path / "tokenizer.json", variants=["slots"])


def test_a_model_that_gives_no_next_token_is_refused(folder: Path, base: ae.Base, tmp_path: Path) -> None:
    texts = write(tmp_path / "texts.jsonl", [{"text": "n1 n2 n3"}, {"text": "n4 n5 n6"}])
    bare = ae.capture(folder, tmp_path / "bare.pt", bare=True, reporter=Heard())
    with pytest.raises(BaseModelError, match=r"has no output with the logits of the next token.*without `bare=True`"):
        learnt(bare, texts)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    masked = hf.BertForMaskedLM(hf.BertConfig(vocab_size=FIRST + COUNT, initializer_range=0.2, **sizes))
    example = {"input_ids": torch.ones(1, 4, dtype=torch.int64)}
    both_ways = ae.capture(masked, tmp_path / "bert.pt", example_inputs=example, tokenizer=folder)
    with pytest.raises(BaseModelError, match="reads later tokens"):
        learnt(both_ways, texts)
    with pytest.raises(BaseModelError, match=r"captured with its cache.*`task=\"causal_lm\"`.*`bare=True`"):
        ae.train(base, texts)
    with pytest.raises(BaseModelError, match=r"reads later tokens.*train an adapter without a gate"):
        learnt(base, texts, gate=True)  # the mean over all tokens, although a new adapter has little effect


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pooling": "first"}, "without a trained head or fusion; found `pooling`"),
        ({"class_weights": "balanced"}, "found `class_weights`"),
        ({"end_token": "n99"}, "the tokenizer lacks this token"),
        ({"packing": True}, "prompts and answers cannot be packed"),
        ({"metric": "accuracy"}, "expected `loss`, `perplexity`, `token_accuracy`"),
        ({"max_tokens": 2}, "no token of the training data can be learned"),
        ({"validation_data": None, "validation": 1.0}, "above 0 and below 1"),
        ({"text": "words"}, "there is no column `words`"),
    ],
)
def test_conflicting_options_of_language_training_are_refused(
    base: ae.Base, tmp_path: Path, options: dict[str, object], message: str
) -> None:
    pairs = write(tmp_path / "pairs.jsonl", [{"prompt": "n1 n2", "answer": "n2"}, {"prompt": "n3", "answer": "n4"}])
    with pytest.raises((UsageError, DataError), match=message):
        learnt(base, pairs, **options)


def test_rows_without_an_answer_and_files_without_texts_are_refused(base: ae.Base, tmp_path: Path) -> None:
    pairs = write(tmp_path / "pairs.jsonl", [{"prompt": "n1", "answer": ""}, {"prompt": "n3", "answer": "n4"}])
    with pytest.raises(DataError, match=r"1 row has no text or no answer.*line 1"):
        learnt(base, pairs)
    made, notes = learnt(base, pairs, skip_incomplete=True)
    assert made.training["data"]["training"]["incomplete_rows_left_out"] == 1
    assert "1 row of the training data has no text or no answer and was skipped (line 1)" in notes
    (tmp_path / "empty.txt").write_text("\n\n")
    with pytest.raises(DataError, match="contains no texts"):
        learnt(base, tmp_path / "empty.txt")
    with pytest.raises(UsageError, match=r"this option applies only to `causal_lm`; found `packing`"):
        ae.train(base, pairs, packing=True)


def test_an_unknown_input_is_refused(folder: Path, tmp_path: Path) -> None:
    """Positions index an embedding, like tokens."""
    texts = write(tmp_path / "texts.jsonl", [{"text": "n1 n2 n3"}, {"text": "n4 n5 n6"}])
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 40}
    model = hf.GPT2LMHeadModel(hf.GPT2Config(vocab_size=FIRST + COUNT, **sizes))
    ids = torch.ones(1, 4, dtype=torch.int64)
    example = {"input_ids": ids, "position_ids": ids}
    base = ae.capture(model, tmp_path / "gpt2.pt", example_inputs=example, tokenizer=folder)
    with pytest.raises(
        RequestError, match="inputs that cannot be computed from text; found `input_ids`, `position_ids`"
    ):
        learnt(base, texts)
