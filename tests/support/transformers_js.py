"""transformers.js on folders that `ship --layout transformers.js` writes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clients import Again, last_line

import adapter_export as ae

HERE = Path(__file__).parents[1] / "deploy" / "transformers_js"
LAYOUT = "transformers.js"


class TransformersJs:
    """A folder with the packages of transformers.js, and a Node process that answers rows there.

    Args:
        root: the folder with `node_modules`; Node looks for packages above the folder of a program.
        again: runs `ask.mjs` again and again.
    """

    def __init__(self, root: Path, again: Again) -> None:
        self.root, self._again = root, again
        self._shipped: dict[Path, Path] = {}

    def ship(self, bundle: Path) -> Path:
        """Return the folder of a bundle, shipped once."""
        if bundle not in self._shipped:
            path = self.root / f"shipped-{len(self._shipped)}"
            self._shipped[bundle] = ae.ship(bundle, path, layout=LAYOUT, name="shipped").folder
        return self._shipped[bundle]

    def answer(self, bundle: Path, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Answer rows `{text, adapter}` of a bundle in one call; ValueError with the message of an error."""
        done = self._again.call([str(self.ship(bundle)), json.dumps(rows)])
        if done.returncode:
            raise ValueError(last_line(done))
        found: list[dict[str, Any]] = json.loads(done.stdout)
        return found
