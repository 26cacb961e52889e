"""The C interface, driven by the client in Java: one process for all cases, with the answers of the Python runtime."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clients import EXAMPLES, alike, succeed, tool, write_adapter_file
from safetensors.numpy import load_file
from toolchain import skip_or_fail

from adapter_export.runtime import Bundle, Session

RELEASE = 22
"""The first Java version that calls C without a library."""

IDS = np.array([[2, 5, 6, 7, 3], [2, 7, 3, 0, 0], [2, 4, 12, 19, 3]])
INPUTS = {"input_ids": IDS, "attention_mask": (IDS > 0).astype(np.int64)}

REFUSED = {
    "nobody": "RequestException: adapter `nobody`: is not loaded",
    "a zero": "RequestException: a text holds a zero character.",
    "strength": "RequestException: `strength`: is no strength; found nan; expected a number from -1000 to 1000.",
    "strength of a row": "RequestException: row 1, `strength`: is no strength; found nan",
    "no row": "RequestException: a request has no rows.",
    "no mask": "RequestException: `attention_mask`: an input is missing.",
    "id": "RequestException: `input_ids`: an id is out of range",
    "weights": "RequestException: adapter `fusion`: a fusion needs a finite weight for each of its members.",
    "weights of none": "RequestException: adapter `tone`: has no weights that a call could give",
    "type": "RequestException: `input_ids`: an input has a wrong type; found int32; expected int64.",
    "bytes": "RequestException: `input_ids`: bytes and shape differ; found 8 bytes; expected int64 [3].",
    "span": "RequestException: a span needs its context; found none",
    "context": "RequestException: `context`: a context has a byte that is neither 0 nor 1.",
    "short context": "RequestException: a context does not say of each token whether it may be the answer",
    "unload": "RequestException: adapter `nobody`: is not loaded.",
    "damaged": "BundleException: ",
    "threads": "RequestException: `threads`: is no number of threads; found 0; expected 1 or more.",
    "closed": "IllegalStateException: the bundle is closed",
}


@pytest.fixture(scope="module")
def found(
    small_bundle: Path, task_bundle: Path, cpp_build: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """Result of each case, by name."""
    folder = tmp_path_factory.mktemp("java")
    javac, java = (tool(name, "openjdk-25-jdk-headless") for name in ("javac", "java"))
    if int((re.findall(r"\d+", succeed([javac, "-version"], folder)) or ["0"])[0]) < RELEASE:
        skip_or_fail(f"`javac` is older than {RELEASE}: on Debian, `apt-get install openjdk-25-jdk-headless`")
    sources = [*(EXAMPLES / "java" / "src").rglob("*.java"), Path(__file__).with_name("Cases.java")]
    succeed([javac, "-J-XX:TieredStopAtLevel=1", "--release", str(RELEASE), "-d", folder / "classes", *sources], folder)
    damaged = shutil.copytree(small_bundle, folder / "damaged")
    (damaged / "base.bin").write_bytes((damaged / "base.bin").read_bytes()[:-1] + b"\x01")
    _write_files(small_bundle, folder / "files")
    options = ["-XX:TieredStopAtLevel=1", "--enable-native-access=ALL-UNNAMED", "-cp", folder / "classes"]
    library = f"-Dadapter_export.library={cpp_build / 'libadapter_export_c.so'}"
    words: list[str | Path] = [java, *options, library, "Cases", small_bundle, damaged, folder / "files", task_bundle]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return dict(line.split("\t", 1) for line in done.stdout.splitlines())


def _write_files(bundle: Path, folder: Path) -> None:
    folder.mkdir()
    tensors = load_file(bundle / "adapters" / "tone.safetensors")
    first = next(iter(tensors))
    largest = np.finfo(np.float32).max
    write_adapter_file(bundle, folder / "good", tensors)
    write_adapter_file(bundle, folder / "of another base", tensors, version=7)
    write_adapter_file(bundle, folder / "NaN", {**tensors, first: np.full_like(tensors[first], np.nan)})
    heads = {name: np.full_like(tensor, largest) for name, tensor in tensors.items() if ".head." in name}
    write_adapter_file(bundle, folder / "an overflow", {**tensors, **heads})


@pytest.fixture(scope="module")
def session(small_bundle: Path) -> Session:
    return Bundle.open(small_bundle).session(threads=1)


def _documents(session: Session, names: list[str], **choice: Any) -> list[dict[str, Any]]:
    answers = session.answer(INPUTS, adapters=names, **choice)
    return [
        {"adapter": name, "task": "single_label", **one.document()} for name, one in zip(names, answers, strict=True)
    ]


def _numbers(bits: str) -> np.ndarray:
    """The rows of an output, together."""
    return np.stack([_row(row) for row in bits.split(";")])


def _row(bits: str) -> np.ndarray:
    shape, numbers = bits.split("] ")
    words = np.array(numbers.split(), np.int64).astype(np.int32)
    return words.view(np.float32).reshape(json.loads(shape + "]"))


def test_the_golden_vectors_hold(found: dict[str, str], small_bundle: Path) -> None:
    findings = json.loads(found["verify"])
    assert all(0 <= one["worst"] <= 1 for one in findings)
    variants = {"slots", "slots, fed", "inputs", "bank", "fanout", "baked", "texts", "batches"}
    assert {one["variant"] for one in findings} == {*variants, "recorded"}
    names = [record.name for record in Bundle.open(small_bundle).manifest.adapters]
    assert found["adapters"] == f"[{', '.join(sorted(names))}]"
    assert found["task"] == "Optional[Task[type=single_label, labels=[a, b, c]]]"


def test_answers_are_those_of_python(found: dict[str, str], session: Session) -> None:
    alike(json.loads(found["alone"]), _documents(session, ["topic"] * 3))
    (base,) = json.loads(found["base"])
    hidden = session.run({name: array[:1] for name, array in INPUTS.items()})["hidden"][0]
    alike(base, {"adapter": None, "task": None, "outputs": {"hidden": hidden.tolist()}})
    mixed = json.loads(found["mixed"])
    assert (mixed[1]["adapter"], mixed[1]["task"]) == (None, None)
    for row, name in ((0, "tone"), (2, "topic")):
        alike(mixed[row], _documents(session, [name] * 3)[row])
    expected = session.run(INPUTS, adapters=["tone", None, "topic"])["hidden"]
    np.testing.assert_allclose(_numbers(found["mixed bits"]), expected, rtol=0, atol=1e-5)
    names, strengths = ["tone", "topic", "tone"], [0.5, -1, 0]
    alike(json.loads(found["strengths"]), _documents(session, names, strength=strengths))
    scaled = _numbers(found["strength bits"])
    np.testing.assert_allclose(
        scaled, session.run(INPUTS, adapters=names, strength=strengths)["hidden"], rtol=0, atol=1e-5
    )
    assert np.abs(scaled - session.run(INPUTS, adapters=names)["hidden"]).max() > 0.01


def test_rows_of_a_mixed_batch_equal_single_runs(found: dict[str, str], session: Session, task_bundle: Path) -> None:
    """Rows of several lengths, with padding on the left, weights and a context of their own."""
    first = {name: array[:1] for name, array in INPUTS.items()}
    few = {"input_ids": np.array([[2, 7, 3]]), "attention_mask": np.ones((1, 3), np.int64)}
    asked = [(first, "tone"), (few, "topic"), (few, "tone")]
    lengths = [
        {"adapter": name, "task": "single_label", **session.classify(row, name)[0].document()} for row, name in asked
    ]
    alike(json.loads(found["lengths"]), lengths)
    alike(json.loads(found["padding on the left"]), lengths[2:])
    for row, answer, name in zip((few, first), json.loads(found["weights"]), ("fusion", "fixed"), strict=True):
        expected = session.classify(row, "fixed")[0].document()
        alike(answer, {"adapter": name, "task": "single_label", **expected})
    context = [np.array([False, True, True])]
    (span,) = Bundle.open(task_bundle).session(threads=1).answer(few, "span", context=context)
    alike(json.loads(found["span"]), [{"adapter": "span", "task": "span", **span.document()}])


def test_a_text_that_comes_again_gives_the_same_bits(found: dict[str, str], session: Session) -> None:
    row = {name: array[:1] for name, array in INPUTS.items()}
    for name in ("tone", "topic"):
        alone = _numbers(found[f"kept {name}"])
        np.testing.assert_allclose(alone, session.run(row, name)["hidden"], rtol=0, atol=1e-5)
    assert found["kept tone again"] == found["kept tone"]
    mixed = session.run(INPUTS, adapters=["tone", None, "topic"])["hidden"]
    np.testing.assert_allclose(_numbers(found["kept mixed"]), mixed, rtol=0, atol=1e-5)
    assert found["kept"] == "PrefixCounts[hits=3, loads=3, evictions=0, resident=3]"
    assert found["nothing kept"] == "PrefixCounts[hits=0, loads=2, evictions=2, resident=0]"


def test_adapter_files_are_loaded_or_refused(found: dict[str, str], session: Session) -> None:
    alone = [one.probabilities for one in session.classify(INPUTS, "tone")]
    for row, one in zip(json.loads(found["file good"]), alone, strict=True):
        alike([*row["probabilities"].values()], [*one.values()])
    assert found["file NaN"].startswith("RequestException: adapter `new`: does not fit this bundle's graph; found `")
    assert "holds NaN or Inf" in found["file NaN"]
    assert found["file an overflow"].startswith("RequestException: row 0: an output is NaN or infinite")
    assert found["file of another base"].startswith("RequestException: adapter `new`: was made for another bundle")


def test_invalid_calls_are_refused_by_name(found: dict[str, str]) -> None:
    refused = {name.removeprefix("refused: "): said for name, said in found.items() if name.startswith("refused")}
    assert refused.keys() == REFUSED.keys()
    for name, words in REFUSED.items():
        assert refused[name].startswith(words), name
    assert "base.bin: has been changed or damaged since it was written" in refused["damaged"]
