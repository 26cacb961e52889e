"""Models, adapters, tokenizers and tables by their address, against a hub on this machine."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import pytest
from heard import Heard
from hub_server import HubServer, Repository
from huggingface_hub import constants, snapshot_download

import adapter_export as ae
from adapter_export.address import Contents, as_written, locate
from adapter_export.errors import (
    AdapterError,
    AdapterExportError,
    BaseModelError,
    DataError,
    DeniedError,
    FileError,
    FormatError,
    NotFoundError,
    UnreachableError,
    UsageError,
)
from adapter_export.format.tabular.table_files import open_table
from adapter_export.safe_io.output import Output

JSON, TENSORS = b"{}", b"tensors"
MODEL = {"config.json": JSON, "tokenizer.json": JSON, "vocab.txt": b"a", "model.safetensors": TENSORS}
STRAY = {
    "README.md": b"# me",
    "modeling.py": b"import os",
    "pytorch_model.bin": b"\x80",
    "training_args.bin": b"\x80",
    "onnx/model.onnx": b"onnx",
    "consolidated.safetensors": TENSORS,
    "checkpoint-1/model.safetensors": TENSORS,
}
"""Files that no reader of a model needs."""
TEMPLATES = {"chat_template.jinja": b"{{ messages }}", "additional_chat_templates/tools.jinja": b"{{ tools }}"}


@pytest.fixture(autouse=True)
def _here(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def repository(hub: HubServer, name: str, *files: dict[str, bytes]) -> str:
    """Commit files to the main branch, and return the commit."""
    own = hub.repositories.setdefault(name, Repository())
    return own.commit("main", {path: data for each in files for path, data in each.items()})


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def indexed(*shards: str) -> dict[str, bytes]:
    index = json.dumps({"weight_map": {f"layer.{at}": shard for at, shard in enumerate(shards)}})
    return {"config.json": JSON, "model.safetensors.index.json": index.encode()}


PEFT = {"adapter_config.json": b'{"base_model_name_or_path": "me/base"}', "adapter_model.safetensors": TENSORS}


@pytest.mark.parametrize(
    ("contents", "files", "taken"),
    [
        ("model", {**MODEL, **STRAY}, set(MODEL)),
        ("tokenizer", {**MODEL, **STRAY}, {"tokenizer.json"}),
        ("model", {**MODEL, **TEMPLATES, **STRAY}, {*MODEL, *TEMPLATES}),
        ("tokenizer", {**MODEL, **TEMPLATES, **STRAY}, {"tokenizer.json", *TEMPLATES}),
        (
            "model",
            {**indexed("a.safetensors", "b.safetensors"), "a.safetensors": TENSORS, "b.safetensors": b"b", **STRAY},
            {"config.json", "model.safetensors.index.json", "a.safetensors", "b.safetensors"},
        ),
        (
            "model",
            {
                "modules.json": b'[{"path": ""}, {"path": "1_Pooling/"}, {"path": "2_Dense"}, {"path": "../out"}, 3]',
                "config_sentence_transformers.json": JSON,
                "1_Pooling/config.json": JSON,
                "2_Dense/config.json": JSON,
                "2_Dense/model.safetensors": b"dense",
                "2_Dense/pytorch_model.bin": b"\x80",
                "spiece.model": b"pieces",
                **MODEL,
                **STRAY,
            },
            {
                *("modules.json", "config_sentence_transformers.json", "1_Pooling/config.json", "2_Dense/config.json"),
                *("2_Dense/model.safetensors", "spiece.model", *MODEL),
            },
        ),
        (
            "model",
            {
                "modules.json": b'[{"path": "0_Transformer"}, {"path": "1_Pooling"}]',
                "0_Transformer/config.json": JSON,
                "0_Transformer/model.safetensors": TENSORS,
                "1_Pooling/config.json": JSON,
            },
            {
                *("modules.json", "0_Transformer/config.json", "0_Transformer/model.safetensors"),
                "1_Pooling/config.json",
            },
        ),
        ("adapter", {**PEFT, **STRAY, "checkpoint-1/adapter_config.json": JSON}, set(PEFT)),
        (
            "adapter",
            {"one/adapter_config.json": JSON, "one/adapter.safetensors": TENSORS, "x/y.json": JSON, "README.md": b"#"},
            {"one/adapter_config.json", "one/adapter.safetensors"},
        ),
    ],
    ids=[
        "model",
        "tokenizer",
        "chat templates",
        "chat templates alone",
        "shards",
        "sentences",
        "sentences inside",
        "PEFT",
        "several adapters",
    ],
)
def test_only_needed_files_are_downloaded(
    contents: Contents, files: dict[str, bytes], taken: set[str], hub: HubServer
) -> None:
    commit = repository(hub, "me/it", files)
    heard = Heard()
    found = locate("me/it", contents, heard)
    assert names(found.path) == taken
    assert all((found.path / name).read_bytes() == files[name] for name in taken)
    assert (found.address, found.source, found.path.name) == ("me/it", f"hf://me/it@{commit}", "it")
    assert heard.steps[0].startswith(f"downloading {len(taken)} file")
    hub.asked.clear()
    for again in (f"me/it@{commit}", Path(f"hf://me/it@{commit}"), f"hf://me/it@{commit}"):
        assert locate(again, contents).path == found.path
    assert not hub.asked  # a commit is never asked for again


@pytest.mark.parametrize(
    ("contents", "files", "error", "words"),
    [
        ("model", {"config.json": JSON, **STRAY}, BaseModelError, r"no safetensors.*found `pytorch_model\.bin`"),
        ("model", {"config.json": JSON, **STRAY}, BaseModelError, r'from_pretrained\("me/it"\)\.save_pretrained'),
        ("model", {"config.json": JSON, "a.md": b"a"}, BaseModelError, r"no safetensors.*Check the name"),
        ("model", {"modules.json": b"[{", **STRAY}, FormatError, r"^hf://me/it, modules\.json: is not valid JSON"),
        ("model", {"modules.json": b'{"path": ["a"]}', **STRAY}, BaseModelError, r"no safetensors"),
        ("model", indexed("a.safetensors"), FormatError, r"does not match the repository; found 'a\.safetensors'"),
        ("model", {**indexed(), "model.safetensors.index.json": b"[]"}, FormatError, r"does not match the repository"),
        ("model", {**indexed("pytorch_model.bin"), **STRAY}, FormatError, r"does not match the repository"),
        ("model", {**indexed("x/a.safetensors"), "x/a.safetensors": TENSORS}, FormatError, r"does not match"),
        ("model", indexed("../a.safetensors"), FormatError, r"does not match the repository"),
        ("model", {**MODEL, "../a.json": JSON}, FormatError, r"a path that may leave its folder"),
        ("model", {"README.md": b"#"}, BaseModelError, r"neither `config\.json` nor `modules\.json`"),
        ("model", PEFT, BaseModelError, r"found an adapter of the model `me/base`.*Capture `me/base`.*import_peft"),
        ("model", {"manifest.json": JSON}, BaseModelError, r"found bundle of this package.*pull hf://me/it"),
        ("adapter", MODEL, AdapterError, r"is not an adapter of PEFT or AdapterHub"),
        (
            "adapter",
            {"adapter_config.json": JSON, "adapter_model.bin": b"\x80"},
            AdapterError,
            r"no safetensors.*found `adapter_model\.bin`.*hf download me/it` prints",
        ),
        ("tokenizer", {"config.json": JSON}, BaseModelError, r"has no `tokenizer\.json`"),
        ("artifact", MODEL, FormatError, r"is neither a bundle nor an adapter"),
    ],
)
def test_unsuitable_repositories_are_refused_without_a_download(
    contents: Contents, files: dict[str, bytes], error: type, words: str, hub: HubServer, cache: Path
) -> None:
    repository(hub, "me/it", files)
    with pytest.raises(error, match=words):
        locate("hf://me/it", contents)
    assert not [path for path in cache.rglob("*") if path.is_file()]
    assert not [asked for asked in hub.asked if asked.endswith((".bin", ".py", ".onnx"))]


@pytest.mark.parametrize(
    ("change", "error", "code", "words"),
    [
        (lambda hub: hub.repositories.clear(), NotFoundError, 8, "the repository does not exist.*is private"),
        (lambda hub: hub.repositories["me/it"].branches.clear(), NotFoundError, 8, "has no such revision"),
        (
            lambda hub: setattr(hub.repositories["me/it"], "gated", True),
            DeniedError,
            9,
            "/me/it, then log in",
        ),
        (lambda hub: setattr(hub, "status", 401), AdapterExportError, None, "hf auth login"),
        (lambda hub: setattr(hub, "status", 403), DeniedError, 9, "denies access"),
        (lambda hub: setattr(hub, "status", 503), UnreachableError, 7, "temporarily unavailable"),
    ],
    ids=["missing", "revision", "gated", "401", "403", "503"],
)
def test_each_reason_has_its_own_message(
    change: object, error: type[AdapterExportError], code: int | None, words: str, hub: HubServer, cache: Path
) -> None:
    repository(hub, "me/it", MODEL)
    change(hub)  # type: ignore[operator]
    with pytest.raises(error, match=words) as raised:
        locate("me/it", "model")
    assert "there is no local path `me/it`" in str(raised.value)
    assert raised.value.exit_code == code or (code is None and raised.value.exit_code in (8, 9))
    assert not [path for path in cache.rglob("*") if path.is_file()]


def test_a_path_is_never_asked_for(hub: HubServer, tmp_path: Path) -> None:
    (tmp_path / "me" / "here").mkdir(parents=True)
    (tmp_path / "models").mkdir()
    (tmp_path / "link").mkdir()
    (tmp_path / "link" / "broken").symlink_to("nowhere")
    others = ("gone", "./a/b", "../a/b", "/a/b", "a/b/c", "~/b", "a b/c", "link/broken", "a/b@", "a/")
    for path in ("me/here", "./me/here", *others):
        found = locate(path, "model")
        assert (found.path, found.source) == (Path(path), None)
    for contents in ("artifact", "table"):  # these need the scheme
        assert locate("owner/name", contents).path == Path("owner/name")
    for path, found_instead in {
        "models/minilm": "a folder `models` without `minilm`",
        "models/minilm.pt2": "a folder `models` without",
        "gone/minilm.pt2": r"the suffix `\.pt2` of a file",
        "gone/model.ONNX": r"the suffix `\.onnx` of a file",
        "gone/rows.csv": r"the suffix `\.csv` of a file",
    }.items():
        for given in (path, Path(path)):
            with pytest.raises(FileError, match=f"does not exist; found {found_instead}.*is `hf://{path}`"):
                locate(given, "model")
    for text in ("hf://x", "hf:///a/b", "hf://a/b/c", "hf://a/b@", "https://huggingface.co/a/b"):
        with pytest.raises(UsageError, match="is not a reference to a hub"):
            locate(text, "model")
    with pytest.raises(UsageError, match="has a scheme that no plug-in reads; found `s3://`"):
        locate("s3://a/b", "model")
    with pytest.raises(UsageError, match="Pass `hf://datasets/a/b`"):
        locate("hf://a/b", "table")
    with pytest.raises(UsageError, match="registries contain only bundles and adapters"):
        locate("oci://127.0.0.1:1/a/b:1", "model")
    assert not hub.asked


def test_names_with_dots_are_ids(hub: HubServer) -> None:
    for name in ("Qwen/Qwen3-0.6B", "me/bge-v1.5", "a_b/c.d-e"):
        repository(hub, name, MODEL)
        assert names(locate(name, "model").path) == set(MODEL)


def test_addresses_keep_their_slashes() -> None:
    assert as_written(Path("hf://a/b@main")) == "hf://a/b@main"
    assert as_written(Path("oci://host/a/b:1")) == "oci://host/a/b:1"
    assert as_written("hf://a/b") == "hf://a/b"
    assert as_written(Path("hf/a/b")) == "hf/a/b"
    with pytest.raises(FileError, match=r"^hf://a/b: is not a local path"):
        Output(Path("hf://a/b"))
    with pytest.raises(FileError, match=r"^hf://a/b"):
        ae.open_base("gone", site_map="hf://a/b")


def test_cached_models_open_without_network(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    repository(hub, "me/it", MODEL, STRAY)
    repository(hub, "me/other", MODEL, STRAY)
    found = locate("me/it", "model")
    snapshot_download("me/other", endpoint=hub.url)  # as another program does
    hub.asked.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert locate("me/it", "model") == found
    assert names(locate("me/other", "model").path) == set(MODEL)
    with pytest.raises(UnreachableError, match="is not in the cache, and `HF_HUB_OFFLINE` forbids the network"):
        locate("me/third", "model")
    assert not hub.asked


def test_unreachable_hubs_are_named_with_advice(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = repository(hub, "me/it", MODEL)
    snapshot_download("me/it", endpoint=hub.url)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(UnreachableError, match=f"does not respond.*`HF_HUB_OFFLINE=1` uses commit {commit}"):
        locate("me/it", "model")
    with pytest.raises(UnreachableError, match=r"Check the network and `HF_ENDPOINT`\.$") as raised:
        locate("me/none", "model")
    assert raised.value.exit_code == 7


def test_changed_cache_files_are_downloaded_again(hub: HubServer) -> None:
    commit = repository(hub, "me/it", MODEL)
    heard = Heard()
    for change in ("model.safetensors", "config.json", "pytorch_model.bin"):
        path = locate(f"me/it@{commit}", "model", heard).path
        (path / change).write_bytes(b"changed")
        assert names(locate(f"me/it@{commit}", "model", heard).path) == set(MODEL)
        assert (path / "model.safetensors").read_bytes() == TENSORS
    assert len([note for note in heard.notes if "damaged and are downloaded again" in note]) == 3


def test_a_branch_that_moved_is_noted(hub: HubServer) -> None:
    first = repository(hub, "me/it", MODEL)
    locate("me/it", "model")
    second = repository(hub, "me/it", {"config.json": b'{"model_type": "other"}'})
    heard = Heard()
    assert locate("me/it", "model", heard).source == f"hf://me/it@{second}"
    assert heard.notes == [f"`hf://me/it` has moved: it was `{first}`, and is `{second}` now"]


def test_bundles_and_adapters_open_by_address(hub: HubServer, bundle: Path, adapter: Path) -> None:
    repository(hub, "me/bundle", {name: (bundle / name).read_bytes() for name in names(bundle)})
    commit = repository(hub, "me/adapter", {name: (adapter / name).read_bytes() for name in names(adapter)})
    assert ae.open_bundle("hf://me/bundle").manifest == ae.open_bundle(bundle).manifest
    assert ae.load_adapter(f"hf://me/adapter@{commit}").weights.keys() == ae.load_adapter(adapter).weights.keys()
    for name, what in {"me/bundle": "bundle", "me/adapter": "adapter"}.items():
        assert ae.inspect(f"hf://{name}").document["what"] == what
    with pytest.raises(FileError, match=r"hf://me/bundle.*is not an adapter"):
        ae.load_adapter("hf://me/bundle")
    with pytest.raises(UsageError, match=r"pull hf://me/bundle -o bundle"):
        ae.remove("hf://me/bundle", ["a"])


@pytest.fixture
def _datasets(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", hub.url)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")


@pytest.mark.usefixtures("_datasets")
@pytest.mark.extended
def test_rows_are_read_from_datasets_on_the_hub(hub: HubServer, tmp_path: Path) -> None:
    configs = [{"config_name": "one", "data_files": "train.csv"}, {"config_name": "two", "data_files": "two.csv"}]
    card = f"---\nconfigs: {json.dumps(configs)}\n---\n".encode()
    rows = {"train.csv": b"text,label\na,x\nb,y\n", "two.csv": b"text,label\nc,x\n", "README.md": card}
    commit = repository(hub, "datasets/me/rows", rows)

    def texts(address: str) -> list[object]:
        found = locate(address, "table")
        return [row["text"] for _, row in open_table(found.path).rows(["text"])]

    assert texts("hf://datasets/me/rows:one/train") == ["a", "b"]
    assert texts("hf://datasets/me/rows:two/train") == ["c"]
    assert texts(f"hf://datasets/me/rows@{commit}:one/train[:1]") == ["a"]
    assert texts("hf://datasets/me/rows/train.csv") == ["a", "b"]
    found = locate("hf://datasets/me/rows:one/train", "table")
    assert (found.path.name, found.source) == (
        "rows-one-train.parquet",
        f"hf://datasets/me/rows@{commit}:one/train",
    )
    hub.asked.clear()
    assert texts(f"hf://datasets/me/rows@{commit}:one/train") == ["a", "b"]
    assert not hub.asked
    for address, error, words in (
        ("hf://datasets/me/rows:one/test", DataError, "Unknown split"),
        ("hf://datasets/me/rows:three/train", DataError, "'three' not found"),
        ("hf://datasets/me/rows/no.csv", UsageError, "has no such file"),
        ("hf://datasets/me/none", NotFoundError, "the repository does not exist"),
        ("hf://datasets/me/rows@next:one/train", NotFoundError, "no such revision"),
    ):
        with pytest.raises(error, match=words):
            texts(address)
    repository(hub, "datasets/me/images", {"a.png": b"png"})
    with pytest.raises(DataError, match="is not a dataset of tables; found imagefolder"):
        texts("hf://datasets/me/images")
