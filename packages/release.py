"""Check that a tree can be released under a tag, and write the notes: `python packages/release.py v0.1.0 --notes FILE`.

Both packages are of this tree and have its version. `docs/project/releasing.md` lists the steps of a release.
"""

from __future__ import annotations

import argparse
import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def faults(root: Path, tag: str) -> list[str]:
    """Return what must change in a tree before it is released under the tag."""
    project = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))
    version = project["project"]["version"]
    found = [
        f"{path} does not state version {version}, which pyproject.toml does"
        for path, line in {
            "adapter_export/version.py": f'__version__ = "{version}"',
            "CITATION.cff": f"version: {version}",
            "examples/node/package.json": f'  "version": "{version}",',
        }.items()
        if line not in (root / path).read_text("utf-8").splitlines()
    ]
    if tag != f"v{version}":
        found.append(f"the tag {tag} is not v{version}")
    if not notes(root, version):
        found.append(f"CHANGELOG.md has no section `## [{version}] - YYYY-MM-DD` with text")
    if not project["tool"]["hatch"]["metadata"]["hooks"]["custom"]["repository"]:
        found.append("pyproject.toml does not state the address of the repository, so PyPI would show no links")
    return found


def notes(root: Path, version: str) -> str:
    """Return the section of CHANGELOG.md on a version, or nothing if there is none with a date."""
    text = (root / "CHANGELOG.md").read_text("utf-8")
    section = re.search(rf"^## \[{re.escape(version)}\] - \d{{4}}-\d\d-\d\d\n(.*?)(?=^## |\Z)", text, re.M | re.S)
    return section[1].strip() if section else ""


def main() -> None:
    """Print the faults and fail, or write the notes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tag")
    parser.add_argument("--notes", type=Path, required=True, help="file to write the section of CHANGELOG.md into")
    options = parser.parse_args()
    found = faults(ROOT, options.tag)
    if found:
        sys.exit("\n".join(f"error: {fault}" for fault in found))
    options.notes.write_text(notes(ROOT, options.tag.removeprefix("v")) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
