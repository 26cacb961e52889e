"""Encoder–decoders that generate: a bundle writes what transformers and PEFT write, token by token."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
import transformers
from click.testing import CliRunner
from heard import Heard
from tiers import extended
from tiny_seq2seq import ADAPTERS, ENDS, MODELS, PADDING, WORDS, peft_model, seq2seq
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

import adapter_export as ae
from adapter_export.cli.main import main
from adapter_export.errors import BaseModelError, RequestError
from adapter_export.format.manifest import InputRecord
from adapter_export.format.manifest_json import write_manifest
from adapter_export.numerics.sample_inputs import input_cases
from adapter_export.runtime import Bundle, Decoding, Session
from adapter_export.runtime.generation.decoder import Decoder
from adapter_export.runtime.generation.decoding_batch import WrittenRow
from adapter_export.runtime.generation.running_rows import RunningRows
from adapter_export.torch_backend.base.torch_base import base_of

TOKENS = 12
TOLERANCE = 1e-5
"""Tolerance of logits around 5, which float32 rounds at each of some twenty sums."""

CHOICES = (None, *ADAPTERS)
Arrays = dict[str, np.ndarray]


@pytest.fixture(scope="session", params=MODELS)
@extended
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="session")
def folder(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return seq2seq(tmp_path_factory, kind)


@pytest.fixture(scope="session")
def end(kind: str) -> int:
    return ENDS[kind][1]


@pytest.fixture(scope="session")
def session(folder: Path) -> Session:
    return Bundle.open(folder / "bundle").session()


def texts() -> tuple[np.ndarray, np.ndarray]:
    """Sources of 7, 4 and 1 tokens with padding behind, and their mask."""
    ids = np.random.default_rng(3).integers(3, WORDS, (3, 7))
    mask = (np.arange(7) < np.array([7, 4, 1])[:, None]).astype(np.int64)
    return np.where(mask, ids, PADDING), mask


def written_in_transformers(folder: Path, name: str | None) -> tuple[np.ndarray, np.ndarray]:
    """The tokens [rows, tokens] that `generate` writes behind the first, and the logits by which it chose them."""
    ids, mask = map(torch.from_numpy, texts())
    model = peft_model(folder, name)
    found = model.generate(
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=TOKENS,
        do_sample=False,
        num_beams=1,
        return_dict_in_generate=True,
        output_logits=True,
    )
    return found.sequences[:, 1:].numpy(), torch.stack(found.logits, 1).numpy()


def step_by_step(
    run: Callable[[Arrays], Mapping[str, np.ndarray]], records: Sequence[InputRecord], end: int
) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and logits by the rule of the manifest: the source in the first call, each cache as the output `next`."""
    ids, mask = texts()
    new, source, logits, ended = np.full((3, 1), PADDING), ids, list[np.ndarray](), np.zeros(3, bool)
    caches = {
        one.name: np.zeros([3, *(axis if isinstance(axis, int) else 0 for axis in one.axes[1:])], np.float32)
        for one in records
        if one.role == "cache"
    }
    tokens = []
    while len(tokens) < TOKENS and not ended.all():
        outputs = run({"input_ids": source, "attention_mask": mask, "decoder_input_ids": new, **caches})
        caches = {one.name: outputs[one.next] for one in records if one.next is not None}
        logits.append(outputs["logits"][:, -1])
        chosen = np.where(ended, PADDING, logits[-1].argmax(-1))
        ended |= chosen == end
        tokens.append(chosen)
        new, source = chosen[:, None], ids[:, :0]
    return np.stack(tokens, 1), np.stack(logits, 1)


def test_the_texts_tell_adapters_and_rows_apart(folder: Path, end: int) -> None:
    """Make sure that texts differ in tokens and lengths, as equal ones would show nothing."""
    tokens = {name: written_in_transformers(folder, name)[0] for name in CHOICES}
    assert len({tuple(row) for rows in tokens.values() for row in rows}) > 2 * len(CHOICES)
    assert len(set((tokens[None] == end).argmax(1))) == 3
    assert (tokens[None] == end).any(1).all()


@pytest.mark.parametrize("name", CHOICES)
def test_a_session_writes_what_transformers_and_peft_write(
    folder: Path, session: Session, end: int, name: str | None
) -> None:
    records = Bundle.open(folder / "bundle").manifest.inputs
    tokens, logits = step_by_step(lambda arrays: session.run(arrays, adapter=name), records, end)
    expected, by_them = written_in_transformers(folder, name)
    np.testing.assert_array_equal(tokens, expected)
    real = np.cumsum(expected == end, 1) - (expected == end) == 0
    np.testing.assert_allclose(logits[real], by_them[real], rtol=0, atol=TOLERANCE)


def test_rows_of_one_batch_have_adapters_of_their_own(folder: Path, session: Session, end: int) -> None:
    records = Bundle.open(folder / "bundle").manifest.inputs
    tokens, _ = step_by_step(lambda arrays: session.run(arrays, adapters=CHOICES), records, end)
    for row, name in enumerate(CHOICES):
        expected = written_in_transformers(folder, name)[0][row]
        length = min(len(expected), tokens.shape[1])
        np.testing.assert_array_equal(tokens[row, :length], expected[:length])


@pytest.mark.parametrize("name", CHOICES)
def test_generate_writes_what_transformers_writes_of_a_padded_batch(
    folder: Path, session: Session, end: int, name: str | None
) -> None:
    expected = [_text(tokens, end) for tokens in written_in_transformers(folder, name)[0]]
    assert session.generate(prompts(), name, decoding=Decoding(TOKENS)) == expected


def test_generate_takes_an_adapter_for_each_prompt(folder: Path, session: Session, end: int) -> None:
    found = session.generate([prompts()[0]] * 3, adapters=CHOICES, decoding=Decoding(TOKENS))
    assert found == [_text(written_in_transformers(folder, name)[0][0], end) for name in CHOICES]


def test_forced_and_suppressed_tokens_are_those_of_transformers(folder: Path, session: Session, end: int) -> None:
    manifest = Bundle.open(folder / "bundle").manifest
    usual = session.generate(prompts(), decoding=Decoding(TOKENS))
    never = [usual[0][1], usual[1][0]]
    assert manifest.generation is not None
    settings = replace(manifest.generation, first=9, suppressed=tuple(never))
    decoder = Decoder(session, replace(manifest, generation=settings))
    rows = list(decoder.write(prompts(), [None] * 3, Decoding(TOKENS), [end]))
    found = {row.place: row.tokens for row in rows if row.finish is not None}
    ids, mask = map(torch.from_numpy, texts())
    expected = peft_model(folder, None).generate(
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=TOKENS,
        do_sample=False,
        forced_bos_token_id=9,
        suppress_tokens=never,
    )
    assert [found[place] for place in range(3)] == [_text(tokens, end) for tokens in expected[:, 1:].numpy()]
    assert all(tokens[0] == 9 and tokens not in usual for tokens in found.values())


@pytest.mark.parametrize("most", [1, 2, 5, TOKENS])
def test_the_last_token_is_forced_at_the_limit_as_in_transformers(
    folder: Path, session: Session, end: int, most: int
) -> None:
    endless = Forced(last=11, suppressed=(end,))  # each row reaches the limit
    for settings in (Forced(last=end), endless, Forced(first=9, last=end)):
        _compare_forced(folder, session, settings, end, most, max_new_tokens=most)


@dataclass(frozen=True)
class Forced:
    """Settings of generation, as the manifest names them."""

    last: int
    first: int | None = None
    suppressed: tuple[int, ...] = ()


def _compare_forced(folder: Path, session: Session, settings: Forced, end: int, most: int, **limit: int) -> None:
    """Compare rows of at most `most` tokens with those that transformers writes with a limit, one by one."""
    manifest = Bundle.open(folder / "bundle").manifest
    assert manifest.generation is not None
    record = replace(manifest.generation, **asdict(settings))
    decoder = Decoder(session, replace(manifest, generation=record))
    model = peft_model(folder, None)
    for prompt in prompts():
        (*_, row) = decoder.write([prompt], [None], Decoding(limit.get("max_new_tokens", 100)), [end])
        (tokens,) = model.generate(
            input_ids=torch.tensor([prompt]),
            do_sample=False,
            forced_bos_token_id=settings.first,
            forced_eos_token_id=settings.last,
            suppress_tokens=list(settings.suppressed) or None,
            **limit,
        ).numpy()
        assert row.tokens == _text(tokens[1:], end)
        assert row.finish == ("length" if len(tokens) == most + 1 else "end")


def test_texts_that_join_between_steps_are_those_written_alone(session: Session, end: int) -> None:
    """Only rows with equal sources and equal texts in length share calls: the decoder has no mask."""
    rows = [WrittenRow(0, prompt, None, Decoding(TOKENS), {end}) for prompt in [*prompts(), prompts()[0]]]
    running = RunningRows(session.decoder)
    running.join(rows[:2])
    running.step()
    running.join(rows[2:])
    while running.step():
        pass
    expected = session.generate([row.prompt for row in rows], decoding=Decoding(TOKENS), ends=[end])
    assert [row.tokens for row in rows] == expected


def test_golden_texts_are_those_of_transformers_and_peft(folder: Path) -> None:
    """Each is cut only where the two largest logits are so near that rounding decides, which is rare."""
    manifest = Bundle.open(folder / "bundle").manifest
    records = {None: manifest.golden} | {one.name: one.golden for one in manifest.adapters}
    assert sum(len(text.tokens) for one in records.values() for text in one.written) > 30
    for name, golden in records.items():
        model = peft_model(folder, name)
        for text in golden.written:
            ids = torch.tensor([text.prompt])
            most = len(text.tokens)
            found = model.generate(input_ids=ids, max_new_tokens=most, do_sample=False, num_beams=1)[0, 1:]
            assert found.tolist() == list(text.tokens)


def test_a_check_finds_a_golden_text_that_another_program_wrote(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder / "bundle", tmp_path / "bundle")
    manifest = Bundle.open(copy).manifest
    first, *others = manifest.adapters
    texts = [replace(one, tokens=(*one.tokens[:-1], (one.tokens[-1] + 1) % WORDS)) for one in first.golden.written]
    wrong = replace(first, golden=replace(first.golden, written=(texts[0], *first.golden.written[1:])))
    write_manifest(replace(manifest, adapters=(wrong, *others)), copy)
    report = ae.check(copy, quick=True)
    assert [(found.check, found.subject) for found in report.findings if found.status == "failed"] == [
        ("golden generation", first.name),
        ("golden schedule", first.name),
    ]


def test_adding_an_adapter_adds_its_golden_texts(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder / "bundle", tmp_path / "bundle")
    before = Bundle.open(copy).manifest.adapters
    ae.remove(copy, ["few"])
    adapter = ae.import_peft(folder / "few", folder / "base.pt", name="few")
    after = ae.add(copy, [adapter], against=folder / "base.pt").manifest.adapters
    assert {one.name: one.golden.written for one in after} == {one.name: one.golden.written for one in before}


def test_an_adapter_is_in_both_halves(folder: Path) -> None:
    """One file fills slots of the encoder and of the decoder, and a graph has them all."""
    manifest = Bundle.open(folder / "bundle").manifest
    halves = {slot.site.partition(".")[0] for slot in manifest.slots}
    assert halves == {"encoder", "decoder"}
    assert set(manifest.graphs) >= {"slots", "bank"}


def test_the_whole_bundle_passes_a_check_against_its_base(folder: Path) -> None:
    report = ae.check(folder / "bundle", against=folder / "base.pt", quick=True)
    assert report.passed


def test_a_base_has_the_fingerprint_of_the_whole_model(folder: Path) -> None:
    """Names of modules, so that adapters from a custom loop with `attach` fit."""
    ids = torch.ones(2, 5, dtype=torch.int64)
    model = base_of(
        peft_model(folder, None), {"input_ids": ids, "attention_mask": ids, "decoder_input_ids": ids[:, :3]}
    )
    assert ae.open_base(folder / "base.pt").fingerprint == model.fingerprint


def prompts() -> list[list[int]]:
    """The sources of `texts` without padding."""
    ids, mask = texts()
    return [row[: real.sum()].tolist() for row, real in zip(ids, mask, strict=True)]


def _text(tokens: np.ndarray, end: int) -> list[int]:
    """The tokens before the end of a text, behind which transformers pads."""
    found: list[int] = tokens.tolist()
    return found[: found.index(end)] if end in found else found


class TestRefused:
    """Calls that would give an answer of something else."""

    @pytest.fixture
    def first(self, folder: Path) -> Arrays:
        ids, mask = texts()
        records = Bundle.open(folder / "bundle").manifest.inputs
        caches = {
            one.name: np.zeros([3, *(axis if isinstance(axis, int) else 0 for axis in one.axes[1:])], np.float32)
            for one in records
            if one.role == "cache"
        }
        return {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": ids[:, :1], **caches}

    def test_empty_prompts_are_refused(self, session: Session) -> None:
        with pytest.raises(RequestError, match="prompt 1: has too few or too many tokens; found 0"):
            session.generate([[5], []])

    def test_unknown_token_ids_are_refused(self, session: Session) -> None:
        with pytest.raises(RequestError, match=f"`input_ids`: an id is out of range; found {WORDS}"):
            session.generate([[WORDS]])

    def test_empty_encoder_inputs_are_refused(self, session: Session, first: Arrays) -> None:
        first |= {"input_ids": first["input_ids"][:, :0], "attention_mask": first["attention_mask"][:, :0]}
        with pytest.raises(RequestError, match=r"`attention_mask`: .*; found \[3, 0\]"):
            session.run(first)

    def test_a_step_without_a_new_token_is_refused(self, session: Session, first: Arrays) -> None:
        with pytest.raises(RequestError, match=r"`decoder_input_ids`: .*; found \[3, 0\]"):
            session.run(first | {"decoder_input_ids": first["input_ids"][:, :0]})

    def test_a_mask_of_only_the_new_tokens_is_refused(self, session: Session, first: Arrays) -> None:
        """The mask covers the source in every call, also where its tokens are in the cache."""
        kept = session.run(first)
        caches = {name: kept[name.replace("past_key_values", "present")] for name in first if "past" in name}
        step = first | caches | {"input_ids": first["input_ids"][:, :0]}
        assert session.run(step)["logits"].shape == (3, 1, WORDS)
        with pytest.raises(RequestError, match="`attention_mask`"):
            session.run(step | {"attention_mask": first["attention_mask"][:, :1]})


@pytest.mark.extended
def test_a_decoder_stops_at_its_last_position(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = seq2seq(tmp_path_factory, "bart")
    session, manifest = Bundle.open(folder / "bundle").session(), Bundle.open(folder / "bundle").manifest
    assert manifest.lengths["past_decoder_sequence + decoder_sequence"].maximum == 40
    shapes = {"batch": 1, "sequence": 3, "past_sequence": 0, "decoder_sequence": 1, "past_decoder_sequence": 40}
    (case,) = input_cases(manifest.inputs, seed=0, shapes=[shapes])
    with pytest.raises(RequestError, match=r"past_decoder_sequence \+ decoder_sequence`: .*; found 41"):
        session.run(case.arrays)


@pytest.mark.extended
def test_the_last_token_is_forced_at_the_last_position(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder, end = seq2seq(tmp_path_factory, "bart"), ENDS["bart"][1]
    session = Bundle.open(folder / "bundle").session()
    _compare_forced(folder, session, Forced(last=9, suppressed=(end,)), end, 39, max_length=40)


@pytest.mark.extended
def test_a_model_that_forces_tokens_is_captured_built_and_verified(tmp_path: Path) -> None:
    """The settings are those of BART's configuration; golden texts of any length are not forced."""
    torch.manual_seed(5)
    sizes = {"vocab_size": WORDS, "d_model": 16, "max_position_embeddings": 40, "pad_token_id": PADDING}
    halves = {f"{half}_{name}": 1 for half in ("encoder", "decoder") for name in ("layers", "attention_heads")}
    widths = {"encoder_ffn_dim": 24, "decoder_ffn_dim": 24}
    ids = {"eos_token_id": 4, "bos_token_id": 5, "decoder_start_token_id": 4}
    config = transformers.BartConfig(**sizes, **halves, **widths, **ids, init_std=0.2, forced_eos_token_id=4)
    model = transformers.BartForConditionalGeneration(config).eval()
    model.generation_config.forced_bos_token_id = 5
    model.save_pretrained(tmp_path / "hf")
    base = ae.capture(tmp_path / "hf", tmp_path / "base.pt")
    assert not any("forced" in note for note in base.notes)
    config = peft.LoraConfig(task_type="SEQ_2_SEQ_LM", r=2, target_modules=["q_proj"], init_lora_weights=False)
    peft.get_peft_model(model, config).save_pretrained(tmp_path / "few")
    bundle = ae.build(base, [ae.import_peft(tmp_path / "few", base, name="few")], tmp_path / "bundle")
    record = bundle.manifest.generation
    assert record is not None
    assert (record.first, record.last) == (5, 4)
    golden = [text.tokens for text in bundle.manifest.golden.written]
    assert any(4 not in tokens for tokens in golden), "no golden text would change if its last token were forced"
    assert ae.verify(tmp_path / "bundle").passed
    for most in (1, 4):
        tokens = peft_model(tmp_path, None).generate(input_ids=torch.tensor([[7, 8, 9]]), max_new_tokens=most)
        (found,) = bundle.session().generate([[7, 8, 9]], decoding=Decoding(most))
        assert found == _text(tokens[0, 1:].numpy(), 4)
        assert len(found) == most - 1


@pytest.mark.extended
def test_a_writer_reads_prompts_as_texts(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    """The prompt is what the encoder reads, and the text holds none of it."""
    folder, (_, end) = seq2seq(tmp_path_factory, "bart"), ENDS["bart"]
    words = Tokenizer(WordLevel({f"w{number}": number for number in range(WORDS)}, unk_token="w3"))
    words.pre_tokenizer = Whitespace()
    words.save(str(tmp_path / "tokenizer.json"))
    adapter = ae.import_peft(folder / "few", folder / "base.pt", name="few")
    bundle = ae.build(folder / "base.pt", [adapter], tmp_path / "bundle", tokenizer=tmp_path / "tokenizer.json")
    prompt, expected = prompts()[0], _text(written_in_transformers(folder, "few")[0][0], end)
    (text,) = bundle.writer().write([" ".join(f"w{number}" for number in prompt)], "few", decoding=Decoding(TOKENS))
    assert text.text == " ".join(f"w{number}" for number in expected)
    assert text.finish == ("end" if len(expected) < TOKENS else "length")
    arguments = ["generate", str(tmp_path / "bundle"), "--adapter", "few", "--prompt", text.prompt, "--json"]
    found = CliRunner().invoke(main, [*arguments, "--max-new-tokens", str(TOKENS)])
    assert text.text in found.output


def test_a_decoder_without_a_first_token_is_refused(tmp_path: Path) -> None:
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2, "vocab_size": 20}
    config = transformers.T5Config(**sizes, decoder_start_token_id=None, bos_token_id=None)
    transformers.T5ForConditionalGeneration(config).save_pretrained(tmp_path / "t5")
    with pytest.raises(BaseModelError, match="does not record its decoder's start token"):
        ae.capture(tmp_path / "t5", tmp_path / "base.pt")


def test_settings_that_greedy_generation_leaves_out_are_noted(tmp_path: Path, folder: Path) -> None:
    copy = shutil.copytree(folder / "hf", tmp_path / "hf")
    settings = json.loads((copy / "generation_config.json").read_text())
    settings |= {"num_beams": 4, "forced_bos_token_id": 9, "bad_words_ids": [[7], [8, 9]], "suppress_tokens": [5]}
    (copy / "generation_config.json").write_text(json.dumps(settings))
    heard = Heard()
    base = ae.capture(copy, tmp_path / "base.pt", reporter=heard)
    assert any("ignores `num_beams`, `bad_words_ids` of" in note for note in heard.notes)
    record = base.torch.generation.record()
    assert (record.first, record.suppressed, record.start) == (9, (5, 7), PADDING)
