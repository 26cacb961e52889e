"""Graphs at lookups of tokens, `u` the ids and `h` the rows: LoRA, changed rows, and the columns of a tied head."""

from __future__ import annotations

from adapter_export.graph.chain import Chain
from adapter_export.graph.graph import AdapterGraph
from adapter_export.graph.ops import Shape

_TOKENS: dict[str, Shape] = {"high": ("n",), "low": ("n",)}


def lookup_lora_graph(factor: float) -> AdapterGraph:
    """`h + factor·B(A[u])`, `A[u]` the rows of A of the ids: LoRA on a lookup (PEFT).

    Parameters `lora_A.weight` [d_in, r], `lora_B.weight` [r, d]. Raises `UsageError` for a factor that is not finite.
    """
    chain = Chain("u")
    chain.owned("lookup", "lora_A", {"weight": ("d_in", "r")})
    chain.linear("lora_B", "r", "d", bias=False)
    chain.scale(factor)
    return _added(chain)


def changed_rows_graph() -> AdapterGraph:
    """`h + Δ[i]` where the id is that of the i-th of n tokens, and `h` elsewhere.

    Parameters `tokens.high` and `tokens.low` [n], the two digits of each id, and `rows.weight` [n, d].
    """
    chain = Chain("u")
    chain.owned("one_hot", "tokens", _TOKENS)
    chain.linear("rows", "n", "d", bias=False)
    return _added(chain)


def changed_columns_graph() -> AdapterGraph:
    """`h + Δ[i]·u` at the logit of the i-th of n tokens, and `h` elsewhere: changed rows of a tied language head.

    Parameters as of `changed_rows_graph`, with `rows.weight` [d_in, n].
    """
    chain = Chain("u")
    chain.linear("rows", "d_in", "n", bias=False)
    chain.parameters |= {f"tokens.{role}": shape for role, shape in _TOKENS.items()}
    chain.op("scatter", "logits", "h", parameters={role: f"tokens.{role}" for role in _TOKENS})
    return _added(chain)


def changed_table_graph() -> AdapterGraph:
    """`h + Δ[u]`, Δ [d_in, d] a change of the whole table, `table.weight`."""
    chain = Chain("u")
    chain.owned("lookup", "table", {"weight": ("d_in", "d")})
    return _added(chain)


def _added(chain: Chain) -> AdapterGraph:
    """Return the graph that adds the last value to `h`."""
    change, chain.value = chain.value, "h"
    chain.op("add", "result", change)
    return chain.graph()
