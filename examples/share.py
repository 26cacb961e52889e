"""Push a bundle to a registry, move its tag to another bundle and back, and pin it by its digest.

    python examples/share.py BUNDLE oci://127.0.0.1:5000/team/questions

BUNDLE needs at least two adapters. To run a registry on this machine: `apt-get install docker-registry`, then
`docker-registry serve config.yml`. Any other registry works, and so does `hf://me/questions`.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import adapter_export as ae
from adapter_export.reporting import Reporter


class Notes(Reporter):
    """Reporter that prints notes, such as a moved tag."""

    def warn(self, text: str) -> None:
        """Print a note."""
        print(text)


NOTES = Notes()


def main(bundle: str, reference: str) -> None:
    with TemporaryDirectory() as folder:
        first = ae.push(bundle, reference, license="apache-2.0", reporter=NOTES)
        print(f"sent {first.bytes:,} bytes to {first.reference}")

        pulled = ae.pull(first.reference, Path(folder, "pulled"), expect=first.digest)
        print(f"a pull contains {', '.join(ae.open_bundle(pulled.path).session().adapters)}")

        changed = shutil.copytree(bundle, Path(folder, "changed"))
        gone = ae.open_bundle(changed).session().adapters[0]
        ae.remove(changed, [gone])
        second = ae.push(changed, reference, license="apache-2.0", reporter=NOTES)
        print(f"the tag is now a bundle without `{gone}`")

        try:
            ae.pull(reference, Path(folder, "again"), expect=first.digest, reporter=NOTES)
        except ae.errors.HashError as error:
            print(f"a pull that expects the first one fails: {error.what}")

        back = ae.pull(first.pinned, Path(folder, "back"))
        assert back.digest == first.digest != second.digest
        print(f"and still has it by its digest: {first.pinned.rpartition('@')[2][:19]}…")


if __name__ == "__main__":
    main(*sys.argv[1:])
