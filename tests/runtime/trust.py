"""Long versions of the tests of files in use: `make trust`, or `python tests/runtime/trust.py --help`.

Bits are flipped, writers race, writers are killed during power failures, and a service answers while its bundle is
replaced and reloaded.
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path[:0] = [str(Path(__file__).parents[1] / "support")]

from deployment import Service, flipped, next_version  # noqa: E402 tests find their helpers by this path
from power import killed_at, lose_power  # noqa: E402
from tiny_onnx import build_tiny  # noqa: E402

from adapter_export.errors import AbandonedFileWarning  # noqa: E402
from adapter_export.format.manifest_json import read_manifest, verify_files  # noqa: E402
from adapter_export.safe_io import output  # noqa: E402

_REMOVE = """
import sys, time
from pathlib import Path
from adapter_export.bundle.change import remove_adapters
from adapter_export.errors import FileError
bundle, name = Path(sys.argv[1]), sys.argv[2]
print("ready", flush=True)
sys.stdin.readline()
while True:
    try:
        remove_adapters(bundle, [name])
        break
    except FileError as error:
        if "another process" not in str(error):
            raise
        print("busy", flush=True)
        time.sleep(0.02)
"""


def race(built: Path, folder: Path, count: int) -> Counter[str]:
    """Let two processes remove an adapter each from one bundle; a locked out process retries."""
    counts = Counter[str]()
    for at in range(count):
        bundle = folder / f"race{at}"
        shutil.copytree(built, bundle)
        writers = [
            subprocess.Popen(
                [sys.executable, "-c", _REMOVE, str(bundle), name],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for name in ("wide", "narrow")
        ]
        for writer in writers:
            assert writer.stdout is not None
            writer.stdout.readline()
        for writer in writers:
            assert writer.stdin is not None
            writer.stdin.write("go\n")
            writer.stdin.flush()
        said = [writer.communicate() for writer in writers]
        succeeded = all(writer.returncode == 0 for writer in writers)
        manifest = read_manifest(bundle)
        verify_files(manifest, bundle)
        left = sorted(record.name for record in manifest.adapters)
        counts["refused, then done" if any("busy" in out for out, _ in said) else "one after the other"] += 1
        counts["both done" if succeeded and left == ["pfeiffer", "plain"] else f"wrong: {left} {said}"] += 1
        shutil.rmtree(bundle)
    return counts


def kill(built: Path, folder: Path, count: int) -> Counter[str]:
    """Kill a change of a bundle at every step, and let the disk lose some unsynced data.

    Afterwards the bundle is the old or the new one, every file matches its manifest, and there are no other files.
    """
    counts, rng, exchange = Counter[str](), np.random.default_rng(0), output.exchange
    folder.mkdir()
    bundle, other = folder / "bundle", next_version(built, folder.parent / "next")
    manifests = [read_manifest(built), read_manifest(other)]

    def write(version: Path) -> None:
        with output.change_folder(bundle, ("manifest.json", "base.bin", "adapters/wide.onnx_adapter")) as temporary:
            for path in version.rglob("*"):
                if path.is_file() and not (temporary / path.relative_to(version)).exists():
                    shutil.copy(path, temporary / path.relative_to(version))
            (temporary / "adapters/wide.safetensors").unlink()
            shutil.copy(version / "adapters/wide.safetensors", temporary / "adapters")

    shutil.copytree(built, bundle)
    step: Callable[[], int] = itertools.count().__next__
    while counts["killed"] < count:
        kept = {path.stat().st_ino for path in (bundle, *bundle.rglob("*"))}
        version = (built, other)[read_manifest(bundle) == manifests[0]]
        finished, synced = killed_at(step(), lambda version=version: write(version))
        lose_power(folder, kept | synced, lambda: bool(rng.integers(4)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", AbandonedFileWarning)
            with output.hold_lock(bundle):
                manifest = read_manifest(bundle)
        try:
            verify_files(manifest, bundle)
            whole = manifest in manifests and list(folder.iterdir()) == [bundle]
        except Exception as error:  # noqa: BLE001 all failures are counted
            whole, counts[f"wrong: {error}"] = False, 1
        counts["whole" if whole else "wrong"] += 1
        counts["old" if manifest != read_manifest(version) else "new"] += 1
        if finished:  # go through all steps again, with and without an exchange at one stroke
            step = itertools.count().__next__
            output.exchange = (lambda *_: False) if output.exchange is exchange else exchange
        else:
            counts["killed"] += 1
    output.exchange = exchange
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bits", type=int, default=10_000, help="how many bits are flipped, one by one")
    parser.add_argument("--requests", type=int, default=1_000_000, help="how many requests a service answers")
    parser.add_argument("--kills", type=int, default=500, help="how often a writer is killed")
    parser.add_argument("--races", type=int, default=100, help="how often two writers race")
    options = parser.parse_args()
    wrong = False
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root)
        built = build_tiny(folder)
        works: dict[str, Callable[[], Counter[str]]] = {
            f"{options.kills:,} kills with loss of power": lambda: kill(built, folder / "kills", options.kills),
            f"{options.races:,} races of two writers": lambda: race(built, folder, options.races),
            f"{options.bits:,} flipped bits": lambda: flipped(shutil.copytree(built, folder / "bits"), options.bits),
            f"{options.requests:,} requests under reloads": lambda: Service(
                folder / "service/bundle", (built, next_version(built, folder / "second")), pause=0.5
            ).run(threads=4, requests=options.requests),
        }
        for name, work in works.items():
            if name.startswith("0 "):
                continue
            start = time.monotonic()
            counts = work()
            print(f"{name}: {dict(counts)}, {time.monotonic() - start:.0f} s", flush=True)
            wrong |= any(key.startswith(("wrong", "other answers")) for key in counts)
    sys.exit(wrong)


if __name__ == "__main__":
    main()
