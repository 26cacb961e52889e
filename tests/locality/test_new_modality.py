"""A modality: one file that reads it and prepares its inputs, and one for the library that training uses."""

from __future__ import annotations

from pathlib import Path

import numpy as np

MODALITY_FILE, LIBRARY_FILE = "modalities/series.py", "torch_backend/processors/series_processor.py"
MODALITY = '''"""Series: files with a number in each line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from adapter_export.errors import DataError
from adapter_export.modalities.modality import FileModality, Step


@dataclass(frozen=True)
class Scale(Step):
    """Multiply all numbers by a gain.

    Attributes:
        op: `scale`.
        gain: the factor.
    """

    op: Literal["scale"]
    gain: float

    def apply(self, values):
        return values * np.float32(self.gain)


class SeriesModality(FileModality):
    """Series of numbers."""

    name = word = "series"
    inputs = ("series",)
    form = "float32 [numbers]"
    option = "A file of numbers; may be repeated."
    steps = (Scale,)
    processor_field = "series_processor_type"
    processor_inputs = ("input_values",)

    def is_contents(self, array):
        return array.ndim == 1 and array.dtype == np.float32

    def size(self, data, rate, where):
        return len(data.split())

    def read(self, data, rate, where, most=None):
        try:
            return np.array(data.decode().split()[:most], np.float32)
        except ValueError as error:
            raise DataError("is no series of numbers", where=where, expected="a number in each line") from error

    def known_fields(self, fields):
        return {"gain"}

    def named_steps(self, fields):
        yield Scale("scale", float(fields["gain"]))

    def samples(self, rate):
        return {
            f"series {seed}": "\\n".join(map(str, np.random.default_rng(seed).normal(0, 0.5, 300))).encode()
            for seed in range(2)
        }

    def noise(self, number, rate):
        return np.random.default_rng(number).standard_normal(400).astype(np.float32)


MODALITY = SeriesModality()
'''
LIBRARY = '''"""The library of series."""

from __future__ import annotations

import json

import numpy as np

from adapter_export.torch_backend.processors.processor import ProcessorLibrary


class SeriesProcessor:
    model_input_names = ("input_values",)

    def __init__(self, fields):
        self.fields = fields

    def to_json_string(self):
        return json.dumps(self.fields)


class SeriesLibrary(ProcessorLibrary):
    """Series, as their library reads them."""

    def load(self, folder):
        return SeriesProcessor(json.loads((folder / "preprocessor_config.json").read_text()))

    def run(self, processor, contents, tensors):
        return {"input_values": (contents * processor.fields["gain"])[None].astype(np.float32)}


LIBRARY = SeriesLibrary()
'''
CAPTURE = """
import json, sys
from dataclasses import replace
from pathlib import Path
import torch
import transformers as hf
from adapter_export.torch_backend.base.own_processors import own_media
from adapter_export.torch_backend.base.torch_base import captured_base, write_base

sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
sizes |= {"num_feat_extract_layers": 2, "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}
torch.manual_seed(0)
model = hf.Wav2Vec2Model(hf.Wav2Vec2Config(conv_dim=(8, 8), conv_stride=(2, 2), conv_kernel=(3, 3), **sizes)).eval()
with torch.no_grad():
    for weight in model.parameters():
        if weight.dim() > 1:
            weight.normal_(0, 0.2)
folder = Path("processor")
folder.mkdir()
fields = {"series_processor_type": "SeriesProcessor", "gain": 2.0}
(folder / "preprocessor_config.json").write_text(json.dumps(fields))
media, notes = own_media(folder)
assert media is not None and media.record.steps, notes
axes = {"input_values": {0: "batch", 1: "numbers"}}
base = captured_base(model, {"input_values": torch.randn(2, 400)}, axes=axes)
write_base(replace(base, media=media), Path("model.pt"))
"""


def write_series(folder: Path) -> Path:
    """Slow and fast waves, a number in each line."""
    for label, pitch in (("slow", 5), ("fast", 40)):
        (folder / label).mkdir(parents=True)
        for seed in range(6):
            wave = np.sin(np.arange(400) / 400 * 2 * np.pi * pitch + seed)
            (folder / label / f"{seed}.txt").write_text("\n".join(f"{number:.4f}" for number in wave))
    return folder


def test_a_new_modality_is_two_files(trial, tmp_path: Path) -> None:
    trial.add(MODALITY_FILE, MODALITY)
    trial.add(LIBRARY_FILE, LIBRARY)
    data = write_series(tmp_path / "data")
    trial.python(CAPTURE)
    quick = ("--epochs", "1", "--batch-size", "4", "--bottleneck", "4")
    trial.command("train", "model.pt", "--data", "data", *quick, "-o", "waves")
    trial.command("build", "model.pt", "--adapters", "waves", "-o", "bundle")
    assert "golden media" in str(trial.json("check", "bundle", "--against", "model.pt", "--quick"))
    (row,) = trial.json("run", "bundle", "--adapter", "waves", "--series", data / "slow" / "0.txt")["rows"]
    assert row["label"] in ("slow", "fast")
    found = trial.json("evaluate", "bundle", "--data", "data")
    assert found["rows"] == 12
    assert trial.touched == [MODALITY_FILE, LIBRARY_FILE]
