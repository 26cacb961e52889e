"""Events of deployed bundles: overwritten files, flipped bits, replacement under load."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from threading import Event

import numpy as np
from tampering import edit_adapter, rehash, scaled
from tiny_onnx import token_inputs

from adapter_export.errors import AdapterExportError, RequestError
from adapter_export.format.tensors import read_tensors
from adapter_export.runtime import Bundle, Session
from adapter_export.safe_io.output import Output

INPUTS = token_inputs(4, 2, 3)

MIXED = ("wide", None, "narrow")

Answers = dict[str, object]


def answers(session: Session) -> Answers:
    """Return all values visible to clients: numbers of each adapter and of mixed rows, names, labels."""
    found: Answers = {}
    for name in (None, *session.adapters):
        found |= {f"{name}/{output}": array for output, array in session.run(INPUTS, name).items()}
        if name is not None and session.labels(name):
            found[f"{name} says"] = [one.label for one in session.classify(INPUTS, name)]
            found[f"{name} knows"] = session.labels(name)
    found |= {f"mixed/{output}": array for output, array in session.run(INPUTS, adapters=MIXED).items()}
    return found


def same(one: Answers, other: Answers) -> bool:
    """Return whether two results are bit-identical."""
    return one.keys() == other.keys() and all(
        np.array_equal(value, other[key], equal_nan=True) if isinstance(value, np.ndarray) else value == other[key]
        for key, value in one.items()
    )


def next_version(folder: Path, out: Path) -> Path:
    """A bundle of the same shapes, names and `model_version`, whose weights are others: a mix of the two would run."""
    shutil.copytree(folder, out)
    weights = np.fromfile(out / "base.bin", np.float32) * np.float32(1.25)
    (out / "base.bin").unlink()
    weights.tofile(out / "base.bin")
    slot = next(name for name, value in read_tensors(out / "adapters/wide.safetensors").items() if value.any())
    edit_adapter(out, "wide", scaled(slot, -1.0))
    rehash(out)
    return out


def flip(path: Path, bit: int) -> None:
    """Flip a bit of a file, in place."""
    with path.open("r+b") as file:
        file.seek(bit // 8)
        (byte,) = file.read(1)
        file.seek(bit // 8)
        file.write(bytes([byte ^ 1 << bit % 8]))


def write_over(folder: Path) -> None:
    """Overwrite every file with noise in place, like `cp`."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("r+b") as file:
                file.write(np.random.default_rng(0).bytes(path.stat().st_size))


def bits(folder: Path, count: int, seed: int = 0) -> Iterable[tuple[str, int]]:
    """Bits of the files of a bundle, each file equally often; a third of them in the manifest."""
    rng = np.random.default_rng(seed)
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    for at in range(count):
        name = "manifest.json" if at % 3 == 0 else files[rng.integers(len(files))]
        yield name, int(rng.integers(8 * (folder / name).stat().st_size))


def flipped(folder: Path, count: int, seed: int = 0) -> Counter[str]:
    """Flip bits one by one, before the bundle is opened and, of every second one, while it is in use.

    Returns:
        How many were refused by a named error, changed nothing, or gave other answers without a word.
    """
    outcomes, live = Counter[str](), Bundle.open(folder).session(threads=1)
    expected = answers(live)
    for at, (name, bit) in enumerate(bits(folder, count, seed)):
        flip(folder / name, bit)
        try:
            found = answers(live if at % 2 else Bundle.open(folder).session(threads=1))
            outcomes["the same answers" if same(found, expected) else f"other answers: {name}, bit {bit}"] += 1
        except AdapterExportError:
            outcomes["refused"] += 1
        finally:
            flip(folder / name, bit)
    return outcomes


class Service:
    """A service whose threads answer while its bundle is exchanged and read again.

    It answers `wide` and mixed rows from the bundle, and `latest`, an alias of one of two versions of an adapter that
    are loaded and unloaded beside them.
    """

    def __init__(self, place: Path, versions: Iterable[Path], *, pause: float = 0.05) -> None:
        self.place, self.versions, self.pause = place, tuple(versions), pause
        shutil.copytree(self.versions[0], place)
        self.files = [path / "adapters/wide.onnx_adapter" for path in self.versions]
        self.expected = {}
        for path in self.versions:
            bundle = Bundle.open(path)
            self.expected[bundle.manifest.checksum] = self._answers(bundle.session(threads=1))
        self.counts = Counter[str]()
        self.done = Event()
        self.bundle = Bundle.open(place)
        self.current = self._started(self.bundle)

    def _answers(self, session: Session) -> dict[str, np.ndarray]:
        found = {"wide": session.run(INPUTS, "wide")["logits"], "mixed": session.run(INPUTS, adapters=MIXED)["logits"]}
        for version, file in enumerate(self.files):
            session.load("latest", file, labels=["yes", "no"])
            found[f"latest{version}"] = session.run(INPUTS, "latest")["logits"]
            session.unload("latest")
        return found

    def _started(self, bundle: Bundle) -> tuple[Session, dict[str, np.ndarray], list[str]]:
        session = bundle.session(threads=1)
        session.load("latest0.0", self.files[0], labels=["yes", "no"])
        return session, self.expected[bundle.manifest.checksum], ["latest0.0"]

    def answer(self, requests: int, seed: int, reloads: int = 0) -> Counter[str]:
        """Answer requests, each with the current session, and compare with the expected answers.

        On a fast machine, continue until the required number of reloads, for at most half a minute.
        """
        rng, counts, until = np.random.default_rng(seed), Counter[str](), time.monotonic() + 30
        while counts["right"] + counts["wrong"] < requests or (
            self.counts["reloaded"] < reloads and time.monotonic() < until
        ):
            kind = rng.choice(["wide", "mixed", "latest"])
            session, expected, alias = self.current
            if kind == "mixed":
                found, right = session.run(INPUTS, adapters=MIXED)["logits"], expected["mixed"]
            elif kind == "wide":
                found, right = session.run(INPUTS, "wide")["logits"], expected["wide"]
            else:
                while True:
                    name = alias[0]
                    try:
                        found = session.run(INPUTS, name)["logits"]
                        break
                    except RequestError:  # unloaded since the alias was read
                        counts["asked again"] += 1
                right = expected[name.partition(".")[0]]
            counts["right" if np.array_equal(found, right, equal_nan=True) else "wrong"] += 1
        return counts

    def _deploy(self) -> None:
        while not self.done.wait(self.pause):
            self.counts["deployed"] += 1
            with Output(self.place, force=True).folder() as temporary:
                shutil.copytree(
                    self.versions[self.counts["deployed"] % len(self.versions)], temporary, dirs_exist_ok=True
                )

    def _reload(self) -> None:
        while not self.done.wait(0.02):
            new = self.bundle.reload()
            if new is not self.bundle:
                self.bundle, self.current = new, self._started(new)
                self.counts["reloaded"] += 1

    def _switch(self) -> None:
        while not self.done.wait(0.005):
            session, _, alias = self.current
            self.counts["switched"] += 1
            version, old = self.counts["switched"] % len(self.files), alias[0]
            alias_name = f"latest{version}.{self.counts['switched']}"
            session.load(alias_name, self.files[version], labels=["yes", "no"])
            alias[0] = alias_name
            with suppress(RequestError):
                session.unload(old)

    def run(self, threads: int, requests: int, reloads: int = 0) -> Counter[str]:
        """Answer requests in threads while a deployer, a reloader and a switch of the alias do their work."""
        with ThreadPoolExecutor(3) as others, ThreadPoolExecutor(threads) as workers:
            running = [others.submit(work) for work in (self._deploy, self._reload, self._switch)]
            try:
                for counts in workers.map(lambda seed: self.answer(requests // threads, seed, reloads), range(threads)):
                    self.counts += counts
            finally:
                self.done.set()
            for work in running:
                work.result()
        return self.counts
