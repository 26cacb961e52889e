"""The report of `adapter-export check --self-test --json`, as records; schema `self-test`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from adapter_export.format.records import SEMVER

SELF_TEST_VERSION = "1.0.0"
"""The version of the format."""

FaultStatus = Literal["located", "found", "missed", "without effect", "not applicable"]


@dataclass(frozen=True)
class FaultRecord:
    """One kind of fault that was planted in a copy of the bundle.

    Attributes:
        name: what is wrong.
        area: where.
        status: `located` if the check failed and named one of the `places`; `found` if it failed; `missed` if it
            passed; `without effect` if it passed and every output has the same bits as before; `not applicable` if
            there is nothing in the bundle that can be wrong in this way.
        places: the names of what was changed.
        detail: what the check said.
    """

    name: str
    area: str
    status: FaultStatus
    places: tuple[str, ...]
    detail: str


@dataclass(frozen=True)
class SelfTestReport:
    """How many planted faults a check finds and locates.

    Attributes:
        version: the version of this format. A reader refuses another major version.
        bundle: the path of the bundle, as it was given.
        against: the path of the model; null if only golden vectors were used.
        seed: what chose the places.
        faults: every kind, in the order in which they were planted.
    """

    version: Annotated[str, SEMVER]
    bundle: str
    against: str | None
    seed: int
    faults: tuple[FaultRecord, ...]
