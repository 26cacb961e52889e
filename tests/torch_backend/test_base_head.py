"""Base heads: the numbers of transformers in ONNX Runtime, and a note on every head that is left out."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from archives import edit, read_entries, write_entries
from heard import Heard
from small_models import SIZES, small, traced_once
from transformers import AutoModel, AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerFast

import adapter_export as ae
from adapter_export.errors import AdapterError, BaseModelError, UsageError
from adapter_export.format.manifest import GRAPH_VARIANTS
from adapter_export.graph.adapter import BASE_HEAD
from adapter_export.torch_backend.base.base_head import base_head
from adapter_export.torch_backend.base.example_inputs import obvious_inputs
from adapter_export.torch_backend.base.huggingface_folder import capture_folder, open_folder
from adapter_export.torch_backend.base.torch_base import HEAD_GRAPH, HEAD_WEIGHTS, load_base, save_base


@pytest.fixture(scope="module", autouse=True)
def _traced_once() -> Iterator[None]:
    with traced_once():
        yield


KEY_VALUE = {"num_key_value_heads": 2, "head_dim": 8}
MULTI_LABEL = {"problem_type": "multi_label_classification"}
HEADS: list[tuple[str, str, dict[str, Any], str]] = [
    ("Bert", "ForSequenceClassification", {"problem_type": "single_label_classification"}, "single_label"),
    ("Bert", "ForTokenClassification", {}, "token"),
    ("Bert", "ForQuestionAnswering", {"num_labels": 2}, "span"),
    ("Bert", "ForMultipleChoice", {}, "multiple_choice"),
    ("Roberta", "ForSequenceClassification", MULTI_LABEL, "multi_label"),
    ("DistilBert", "ForSequenceClassification", {"num_labels": 1}, "regression"),
    ("Electra", "ForSequenceClassification", {"problem_type": "regression", "num_labels": 2}, "regression"),
    ("ModernBert", "ForSequenceClassification", {"classifier_pooling": "mean"}, "single_label"),
    ("ViT", "ForImageClassification", {}, "single_label"),
    ("GPT2", "ForSequenceClassification", {}, "single_label"),
    ("Llama", "ForSequenceClassification", {"pad_token_id": 0}, "single_label"),
    ("Qwen3", "ForSequenceClassification", {"pad_token_id": 98, "num_labels": 1} | KEY_VALUE, "regression"),
    ("Gemma", "ForSequenceClassification", {"pad_token_id": 0, **MULTI_LABEL, **KEY_VALUE}, "multi_label"),
]


def requests(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Return four rows of seven tokens, the last ones padded; or four images."""
    found = obvious_inputs(model)
    assert found is not None
    if "pixel_values" in found[0]:
        return {"pixel_values": torch.randn(4, 3, 32, 32)}
    ids = torch.randint(2, 98, (4, 7))
    mask = (torch.arange(7) < torch.tensor([[7], [5], [3], [1]])).long()
    padding = model.config.pad_token_id or 0
    drawn = {"input_ids": torch.where(mask.bool(), ids, padding), "attention_mask": mask}
    drawn["token_type_ids"] = torch.randint(0, 2, (4, 7)) * mask
    return {name: drawn[name] for name in found[0]}


def logits(model: PreTrainedModel, kind: str, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the results of transformers, in the layout of a head of this type."""
    with torch.inference_mode():
        if kind == "multiple_choice":  # two questions with two choices each
            choices = {name: value.reshape(2, 2, -1) for name, value in inputs.items()}
            return model(**choices).logits.reshape(4, 1)
        found = model(**inputs)
    return torch.stack([found.start_logits, found.end_logits], -1) if kind == "span" else found.logits


@pytest.mark.extended
@pytest.mark.parametrize(("name", "head", "options", "kind"), HEADS, ids=[f"{one[0]}{one[1]}" for one in HEADS])
def test_base_heads_match_transformers_in_onnx_runtime(
    name: str, head: str, options: dict[str, Any], kind: str, tmp_path: Path
) -> None:
    model = small(name, head, **options)
    model.save_pretrained(tmp_path / "folder")
    heard = Heard()
    base = ae.capture(tmp_path / "folder", tmp_path / "model.pt", reporter=heard)
    notes = heard.notes
    assert base.base_head is not None
    assert not [note for note in notes if "left out" in note]
    bundle = ae.build(base, [], tmp_path / "bundle", variants=("slots",))
    assert bundle.manifest.head == BASE_HEAD
    (record,) = bundle.manifest.adapters
    assert record.task is not None
    assert record.task.type == kind
    inputs = requests(model)
    expected = logits(model, kind, inputs).numpy()
    found = bundle.session().run({key: value.numpy() for key, value in inputs.items()}, BASE_HEAD)[str(record.output)]
    real = inputs["attention_mask"].bool().numpy() if expected.ndim == 3 else slice(None)
    assert np.abs(expected).max() > 0.1
    assert np.abs(found[real] - expected[real]).max() < 1e-5 * max(1, np.abs(expected).max())


def test_the_base_is_the_bare_model_as_before(tmp_path: Path) -> None:
    model = small("Bert", "ForSequenceClassification")
    model.save_pretrained(tmp_path / "whole")
    AutoModel.from_pretrained(tmp_path / "whole").save_pretrained(tmp_path / "bare")
    whole, bare = (load_archive(tmp_path, name) for name in ("whole", "bare"))
    assert set(whole) - set(bare) == {f"extra/{HEAD_GRAPH}", f"extra/{HEAD_WEIGHTS}"}
    differ = {name for name in bare if whole[name] != bare[name]}
    described = {"extra/adapter_export.json", "extra/model_config.json"}  # the configuration names the architecture
    assert differ == described | ({".data/serialization_id"} & set(bare))


def load_archive(folder: Path, name: str) -> dict[str, bytes]:
    capture_folder(folder / name, folder / f"{name}.pt")
    return read_entries(folder / f"{name}.pt")


LEFT_OUT = [
    ("Bert", "ForMaskedLM", ["`cls.predictions.transform.dense.weight`", "no head with a known task"]),
    ("GPT2", "LMHeadModel", ["GPT2LMHeadModel"]),  # it shares the weights of the embeddings
]


@pytest.mark.parametrize(("name", "head", "named"), LEFT_OUT, ids=[f"{one[0]}{one[1]}" for one in LEFT_OUT])
def test_unsupported_base_heads_are_named(name: str, head: str, named: list[str], tmp_path: Path) -> None:
    small(name, head).save_pretrained(tmp_path / "folder")
    with pytest.warns(UserWarning, match="left out") as warned:
        base = ae.capture(tmp_path / "folder", tmp_path / "model.pt", bare=True)
    (note,) = [str(one.message) for one in warned if "left out" in str(one.message)]
    assert base.base_head is None
    assert all(word in note for word in named), note
    assert base.notes == (note,)
    with pytest.raises(UsageError, match="nothing to build"):
        ae.build(base, [], tmp_path / "bundle")


@pytest.mark.parametrize(("tokens", "reason"), [(16, ""), (9, "not run at a length that the base accepts")])
def test_base_head_is_measured_only_at_accepted_lengths(tokens: int, reason: str, tmp_path: Path) -> None:
    small("Bert", "ForSequenceClassification").save_pretrained(tmp_path / "folder")
    heard = Heard()
    base = ae.capture(tmp_path / "folder", tmp_path / "model.pt", lengths=[f"sequence={tokens}"], reporter=heard)
    notes = heard.notes
    assert (base.base_head is None) == bool(reason)
    assert [reason in note for note in notes if "left out" in note] == ([True] if reason else [])


def test_a_bare_model_leaves_nothing_out(tmp_path: Path) -> None:
    small("Bert", "Model").save_pretrained(tmp_path / "folder")
    base = open_folder(tmp_path / "folder")
    assert base.base_head is None
    assert base.notes == ()


def test_weights_that_the_head_lacks_are_never_random(tmp_path: Path) -> None:
    model = small("Bert", "Model")
    model.config.architectures = ["BertForSequenceClassification"]
    model.save_pretrained(tmp_path / "folder")
    config = (tmp_path / "folder" / "config.json").read_text()
    (tmp_path / "folder" / "config.json").write_text(config.replace("BertModel", "BertForSequenceClassification"))
    base = open_folder(tmp_path / "folder")
    assert base.base_head is None
    assert "the folder lacks its weights; found `classifier.bias`" in base.notes[0]


@pytest.mark.parametrize("architecture", ["pipeline", "BertNowhereForTokenClassification", "__doc__"])
def test_unknown_classes_leave_out_the_base_head(architecture: str, tmp_path: Path) -> None:
    small("Bert", "ForTokenClassification").save_pretrained(tmp_path / "folder")
    config = (tmp_path / "folder" / "config.json").read_text()
    (tmp_path / "folder" / "config.json").write_text(config.replace("BertForTokenClassification", architecture))
    base = open_folder(tmp_path / "folder")
    assert base.base_head is None
    assert f"`{architecture}` is left out, with the weights `classifier.bias`" in base.notes[0]


def test_a_head_that_computes_something_else_is_not_taken(tmp_path: Path) -> None:
    model = small("Bert", "ForSequenceClassification", problem_type="single_label_classification")
    found = base_head(model, "BertForSequenceClassification", ["logits"], lambda _: (None, ()), obvious_inputs(model))
    model.bert.save_pretrained(tmp_path / "folder")
    base = open_folder(tmp_path / "folder")
    adapter, notes = found.of(base, model="BertModel", unused=())
    assert adapter is not None
    assert notes == ()
    wrong = replace(found, results=[result + 1e-3 for result in found.results])
    adapter, notes = wrong.of(base, model="BertModel", unused=("classifier.weight",))
    assert adapter is None
    assert "computes something else" in notes[0]


def test_a_head_that_rounding_moves_far_is_taken(tmp_path: Path) -> None:
    """Its terms cancel: after a norm, the sum of a hidden state is 0."""
    model = small("Bert", "ForTokenClassification")
    with torch.no_grad():
        model.classifier.weight.add_(100)
    found = base_head(model, "BertForTokenClassification", ["logits"], lambda _: (None, ()), obvious_inputs(model))
    model.bert.save_pretrained(tmp_path / "folder")
    exact = model.double()
    with torch.no_grad():
        results = [exact(**inputs).logits.float() for inputs in found.cases]
    distances = [float((one - other).abs().max()) for one, other in zip(results, found.results, strict=True)]
    assert max(distances) > 2e-5  # far above the rounding of three products of such numbers
    adapter, notes = replace(found, results=results).of(open_folder(tmp_path / "folder"), model="BertModel", unused=())
    assert adapter is not None, notes


class OfAllLayers(transformers.BertForTokenClassification):
    """A classifier whose head has the dropout of the last layer."""

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> dict[str, torch.Tensor]:
        hidden = self.bert(input_ids, attention_mask).last_hidden_state
        return {"logits": self.classifier(self.bert.encoder.layer[1].output.dropout(hidden))}


@pytest.mark.parametrize(("deep", "traced"), [(transformers.BertForTokenClassification, [6]), (OfAllLayers, [12])])
def test_head_is_traced_from_one_layer_if_sufficient(
    deep: type[PreTrainedModel], traced: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(traced[0])  # unique weights, whose program is not cached
    model = deep(transformers.BertConfig(**SIZES | {"num_hidden_layers": 2})).eval()
    export, linears = torch.export.export, []

    def counted(*given: Any, **options: Any) -> torch.export.ExportedProgram:
        program = export(*given, **options)
        linears.append(sum(str(node.target) == "aten.linear.default" for node in program.graph.nodes))
        return program

    monkeypatch.setattr(torch.export, "export", counted)
    ids = torch.ones(2, 7, dtype=torch.int64)
    examples = {"input_ids": ids, "attention_mask": ids}, None
    found = base_head(model, deep.__name__, ["logits"], lambda _: (None, ()), examples)
    assert [count - 1 for count in linears] == traced  # without the head's own
    save_base(model.bert, examples[0], tmp_path / "model.pt")
    assert linears[1] == 12, "the model has its layers again"
    adapter, notes = found.of(load_base(tmp_path / "model.pt"), model="BertModel", unused=())
    assert adapter is not None, notes


def test_base_head_is_built_beside_adapters(tmp_path: Path) -> None:
    model = small("Bert", "ForSequenceClassification", problem_type="single_label_classification")
    model.save_pretrained(tmp_path / "folder")
    base = ae.capture(tmp_path / "folder", tmp_path / "model.pt")
    assert base.base_head is not None
    mine = replace(base.base_head, name="mine")
    bundle = ae.build(base, [mine], tmp_path / "both", variants=("slots",))
    assert [record.name for record in bundle.manifest.adapters] == ["mine", BASE_HEAD]
    # one topology: the same slots
    assert len(bundle.manifest.slots) == len(base.base_head.weights)
    alone = ae.build(base, [mine], tmp_path / "without", variants=("slots",), without_base_head=True)
    assert [record.name for record in alone.manifest.adapters] == ["mine"]
    assert alone.manifest.head is None
    with pytest.raises(AdapterError, match=r"base head's name.*without_base_head"):
        ae.build(base, [replace(mine, name="Base-Head")], tmp_path / "twice")


@pytest.fixture(scope="module")
def tagger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive with a head for tokens."""
    place = tmp_path_factory.mktemp("tagger")
    small("Bert", "ForTokenClassification").save_pretrained(place / "folder")
    capture_folder(place / "folder", place / "model.pt")
    return place / "model.pt"


@pytest.mark.parametrize("fault", ["another base", "damaged weights", "no base64", "a flipped bit"])
def test_a_head_in_an_archive_is_read_strictly(fault: str, tagger: Path, tmp_path: Path) -> None:
    entries = read_entries(tagger)
    if fault == "another base":
        edit(entries, f"extra/{HEAD_GRAPH}", lambda document: document["base"].update(fingerprint="sha256:other"))
        edit(entries, f"extra/{HEAD_GRAPH}", lambda document: document.pop("checksum"))
    elif fault == "damaged weights":
        entries[f"extra/{HEAD_WEIGHTS}"] = entries[f"extra/{HEAD_WEIGHTS}"][:-40]
    elif fault == "no base64":
        entries[f"extra/{HEAD_WEIGHTS}"] = b"?" + entries[f"extra/{HEAD_WEIGHTS}"]
    else:
        entries[f"extra/{HEAD_GRAPH}"] = entries[f"extra/{HEAD_GRAPH}"].replace(b"LABEL_1", b"LABEL_7")
    write_entries(tmp_path / "bad.pt", entries)
    with pytest.raises(BaseModelError, match=r"head (that cannot be read|of another base).*Capture the base again"):
        load_base(tmp_path / "bad.pt")


def test_a_module_has_no_head_of_its_own(tmp_path: Path) -> None:
    model = small("Bert", "ForSequenceClassification", problem_type="single_label_classification")
    found = obvious_inputs(model)
    assert found is not None
    save_base(model, found[0], tmp_path / "model.pt", axes=found[1])
    assert load_base(tmp_path / "model.pt").base_head is None


LABELS = {0: "ugly", 1: "bad", 2: "good"}


@pytest.fixture(scope="module")
def classifier(minilm_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> ae.Base:
    """A small BERT that classifies texts by three labels, with a tokenizer."""
    place = tmp_path_factory.mktemp("classifier")
    options = {"vocab_size": 30522, "id2label": LABELS, "problem_type": "single_label_classification"}
    small("Bert", "ForSequenceClassification", **options).save_pretrained(place / "folder")
    shutil.copy(minilm_folder / "tokenizer.json", place / "folder")
    return ae.capture(place / "folder", place / "model.pt")


def table(place: Path, labels: Sequence[str]) -> Path:
    lines = [f"text {number} of {label}\t{label}" for number in range(8) for label in labels]
    place.write_text("\n".join(["text\tlabel", *lines]), encoding="utf-8")
    return place


def test_a_training_starts_as_the_base_head(classifier: ae.Base, tmp_path: Path) -> None:
    data = table(tmp_path / "train.tsv", ["good", "bad", "ugly"])
    quick: dict[str, Any] = {"epochs": 1, "learning_rate": 1e-12, "bottleneck": 2}
    started = ae.train(classifier, data, tmp_path / "mine", head="base", **quick)
    assert classifier.base_head is not None
    assert started.head is not None
    own = classifier.base_head.weights
    order = [list(LABELS.values()).index(label) for label in started.head.labels]
    assert order != [0, 1, 2]  # the labels of the data are sorted
    assert np.abs(started.weights["head.classifier.weight"] - own["head.classifier.weight"][:, order]).max() < 1e-9
    assert np.abs(started.weights["head.classifier.bias"] - own["head.classifier.bias"][order]).max() < 1e-9
    assert np.abs(started.weights["head.dense_1.weight"] - own["head.dense_1.weight"]).max() < 1e-9
    assert started.training["settings"]["head"] == "base"
    fresh = ae.train(classifier, data, **quick)
    assert "head.dense_1.weight" not in fresh.weights


TEXTS = ["good", "a long text about a good thing", "bad"]


@pytest.fixture(scope="module")
def decoder_folder(minilm_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Llama that classifies texts by their last token, with a tokenizer."""
    folder = tmp_path_factory.mktemp("decoder")
    options = {"vocab_size": 30522, "id2label": LABELS, "problem_type": "single_label_classification"}
    small("Llama", "ForSequenceClassification", pad_token_id=0, **options).save_pretrained(folder)
    shutil.copy(minilm_folder / "tokenizer.json", folder)
    return folder


@pytest.mark.extended
def test_text_classifying_decoder_matches_transformers(decoder_folder: Path, tmp_path: Path) -> None:
    """Capture, train, build in every variant and serve it: the numbers match transformers, padded on either side."""
    base = ae.capture(decoder_folder, tmp_path / "model.pt")
    data = table(tmp_path / "train.tsv", ["good", "bad", "ugly"])
    quick: dict[str, Any] = {"kind": "lora", "rank": 2, "epochs": 1, "init": "small_normal", "learning_rate": 0.1}
    mine = ae.train(base, data, tmp_path / "mine", head="base", **quick)
    new = ae.train(base, data, tmp_path / "new", pooling="last", **quick)
    assert mine.head is not None
    assert new.head is not None
    assert [node.op for node in new.head.graph.nodes] == ["last_token", "linear"]
    # `build` compares each graph, with each adapter, with torch
    bundle = ae.build(base, [mine, new], tmp_path / "bundle", variants=GRAPH_VARIANTS, bake=["mine"])
    session = bundle.session()
    model = AutoModelForSequenceClassification.from_pretrained(decoder_folder).eval()
    own = PreTrainedTokenizerFast(tokenizer_file=str(decoder_folder / "tokenizer.json"), pad_token="[PAD]")
    for side in ("left", "right"):
        inputs = own(TEXTS, padding=True, padding_side=side, return_tensors="pt", return_token_type_ids=False)
        with torch.inference_mode():
            expected = model(**inputs).logits.numpy()
        arrays = {name: value.numpy() for name, value in inputs.items()}
        found = session.run(arrays, BASE_HEAD, allow_padding=True)["logits"]
        # one layer and a head in float32: 1e-5 of the scale; rows of a left-padded batch begin at another position
        assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()
    rows = bundle.texts(session).answer(TEXTS, adapter=BASE_HEAD)
    shares = torch.softmax(torch.from_numpy(expected), -1).numpy()
    for row, share in zip(rows, shares, strict=True):
        assert row.answer.document()["label"] == LABELS[int(share.argmax())]
    assert np.abs(session.run(arrays, "mine")["logits"] - expected).max() > 0.1


@pytest.mark.extended
def test_base_head_is_left_out_if_texts_end_with_padding(decoder_folder: Path, tmp_path: Path) -> None:
    """transformers reads the token before it, and the head that token: they never agree."""
    folder = shutil.copytree(decoder_folder, tmp_path / "folder")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"pad_token_id": 102}))  # [SEP]
    with pytest.warns(UserWarning, match=r"head .* is left out.*id 102, but the tokenizer ends texts"):
        assert ae.capture(folder, tmp_path / "model.pt").base_head is None


@pytest.mark.extended
def test_a_decoder_without_a_padding_id_has_no_base_head(tmp_path: Path) -> None:
    small("Llama", "ForSequenceClassification", pad_token_id=None).save_pretrained(tmp_path / "folder")
    with pytest.warns(UserWarning, match=r"head .* is left out.*no padding token is defined"):
        assert ae.capture(tmp_path / "folder", tmp_path / "model.pt").base_head is None


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        (["good", "bad"], {}, "does not match the data.*found a head for `single_label`, ugly, bad, good"),
        (["good", "bad", "grim"], {}, "does not match the data.*expected `single_label`, bad, good, grim"),
        (["good", "bad", "ugly"], {"task": "embedding"}, "does not match the data.*expected `embedding`"),
        (["good", "bad", "ugly"], {"pooling": "first"}, r"the base head cannot be changed; found `pooling`"),
        (["good", "bad", "ugly"], {"head": "mine"}, "unknown initial head; found `mine`"),
    ],
)
def test_labels_that_contradict_the_base_head_are_refused(
    labels: list[str], options: dict[str, Any], message: str, classifier: ae.Base, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=message):
        ae.train(classifier, table(tmp_path / "train.tsv", labels), **({"head": "base"} | options))


def test_training_from_a_missing_base_head_is_refused(minilm_folder: Path, tmp_path: Path) -> None:
    small("Bert", "ForMaskedLM", vocab_size=30522).save_pretrained(tmp_path / "folder")
    shutil.copy(minilm_folder / "tokenizer.json", tmp_path / "folder")
    base = ae.open_base(tmp_path / "folder")
    with pytest.raises(UsageError, match=r"no head to start from.*BertForMaskedLM` is left out"):
        ae.train(base, table(tmp_path / "train.tsv", ["good", "bad"]), head="base")
