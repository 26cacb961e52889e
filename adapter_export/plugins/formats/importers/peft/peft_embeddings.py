"""Import of changed embeddings: LoRA, trained rows, and whole tables in `modules_to_save`.

PEFT replaces rows; here, their difference to the rows of the base is added. Rows of a table that is also the matrix of
a language head change the head, too, as in PEFT.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np

from adapter_export.errors import AdapterError
from adapter_export.graph.graph import AdapterGraph
from adapter_export.graph.kinds.lookup import (
    changed_columns_graph,
    changed_rows_graph,
    changed_table_graph,
    lookup_lora_graph,
)
from adapter_export.graph.ops import INDEX_BASE
from adapter_export.numerics.lookup_tables import LookupTable
from adapter_export.plugins.formats.importers.peft.peft_folder import EMBEDDING_A, EMBEDDING_B, TRAINED_ROWS, Sorted
from adapter_export.plugins.formats.importers.peft.peft_options import Options
from adapter_export.plugins.formats.importers.tensor_map import Recipe, TensorMap, transposed
from adapter_export.sites.site import Site
from adapter_export.tables import number_of
from adapter_export.words import quoted

_MOST_TOKENS = INDEX_BASE**2
"""Tokens that two digits can number."""

_FEW = 8
"""A saved table with at most an eighth of its rows changed becomes a small table of these rows."""

_LORA = {
    "lora_A.weight": transposed(EMBEDDING_A, ("d_in", "r")),
    "lora_B.weight": transposed(EMBEDDING_B, ("r", "d")),
}

WEIGHT = "weight"
"""Role of a whole table."""


_KNOWN = frozenset({EMBEDDING_A, EMBEDDING_B, TRAINED_ROWS, WEIGHT})


class EmbeddingBase(Protocol):
    """The base of an import, with names of the adapter's model."""

    def lookup(self, path: str) -> Site | None:
        """Return the lookup of an embedding."""

    def sites(self, path: str) -> Sequence[Site]:
        """Return the calls of a linear layer."""

    def table(self, site: Site) -> LookupTable | None:
        """Return the table of a lookup."""

    def bias(self, path: str) -> np.ndarray | None:
        """Return the bias of a linear layer."""

    @property
    def lookup_names(self) -> Sequence[str]:
        """Names of all lookups of the base."""


@dataclass(frozen=True)
class ChangedRows:
    """Rows of a table that an adapter changes: the ids of the tokens, and the differences [n, width] to the base's."""

    ids: np.ndarray
    change: np.ndarray


def take_saved(sorted_keys: Sorted, base: EmbeddingBase) -> None:
    """Move the fully trained modules that are embeddings of the base from the saved modules to the embeddings."""
    for path in [path for path in sorted_keys.saved if base.lookup(path) is not None]:
        sorted_keys.embeddings.setdefault(path, {}).update(sorted_keys.saved.pop(path))


def place_embeddings(
    sorted_keys: Sorted, mapped: TensorMap, options: Options, base: EmbeddingBase, where: object
) -> dict[str, int]:
    """Place all changed embeddings; return the bytes of whole tables at each site.

    Raises:
        AdapterError: a change cannot be expressed, or does not fit the base; the message lists all.
    """
    placer = _Placer(mapped, options, base)
    copies = [path for path in sorted_keys.embeddings if _is_copy(path, sorted_keys, mapped, base)]
    faults = [
        fault
        for path, keys in sorted_keys.embeddings.items()
        if path not in copies
        for fault in placer.faults(path, keys)
    ]
    if faults:
        raise AdapterError(
            "has changed embeddings that cannot be expressed",
            where=where,
            found="; ".join(faults),
            expected="tables of the base in which it looks up the ids of a request, with as many tokens: "
            + (quoted(base.lookup_names) or "this base shows none"),
            fix="pass the base and the vocabulary that it was trained with, or train it without these modules",
        )
    for path, keys in sorted_keys.embeddings.items():
        mapped.forget(keys.values())
        if path not in copies:
            placer.place(path, keys)
    return placer.cost


def _is_copy(path: str, sorted_keys: Sorted, mapped: TensorMap, base: EmbeddingBase) -> bool:
    """Return whether a module's rows are those of an embedding, saved again for the head that is tied to it."""
    key = sorted_keys.embeddings[path].get(TRAINED_ROWS)
    if key is None or base.lookup(path) is not None:
        return False
    rows = mapped.tensors[key]
    embeddings = [other for other in sorted_keys.embeddings if base.lookup(other) is not None]
    keys = [sorted_keys.embeddings[other].get(TRAINED_ROWS) for other in embeddings]
    is_equal = any(key is not None and np.array_equal(mapped.tensors[key], rows) for key in keys)
    return is_equal and all(site in _tied(base, embeddings) for site in base.sites(path))


def _tied(base: EmbeddingBase, embeddings: Sequence[str]) -> list[Site]:
    lookups = [site for path in embeddings if (site := base.lookup(path)) is not None]
    tables = [table for site in lookups if (table := base.table(site)) is not None]
    return [site for table in tables for site in table.tied]


class _Placer:
    """Places changes at lookups and, for tied tables, at language heads; `cost` are bytes of whole tables by site."""

    def __init__(self, mapped: TensorMap, options: Options, base: EmbeddingBase) -> None:
        self._mapped, self._options, self._base = mapped, options, base
        self._names: dict[float, str] = {}
        self.cost: dict[str, int] = {}

    def faults(self, path: str, keys: Mapping[str, str]) -> Iterator[str]:
        """Yield the reasons why the change of an embedding cannot be placed."""
        site, table = self._base.lookup(path), None
        if site is None:
            yield f"`{path}`, at which the base looks up no ids of a request"
            return
        shapes = {role: self._mapped.tensors[key].shape for role, key in keys.items()}
        kinds = [EMBEDDING_A in keys or EMBEDDING_B in keys, TRAINED_ROWS in keys, WEIGHT in keys]
        if self._options.of_weights and TRAINED_ROWS not in keys:
            yield f"`{path}`: DoRA, PiSSA and OLoRA of an embedding also depend on its table"
        elif sum(kinds) != 1 or set(keys) - _KNOWN:
            yield f"`{path}` has more than one change: {quoted(keys)}"
        elif EMBEDDING_A in keys or EMBEDDING_B in keys:
            yield from self._faults_of_lora(path, site, shapes)
        else:
            table = self._base.table(site)
            if table is None:
                yield f"`{path}`: the base does not show the numbers of its table, which trained rows replace"
            elif TRAINED_ROWS in keys:
                yield from self._faults_of_rows(path, site, table, shapes[TRAINED_ROWS])
            elif shapes[WEIGHT] != table.rows.shape:
                yield _other_vocabulary(path, shapes[WEIGHT][0], site)

    def _faults_of_lora(self, path: str, site: Site, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[str]:
        missing = {EMBEDDING_A, EMBEDDING_B} - shapes.keys()
        if missing:
            yield f"`{path}` lacks {quoted(sorted(missing))}"
        elif shapes[EMBEDDING_A][-1] != site.width_in:
            yield _other_vocabulary(path, shapes[EMBEDDING_A][-1], site)

    def _faults_of_rows(self, path: str, site: Site, table: LookupTable, shape: tuple[int, ...]) -> Iterator[str]:
        ids = self._ids(path)
        outside = [token for token in ids if not 0 <= token < site.width_in]
        if shape != (len(ids), site.width):
            yield f"`{path}` has rows {list(shape)} for {number_of(len(ids), 'token')} of width {site.width}"
        elif len(set(ids)) < len(ids):
            twice = quoted(str(token) for token, times in Counter(ids).items() if times > 1)
            yield f"`{path}` has two rows for {twice}"
        elif outside:
            yield f"`{path}` has rows of the tokens {outside}, and the base has {site.width_in:,}: {_NEW_TOKENS}"
        elif site.width_in > _MOST_TOKENS:
            yield f"`{path}` has more tokens than can be numbered, {_MOST_TOKENS:,}"
        if table.alike:
            names = quoted(head.name for head in table.alike)
            yield f"{names} has the numbers of `{path}` in a separate matrix: whether PEFT changes both is unknown"
        for head in table.tied:
            if self._base.bias(head.path or "") is not None:
                yield f"`{head.name}` is tied to `{path}` and has a bias, which PEFT leaves out there"

    def place(self, path: str, keys: Mapping[str, str]) -> None:
        """Place the change of an embedding."""
        site = self._base.lookup(path)
        assert site is not None  # as `faults` has checked
        if EMBEDDING_A in keys:
            self._place_lora(path, site, keys)
            return
        table = self._base.table(site)
        assert table is not None  # as `faults` has checked
        if TRAINED_ROWS in keys:
            ids, rows = np.array(self._ids(path)), self._mapped.tensors[keys[TRAINED_ROWS]]
            self._place_rows(site, ChangedRows(ids, _difference(rows, table.rows[ids])), table.tied)
            return
        ids = np.flatnonzero((self._mapped.tensors[keys[WEIGHT]] != table.rows).any(1))
        if len(ids) * _FEW <= site.width_in:
            rows = self._mapped.tensors[keys[WEIGHT]][ids]
            self._place_rows(site, ChangedRows(ids, _difference(rows, table.rows[ids])))
            return
        change = {"table.weight": _difference(self._mapped.tensors[keys[WEIGHT]], table.rows)}
        self._put(site, "table", changed_table_graph(), change, {"d": site.width, "d_in": site.width_in})
        self.cost[site.name] = 4 * site.width * site.width_in

    def _place_lora(self, path: str, site: Site, keys: Mapping[str, str]) -> None:
        factor = self._options.factor_at(path)
        name = self._names.setdefault(factor, "lora_lookup" + (f"_{len(self._names) + 1}" if self._names else ""))
        widths = {"d": site.width, "d_in": site.width_in, "r": self._options.rank_at(path)}
        self._mapped.place(site, name, lookup_lora_graph(factor), _LORA, widths, keys)

    def _place_rows(self, site: Site, rows: ChangedRows, heads: Sequence[Site] = ()) -> None:
        """Place changed rows, and the columns of the heads that are tied to their table."""
        if not len(rows.ids):
            return
        high, low = np.divmod(rows.ids, INDEX_BASE)
        numbers, widths = {"tokens.high": high, "tokens.low": low}, {"n": len(rows.ids)}
        at_site = {**widths, "d": site.width}
        self._put(site, "rows", changed_rows_graph(), {**numbers, "rows.weight": rows.change}, at_site)
        for head in heads:
            tensors = {"rows.weight": rows.change.T, **numbers}
            self._put(head, "columns", changed_columns_graph(), tensors, {**widths, "d_in": head.width_in})

    def _put(
        self, site: Site, name: str, graph: AdapterGraph, tensors: Mapping[str, np.ndarray], widths: Mapping[str, int]
    ) -> None:
        if site.name in self._mapped.placements:
            self._mapped.fault(f"`{site.name}` would have two changes, of its own weight and of the rows tied to it")
            return
        recipes = {parameter: Recipe((), partial(np.asarray, tensor)) for parameter, tensor in tensors.items()}
        self._mapped.place(site, name, graph, recipes, widths, {})

    def _ids(self, path: str) -> tuple[int, ...]:
        tokens = self._options.tokens
        names = (name for name in tokens if not name or path == name or path.endswith(f".{name}"))
        return next((tokens[name] for name in names), ())


_NEW_TOKENS = (
    "new tokens need a base whose table has rows for them, "
    "such as the model after `resize_token_embeddings`, saved with its tokenizer"
)


def _other_vocabulary(path: str, tokens: int, site: Site) -> str:
    return f"`{path}` is for {tokens:,} tokens, and the base has {site.width_in:,}: {_NEW_TOKENS}"


def _difference(rows: np.ndarray, before: np.ndarray) -> np.ndarray:
    return np.asarray(rows.astype(np.float64) - before)
