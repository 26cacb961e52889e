"""Self-test of a check: plant faults in a copy of a bundle, and count those that `check` detects and locates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

from adapter_export.address import Address, PathLike
from adapter_export.bases.base import Base, OpenOptions
from adapter_export.bases.opening import base_for
from adapter_export.bundle.open_bundle import folder_of
from adapter_export.commands.bundles.check import AGAINST, reference_sides
from adapter_export.commands.command import Command, Instead, Screen
from adapter_export.errors import UsageError
from adapter_export.option import SITE_MAP, TRUST_PICKLE, Option
from adapter_export.reporting import SILENT, Reporter

if TYPE_CHECKING:
    from adapter_export.plugins.selftest.selftest import SelfTest
    from adapter_export.runtime import Bundle


def self_test(
    bundle: Bundle | Address,
    *,
    against: Annotated[Base | Address | None, AGAINST] = None,
    kinds: Sequence[str] = (),
    seed: int = 0,
    site_map: Annotated[PathLike | None, SITE_MAP] = None,
    trust_pickle: Annotated[bool, TRUST_PICKLE] = False,
    reporter: Reporter = SILENT,
) -> SelfTest:
    """Plant about a hundred kinds of faults in a copy of a bundle, and report those that `check` detects and locates.

    The bundle itself stays unchanged, and must pass first.

    Args:
        bundle: the bundle, or its folder.
        against: the model that the bundle was built from; without it the golden vectors are the reference.
        kinds: names of kinds; default: all.
        seed: random seed of the faults' places.
        site_map: the sites of the base.
        trust_pickle: load the base even if it could run code.
        reporter: receives each step.

    Returns:
        The outcome of each fault; `passed` if none was missed.

    Raises:
        UsageError: a kind is unknown.
        ParityError: the unchanged bundle does not pass.
        InputError: the bundle or the model cannot be used.
    """
    from adapter_export.bundle.proof.proof_plan import plan_check
    from adapter_export.plugins.selftest.fault_kinds import FAULTS
    from adapter_export.plugins.selftest.selftest import SelfTest, self_test

    known = [fault.name for fault in FAULTS]
    unknown = [kind for kind in kinds if kind not in known]
    if unknown:
        raise UsageError("unknown kind of fault", found=unknown[0], expected=", ".join(known))
    plan, records, total = plan_check(folder_of(bundle, reporter), brief=True), [], len(kinds) or len(known)
    model = None if against is None else base_for(against, OpenOptions(site_map, trust_pickle), reporter)
    with reference_sides(plan, model, None) as (reference, _):
        for record in self_test(plan.bundle, reference, kinds, seed):
            records.append(record)
            reporter.step(f"{record.name}: {record.status}", len(records), total)
    return SelfTest(str(plan.bundle.folder), None if reference is None else reference.path, seed, tuple(records))


def _show(outcome: SelfTest, screen: Screen) -> None:
    screen.show(outcome.table())
    for fault in outcome.faults:
        if fault.status in ("missed", "without effect"):
            line = f"{fault.status}: {fault.name} (`{'`, `'.join(fault.places)}`): " + fault.detail
            screen.line((line, "bold red" if fault.status == "missed" else ""))


FLAGS: Mapping[str, Mapping[str, Instead]] = {
    "check": {
        "self_test": Instead(
            Option("Plant over a hundred kinds of faults in a copy instead, and count how many are detected."),
            Command(self_test, _show, examples=(), passed=lambda tested: tested.passed),
            "a self-test always covers the whole bundle",
        )
    }
}
"""Flags that the plug-in adds to commands."""
