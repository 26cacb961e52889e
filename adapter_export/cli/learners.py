"""What learns when `train` runs: an adapter of a kind with a head, or a fusion of adapters that stay as they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from adapter_export.cli.fusion_options import fused
from adapter_export.cli.places import check_site_map
from adapter_export.errors import BaseMismatchError

if TYPE_CHECKING:
    from adapter_export.cli.members import Members
    from adapter_export.graph.adapter import Adapter, Head
    from adapter_export.graph.kinds import Kind
    from adapter_export.sites.given import GivenSites
    from adapter_export.sites.site import SiteMap
    from adapter_export.torch.attach import AdaptedModel
    from adapter_export.torch.base import TorchBase


class Learner(Protocol):
    """What learns."""

    @property
    def start(self) -> str:
        """What its first weights are called, for messages."""

    @property
    def options(self) -> dict[str, Any]:
        """What the record says of it."""

    def attached(self, base: TorchBase, sites: SiteMap, name: str, head: Head, seed: int) -> AdaptedModel:
        """The base with it and a fresh head, ready to be trained."""

    def described(self, record: dict[str, Any], first: Adapter) -> dict[str, Any]:
        """The record of a run, with what else is known of the adapter before it."""


@dataclass(frozen=True)
class Fresh:
    """An adapter of a kind.

    Attributes:
        kind: what is computed, and where.
        scheme: how its first weights are drawn.
    """

    kind: Kind
    scheme: str

    @property
    def start(self) -> str:
        """The scheme."""
        return f"`{self.scheme}`"

    @property
    def options(self) -> dict[str, Any]:
        """The scheme."""
        return {"initialisation": self.scheme}

    def attached(self, base: TorchBase, sites: SiteMap, name: str, head: Head, seed: int) -> AdaptedModel:
        """The base with a fresh adapter."""
        from adapter_export.torch.attach import attach
        from adapter_export.torch.fresh import fresh_adapter

        made = fresh_adapter(
            self.kind, sites, name=name, base=base.fingerprint, scheme=self.scheme, seed=seed, head=head
        )
        return attach(base, made, sites=sites)

    def described(self, record: dict[str, Any], first: Adapter) -> dict[str, Any]:  # noqa: ARG002
        """The record as it is."""
        return record


@dataclass(frozen=True)
class Fusion:
    """A fusion of adapters.

    Attributes:
        chosen: its options, as the command line has them.
        members: the adapters.
        given: the site map of this call; none without one.
    """

    chosen: Mapping[str, Any]
    members: Members
    given: GivenSites | None

    @property
    def start(self) -> str:
        """The fusion, its members in it."""
        return f"the fresh fusion of {', '.join(f'`{adapter.name}`' for adapter in self.members.adapters)}"

    @property
    def options(self) -> dict[str, Any]:
        """What was chosen; the members are described elsewhere."""
        return {name: value for name, value in self.chosen.items() if name != "fuse"}

    def attached(self, base: TorchBase, sites: SiteMap, name: str, head: Head, seed: int) -> AdaptedModel:
        """The base with the fusion, of which the members do not learn.

        Raises:
            BaseMismatchError: a member was trained on another base.
            UsageError, AdapterError: the members do not go together.
        """
        from adapter_export.graph.compose.members import own_tensors
        from adapter_export.torch.attach import attach
        from adapter_export.torch.fresh import with_head

        for adapter in self.members.adapters:
            if adapter.base != base.fingerprint:
                raise BaseMismatchError(
                    adapter.name, found=adapter.base, expected=base.fingerprint, can_be_allowed=False
                )
        check_site_map(self.members.adapters, self.given)
        made = fused(self.chosen, self.members.adapters, name, seed)
        whole = with_head(made, head, seed=seed)
        fresh = [tensor for tensor in whole.weights if tensor not in made.weights]
        return attach(base, whole, sites=sites, learned=[*own_tensors(made), *fresh])

    def described(self, record: dict[str, Any], first: Adapter) -> dict[str, Any]:
        """With the members."""
        return self.members.described({**record, **first.training})
