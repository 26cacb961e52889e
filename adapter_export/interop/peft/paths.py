"""Module paths: those in the model that an adapter was trained in, and those in the base as it was captured.

The two differ in what stands before them: PEFT saw `bert.encoder.layer.0…` in a model with a head, and the base was
captured as `encoder.layer.0…`, or inside another module as `model.encoder.layer.0…`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from adapter_export.errors import AdapterError


@dataclass(frozen=True)
class Renaming:
    """What is taken from the front of a path of the adapter, and what is put there.

    Attributes:
        drop: such as `bert`; empty for nothing.
        add: such as `model`; empty for nothing. Only one of the two is not empty.
    """

    drop: str = ""
    add: str = ""

    def __call__(self, path: str) -> str | None:
        """The path in the base; none for a module that is not below `drop`, such as a head."""
        if self.drop and not path.startswith(f"{self.drop}."):
            return None
        rest = path[len(self.drop) + 1 :] if self.drop else path
        return f"{self.add}.{rest}" if self.add else rest

    def back(self, path: str) -> str | None:
        """The path in the adapter's model of one in the base, if it has one."""
        return Renaming(self.add, self.drop)(path)


def find_renaming(adapter: Collection[str], base: Collection[str], where: object) -> Renaming | None:
    """The one renaming under which the base has the most of the adapter's modules.

    One path must be the end of the other: `decoder.block.0…` is never taken for `encoder.block.0…`. Nor may a number
    be dropped, so that layer 5 is never taken for the only layer of a small base.

    Args:
        adapter: paths of the modules that the adapter acts on.
        base: paths of the base's linear layers.
        where: names the adapter in messages.

    Returns:
        The renaming; none where the base has none of the modules.

    Raises:
        AdapterError: two renamings fit equally well.
    """
    hits = {renaming: _hits(renaming, adapter, base) for renaming in _candidates(adapter, base)}
    best = [renaming for renaming, count in hits.items() if count == max(hits.values())]
    if Renaming() in best or not best:
        return Renaming() if best else None
    if len(best) == 1:
        return best[0]
    raise AdapterError(
        "its modules cannot be told apart in the base",
        where=where,
        found=", ".join(f"`{path}`" for path in sorted(adapter)),
        expected=f"one prefix, not {' and '.join(f'`{one.drop or one.add}`' for one in best)}",
        fix="give the base that it was trained on, captured with the same names of modules",
    )


def _candidates(adapter: Iterable[str], base: Iterable[str]) -> list[Renaming]:
    found = {_difference(one, other) for one in adapter for other in base}
    return sorted(
        (one for one in found if one is not None and not _has_number(one.drop)), key=lambda one: (one.drop, one.add)
    )


def _difference(adapter: str, base: str) -> Renaming | None:
    if adapter == base:
        return Renaming()
    if adapter.endswith(f".{base}"):
        return Renaming(drop=adapter[: -len(base) - 1])
    if base.endswith(f".{adapter}"):
        return Renaming(add=base[: -len(adapter) - 1])
    return None


def _has_number(prefix: str) -> bool:
    return any(part.isdecimal() for part in prefix.split("."))


def _hits(renaming: Renaming, adapter: Iterable[str], base: Collection[str]) -> int:
    return sum(renaming(path) in base for path in adapter)
