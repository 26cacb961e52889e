"""PEFT adapters for a running server, by the routes of vLLM: each is proved before calls can name it."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers as hf
from served import made_app, served
from starlette.testclient import TestClient
from tiers import extended
from tiny_generators import generating, peft_model

import adapter_export as ae
from adapter_export.errors import FormatError, UsageError
from adapter_export.plugins.serve.lora_loader import read_proof
from adapter_export.plugins.serve.models import LoadedAdapter, LoadedBundle
from adapter_export.plugins.serve.server_settings import SessionSettings
from adapter_export.runtime import Bundle

pytestmark = pytest.mark.extended

TOKEN = "secret"
ADMIN = {"authorization": f"Bearer {TOKEN}"}
PROMPT = "w5 w9 w33"
LAYERS = {"mine": ["q_proj", "v_proj"], "other": ["o_proj", "up_proj", "down_proj"], "unplanned": ["k_proj"]}
"""Layers of each adapter; the bundle has no slots for the last one."""


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generating(tmp_path_factory, "chat")


@pytest.fixture(scope="module")
def root(places: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of PEFT adapters with random weights, beside one that is not in it."""
    folder = tmp_path_factory.mktemp("loras") / "root"
    torch.manual_seed(1)
    for name, layers in LAYERS.items():
        config = peft.LoraConfig(task_type="CAUSAL_LM", r=3, lora_alpha=6, target_modules=layers)
        model = peft.get_peft_model(hf.AutoModelForCausalLM.from_pretrained(places / "hf"), config)
        with torch.no_grad():
            for parameter, weight in model.named_parameters():
                if "lora" in parameter:
                    weight.normal_(0, 0.2)
        model.save_pretrained(folder / name)
    shutil.copytree(folder / "mine", folder.parent / "outside")
    (folder / "link").symlink_to(folder.parent / "outside")
    (folder / "empty").mkdir()
    return folder


@pytest.fixture(scope="module")
@extended
def service(places: Path, root: Path) -> Iterator[TestClient]:
    settings: dict[str, Any] = {"token": TOKEN, "lora_root": root, "lora_base": str(places / "base.pt")}
    with made_app(f"llama={places / 'bundle'}", quiet=True, **settings) as client:
        yield client


def _expected(places: Path, folder: Path) -> str:
    """The text of transformers with an adapter in PEFT."""
    tokenizer = hf.AutoTokenizer.from_pretrained(places / "hf")
    model = peft.PeftModel.from_pretrained(peft_model(places, None), folder).eval()
    inputs = tokenizer(PROMPT, return_tensors="pt")
    with torch.no_grad():
        found = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    return str(tokenizer.decode(found[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))


def _text(service: Any, model: str) -> str | int:
    """The completion of a model, or the status of a refusal."""
    call = {"model": model, "prompt": PROMPT, "max_tokens": 8, "temperature": 0}
    answer = service.post("/v1/completions", json=call)
    return str(answer.json()["choices"][0]["text"]).strip() if answer.status_code == 200 else int(answer.status_code)


def _load(service: Any, name: str, path: object, **call: Any) -> Any:
    body = {"lora_name": name, "lora_path": str(path), **call}
    return service.post("/v1/load_lora_adapter", json=body, headers=ADMIN)


def _polled(poll: Callable[[], Any], until: Callable[[], object]) -> tuple[set[Any], Any]:
    """Results of a call that repeats while another one runs, and the outcome of that."""
    seen, done = set[Any](), threading.Event()

    def repeat() -> None:
        while not done.is_set():
            seen.add(poll())

    thread = threading.Thread(target=repeat)
    thread.start()
    try:
        outcome = until()
    finally:
        done.set()
        thread.join()
    return seen, outcome


def test_a_loaded_adapter_answers_as_in_peft(service: TestClient, places: Path, root: Path) -> None:
    for name, path in (("mine", "mine"), ("other", root / "other")):
        expected = _expected(places, root / name)
        seen, loaded = _polled(lambda name=name: _text(service, name), lambda n=name, p=path: _load(service, n, p))
        assert loaded.text == f"Success: LoRA adapter '{name}' added successfully."
        assert seen <= {404, expected}, "it is missing, or it answers completely"
        assert _text(service, name) == expected
        assert service.get(f"/v1/models/{name}").json()["parent"] == "llama"
    assert "exists" in _load(service, "mine", "mine").json()["error"]["message"]
    for name in ("mine", "other"):
        gone = service.post("/v1/unload_lora_adapter", json={"lora_name": name}, headers=ADMIN)
        assert gone.text == f"Success: LoRA adapter '{name}' removed successfully."
        assert _text(service, name) == 404
    assert service.post("/v1/unload_lora_adapter", json={"lora_name": "mine"}, headers=ADMIN).status_code == 404


def test_an_adapter_that_cannot_be_proved_is_refused_by_name(service: TestClient, root: Path, places: Path) -> None:
    before = service.get("/v1/models").json()["data"]
    unplanned = _load(service, "unplanned", "unplanned")
    assert unplanned.status_code == 400
    assert "`unplanned`" in unplanned.json()["error"]["message"]
    assert "--reserve" in unplanned.json()["error"]["message"]
    damaged = shutil.copytree(root / "mine", root / "damaged")
    weights = damaged / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-40])
    assert _load(service, "damaged", "damaged").status_code == 400
    for path, status in (("../outside", 403), ("link", 403), ("/etc", 403), ("empty", 404), ("none", 404)):
        assert _load(service, "new", path).status_code == status
    assert _load(service, "a/b", "mine").status_code == 400
    assert "load_inplace" in _load(service, "new", "mine", load_inplace=True).json()["error"]["message"]
    assert service.post("/v1/load_lora_adapter", json={"lora_name": "new", "lora_path": "mine"}).status_code == 401
    assert service.get("/v1/models").json()["data"] == before


def test_loading_is_off_without_a_key(places: Path, root: Path) -> None:
    for settings in ({}, {"token": TOKEN}, {"lora_root": root, "lora_base": str(places / "base.pt")}):
        with made_app(f"llama={places / 'bundle'}", quiet=True, **settings) as client:
            for answer in (
                _load(client, "mine", "mine"),
                client.post("/v1/unload_lora_adapter", json={"lora_name": "a"}, headers=ADMIN),
            ):
                assert answer.status_code == 403
                assert "`lora_root`" in answer.json()["error"]["message"]
    base = str(places / "base.pt")
    for wrong in ({"lora_root": root}, {"lora_root": root, "lora_base": base}, {"lora_base": base}):
        with pytest.raises(UsageError, match="lora_"):
            ae.serve(places / "bundle", **wrong)
    with pytest.raises(UsageError, match="is not a folder"):
        ae.serve(places / "bundle", admin_token=TOKEN, lora_root=root / "none", lora_base=base)


def test_calls_never_see_an_adapter_that_differs_from_its_proof(places: Path, root: Path, tmp_path: Path) -> None:
    """The file of another adapter, with the golden data of this one."""
    copy = shutil.copytree(places / "bundle", tmp_path / "copy")
    base = ae.open_base(places / "base.pt")
    added = [ae.import_peft(root / name, base, name=name) for name in ("mine", "other")]
    ae.add(copy, added, against=base)
    proved, other = (read_proof(copy, name) for name in ("mine", "other"))
    served_bundle = LoadedBundle("llama", Bundle.open(places / "bundle"), SessionSettings())
    wrong = LoadedAdapter("mine", other.data, proof=proved.proof)
    with pytest.raises(FormatError, match="`mine`"):
        served_bundle.load(wrong)
    assert not served_bundle.has("mine")
    assert "mine" not in served_bundle.session.adapters
    served_bundle.load(proved)
    assert served_bundle.has("mine")


def test_every_worker_answers_before_the_response(places: Path, root: Path) -> None:
    words = ("--lora-root", root, "--lora-base", places / "base.pt", "--workers", "2", "--quiet", "--drain", "0")
    with served(f"llama={places / 'bundle'}", *words, ADAPTER_EXPORT_ADMIN_TOKEN=TOKEN) as found:
        found.client.timeout = 120
        assert _load(found.client, "mine", "mine").status_code == 200
        expected = _expected(places, root / "mine")
        for _ in range(12):  # each on a connection of its own, which either worker may accept
            assert _text(_Fresh(str(found.client.base_url)), "mine") == expected
        assert "--reserve" in _load(found.client, "unplanned", "unplanned").text


class _Fresh:
    """A client that opens a connection for each call."""

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")

    def post(self, path: str, **call: Any) -> Any:
        import httpx2

        return httpx2.post(f"{self._url}{path}", trust_env=False, timeout=60, **call)
