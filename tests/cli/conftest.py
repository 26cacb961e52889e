"""Shared parts of command tests: a runner, and a small real model."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import chdir, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rich.table
from click.testing import CliRunner
from once import once
from safetensors.numpy import save_file
from small_disk import small_disk
from widths import WIDTHS, check_whole
from wording import wrong_words

from adapter_export.cli import terminal
from adapter_export.cli.fitted_table import fitted
from adapter_export.cli.main import main
from adapter_export.tables import Table

WORDS = (
    "how",
    "many",
    "far",
    "is",
    "the",
    "moon",
    "who",
    "wrote",
    "this",
    "play",
    "good",
    "bad",
    "film",
    "dull",
    "fine",
)
WIDTH = 16
LAYERS = 2


@dataclass(frozen=True)
class Finished:
    """Result of a command: exit code and output."""

    returncode: int
    stdout: str
    stderr: str


def _checked(table: Table, width: int) -> rich.table.Table:
    """Return a table as the command shows it, after a look at it on narrow terminals: of every command that is run."""
    for narrow in WIDTHS:
        check_whole(table, narrow)
    return fitted(table, width)


class Cli:
    """`adapter-export`: the real command, in this process, as another one would load torch first."""

    def __call__(
        self, *arguments: object, folder: Path | None = None, file_size: int | None = None, stdin: str | None = None
    ) -> Finished:
        """Run a command.

        Args:
            arguments: arguments after `adapter-export`.
            folder: working directory.
            file_size: maximum bytes per file, to simulate a full disk.
            stdin: standard input.
        """
        words = [str(argument) for argument in arguments]
        with (
            chdir(folder or Path.cwd()),
            nullcontext() if file_size is None else small_disk(file_size),
            pytest.MonkeyPatch.context() as patch,
        ):
            patch.setattr(terminal, "fitted", _checked)
            found = CliRunner().invoke(main, words, input=stdin)
        if "--help" not in words and "--json" not in words:
            assert not [*wrong_words(found.stdout), *wrong_words(found.stderr)], found.stdout + found.stderr
        return Finished(found.exit_code, found.stdout, found.stderr)

    def done(self, *arguments: object, **settings: Any) -> Finished:
        """Run a command that must succeed."""
        found = self(*arguments, **settings)
        assert found.returncode == 0, found.stdout + found.stderr
        return found

    def json(self, *arguments: object, **settings: Any) -> dict[str, Any]:
        """Run a command that must succeed and write one JSON document to stdout."""
        made = json.loads(self.done(*arguments, "--json", **settings).stdout)
        assert isinstance(made, dict)
        return made

    def refused(self, code: int, words: str, *arguments: object, **settings: Any) -> Finished:
        """Run a command that must end with an error: its exit code, its words, never a traceback."""
        found = self(*arguments, **settings)
        assert found.returncode == code, found.stdout + found.stderr
        assert "Traceback" not in found.stderr
        assert "This is a bug" not in found.stderr
        assert words in found.stderr, found.stderr
        return found


@pytest.fixture(scope="module", autouse=True)
def _traced_once() -> Iterator[None]:
    """Trace a small model once for all commands that capture it; tests that need no torch do not load it for that."""
    if "torch" not in sys.modules:
        yield
        return
    from small_models import traced_once

    with traced_once():
        yield


@pytest.fixture(scope="session")
def cli() -> Cli:
    """`adapter-export`."""
    return Cli()


@pytest.fixture(scope="session")
def hf_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder of a small BERT with random weights, and its tokenizer."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel

    def make(folder: Path) -> None:
        torch.manual_seed(0)
        BertModel(config).eval().save_pretrained(folder)
        tokenizer.save(str(folder / "tokenizer.json"))

    config = BertConfig(
        vocab_size=len(WORDS) + 4,
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=80,
        initializer_range=0.2,
    )
    vocabulary = {word: number for number, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return once(tmp_path_factory, "cli_hf", make)


@pytest.fixture(scope="session")
def model(cli: Cli, hf_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small BERT as an archive, made by `capture`; `capture.json` beside it has what that said."""

    def make(folder: Path) -> None:
        made = cli.json("capture", hf_folder, "-o", folder / "model.pt")
        (folder / "capture.json").write_text(json.dumps(made), encoding="utf-8")

    return once(tmp_path_factory, "cli_model", make) / "model.pt"


@pytest.fixture(scope="session")
def graph(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small BERT as an ONNX graph, which `build` needs no export for."""
    from adapter_export.torch_backend.base.to_onnx import export_onnx
    from adapter_export.torch_backend.base.torch_base import load_base

    def make(folder: Path) -> None:
        export_onnx(load_base(model), folder / "model.onnx")

    return once(tmp_path_factory, "cli_graph", make) / "model.onnx"


PlainTensors = Callable[..., dict[str, np.ndarray]]


@pytest.fixture(scope="session")
def plain_tensors() -> PlainTensors:
    """Makes plain tensors of a bottleneck adapter of the small BERT, with a head if there are classes."""

    def make(kind: str, width: int = 4, seed: int = 0, classes: int | None = None) -> dict[str, np.ndarray]:
        random = np.random.default_rng(seed)
        shapes: dict[str, tuple[int, ...]] = {}
        for layer in range(LAYERS):
            for role in ("attention", "ffn") if kind == "houlsby" else ("ffn",):
                site = f"layers.{layer}.{role}"
                shapes |= {f"{site}.down.weight": (WIDTH, width), f"{site}.down.bias": (width,)}
                shapes |= {f"{site}.up.weight": (width, WIDTH), f"{site}.up.bias": (WIDTH,)}
        if classes is not None:
            shapes |= {"head.classifier.weight": (WIDTH, classes), "head.classifier.bias": (classes,)}
        return {name: random.normal(0, 0.2, shape).astype(np.float32) for name, shape in shapes.items()}

    return make


@pytest.fixture(scope="session")
def adapters(cli: Cli, model: Path, plain_tensors: PlainTensors, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two adapters, made by `pack`: `topic` (Houlsby, 3 classes) and `tone` (Pfeiffer, 2 classes)."""

    def make(folder: Path) -> None:
        for name, kind, activation, labels in (
            ("topic", "houlsby", "gelu", "a,b,c"),
            ("tone", "pfeiffer", "relu", "bad,good"),
        ):
            file = folder / f"{name}.safetensors"
            save_file(plain_tensors(kind, 4, seed=len(name), classes=labels.count(",") + 1), file)
            options = ("--kind", kind, "--activation", activation, "--labels", labels, "--base", model)
            cli.done("pack", file, *options, "-o", folder / name)

    return once(tmp_path_factory, "cli_adapters", make)


@pytest.fixture(scope="session")
def bundle(cli: Cli, model: Path, adapters: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small BERT and both adapters, made by `build`."""

    def make(folder: Path) -> None:
        listed = f"{adapters / 'topic'},{adapters / 'tone'}"
        cli.done("build", model, "--adapters", listed, "-o", folder / "bundle")

    return once(tmp_path_factory, "cli_bundle", make) / "bundle"
