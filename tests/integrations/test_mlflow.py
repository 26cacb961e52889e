"""Bundles in MLflow: its own calls save, log and load them, and choose the adapter of a call by a parameter."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest
from mlflow.exceptions import MlflowException
from text_bundle import TASKS
from tiny_generators import generating

from adapter_export.errors import RequestError, UsageError
from adapter_export.plugins.integrations.mlflow import log_model, save_model
from adapter_export.runtime import Bundle, Decoding
from adapter_export.text import Pair

pytestmark = [
    pytest.mark.extended,
    pytest.mark.filterwarnings("ignore::UserWarning:mlflow"),
    pytest.mark.filterwarnings("ignore:.*input example was not provided"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
TEXTS = ["It was written by six people in Berlin.", "No."]
ROWS = pd.DataFrame({"text": TEXTS})


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A store of MLflow in a folder, without its telemetry."""
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.chdir(tmp_path)  # it writes into `mlruns`
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path / 'runs.db'}")
    yield
    mlflow.set_tracking_uri(before)


def _documents(bundle: Path, adapter: str, rows: list[Any]) -> list[dict[str, Any]]:
    """Answers of the bundle without MLflow."""
    answers = Bundle.open(bundle).texts().answer(rows, adapter)
    return [{"adapter": adapter, "task": TASKS[adapter].type, **answer.document()} for answer in answers]


def test_a_saved_bundle_answers_with_the_adapter_of_each_call(text_folder: Path, tmp_path: Path) -> None:
    bundle = text_folder / "bundle"
    save_model(bundle, tmp_path / "model", adapter="topic")
    assert not [path for path in (tmp_path / "model").rglob("*") if path.suffix in (".pkl", ".pickle")]
    model = mlflow.pyfunc.load_model(str(tmp_path / "model"))
    assert model.predict(ROWS).to_dict("records") == _documents(bundle, "topic", TEXTS)
    for name in ("vector", "tags", "words"):
        found = model.predict(ROWS, params={"adapter": name}).to_dict("records")
        assert found == _documents(bundle, name, TEXTS)
    pairs = ROWS.assign(pair="Six people did.")
    expected = _documents(bundle, "follows", [Pair(text, "Six people did.") for text in TEXTS])
    assert model.predict(pairs, params={"adapter": "follows"}).to_dict("records") == expected
    choices = [["Six.", "Berlin.", "No."], ["Yes."]]
    found = model.predict(ROWS.assign(choices=choices), params={"adapter": "choice"}).to_dict("records")
    questions = [[Pair(text, each) for each in own] for text, own in zip(TEXTS, choices, strict=True)]
    assert found == _documents(bundle, "choice", questions)
    off = model.predict(ROWS, params={"strength": 0.0}).to_dict("records")
    (first, *_) = Bundle.open(bundle).texts().answer(TEXTS, "topic", strength=0.0)
    assert off[0]["probabilities"] == first.document()["probabilities"] != expected[0]["probabilities"]


def test_the_signature_names_columns_and_parameters(text_folder: Path, tmp_path: Path) -> None:
    save_model(text_folder / "bundle", tmp_path / "model", adapter="vector")
    signature = mlflow.models.get_model_info(str(tmp_path / "model")).signature
    assert signature.inputs.input_names() == ["text", "pair", "choices", "side"]
    assert signature.inputs.required_input_names() == ["text"]
    assert {"adapter", "task", "label", "vector", "tokens", "answer"} <= {*signature.outputs.input_names()}
    assert signature.outputs.required_input_names() == ["adapter", "task"]
    assert {param.name: param.default for param in signature.params} == {"adapter": "vector", "strength": 1.0}
    model = mlflow.pyfunc.load_model(str(tmp_path / "model"))
    assert model.metadata.metadata["digest"] == Bundle.open(text_folder / "bundle").manifest.checksum
    with pytest.raises(MlflowException, match="missing inputs"):
        model.predict(pd.DataFrame({"texts": TEXTS}))
    with pytest.raises(MlflowException, match="Can not safely convert"):
        model.predict(ROWS, params={"adapter": 3})
    with pytest.raises(RequestError, match="`nobody`"):
        model.predict(ROWS, params={"adapter": "nobody"})
    with pytest.raises(RequestError, match="a pair"):
        model.predict(ROWS, params={"adapter": "follows"})


def test_the_default_adapter_must_be_named(text_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="several adapters answer"):
        save_model(text_folder / "bundle", tmp_path / "model")
    with pytest.raises(RequestError, match="no such adapter"):
        save_model(text_folder / "bundle", tmp_path / "model", adapter="nobody")
    assert not (tmp_path / "model").exists()


def test_a_logged_bundle_generates_texts(tmp_path_factory: pytest.TempPathFactory) -> None:
    bundle = generating(tmp_path_factory, "chat") / "bundle"
    with mlflow.start_run():
        logged = log_model(bundle, adapter="a")
    model = mlflow.pyfunc.load_model(logged.model_uri)
    prompts, writer = ["w5 w9", "w33"], Bundle.open(bundle).writer()
    for name in ("a", "b", "base"):
        found = model.predict(pd.DataFrame({"text": prompts}), params={"adapter": name, "max_new_tokens": 6})
        expected = writer.write(prompts, name, decoding=Decoding(6))
        assert found["text"].to_list() == [text.text for text in expected]
        assert found["finish"].to_list() == [text.finish for text in expected]
    sampled = {"temperature": 1.5, "top_k": 20, "top_p": 0.9, "seed": 4, "max_new_tokens": 6, "stop": ["w88"]}
    found = model.predict(pd.DataFrame({"text": prompts}), params=sampled)
    assert found["text"].to_list() == [text.text for text in writer.write(prompts, "a", decoding=Decoding(**sampled))]
    assert logged.signature.inputs.input_names() == ["text"]
    names = ["adapter", "max_new_tokens", "temperature", "top_k", "top_p", "seed", "stop"]
    assert [param.name for param in logged.signature.params] == names
