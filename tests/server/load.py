"""Load test of a server: `make traffic`, or `python tests/server/load.py --help`.

The server answers a million requests of one text each while its bundle is reloaded and its alias changes.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import sys
import tempfile
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1] / "support")]

from served import served  # noqa: E402 tests find their helpers by this path
from small_bundle import build_small, small_tokenizer  # noqa: E402
from traffic import Traffic, two_versions  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--pause", type=float, default=2.0, help="seconds between two changes of one kind")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root)
        build_small(folder, ["slots", "bank"], ("input_ids", "attention_mask"), small_tokenizer())
        versions = two_versions(folder / "bundle", folder)
        place = shutil.copytree(versions[0], folder / "film")
        with served(place, "--quiet", "--drain", "0", "--workers", str(options.workers)) as server:
            start = time.monotonic()
            traffic = Traffic(server.client.base_url, place, versions)
            counts = asyncio.run(traffic.run(options.requests, options.clients, 1, options.pause))
            print(f"{options.requests:,} requests: {dict(counts)}, {time.monotonic() - start:.0f} s", flush=True)
            server.ended()
    sys.exit(counts["right"] != options.requests)


if __name__ == "__main__":
    main()
