"""A claim that `check` and `verify` make about a bundle is one entry of a table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tiny_onnx import random_adapter, save_tiny

import adapter_export as ae
from adapter_export.graph.kinds import pfeiffer
from adapter_export.onnx_backend.base.onnx_base import open_onnx

if TYPE_CHECKING:
    from conftest import TrialChange

TABLE = "LAST_CLAIMS: Sequence[Claim] = (\n"
CLAIM = """
def _short_names(context: Context) -> Iterator[Finding]:
    for name in context.plan.adapters:
        yield Finding.exact("short names", name, len(name) < 5, f"{len(name)} letters", "names are short")


"""


def test_a_claim_touches_one_file(trial: TrialChange) -> None:
    entry = '    Claim("short names", _short_names, cost=lambda context: len(context.plan.adapters)),\n'
    trial.edit("bundle/proof/claims.py", TABLE, f"{CLAIM.lstrip()}{TABLE}{entry}")
    base = open_onnx(save_tiny(trial.folder))
    ae.save(random_adapter("tone", pfeiffer(), base, labels="xy"), trial.folder / "tone")
    trial.command("build", base.path, "--adapters", "tone", "-o", "bundle")
    found = trial.json("verify", "bundle")
    assert [one["status"] for one in found["findings"] if one["check"] == "short names"] == ["exact"]
    assert "short names" in trial.command("verify", "bundle", "--verbose")
    trial.command("check", "bundle", "--quick", "--report", "page.html")
    assert "short names" in (trial.folder / "page.html").read_text("utf-8")
    assert trial.touched == ["bundle/proof/claims.py"]
