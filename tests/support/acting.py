"""Oracle: a live module with hooks in place of an adapter, at paths listed by a person.

The hooks are independent of sites, graphs and slots.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adapter_export.graph.adapter import Adapter


def bottlenecks(adapter: Adapter) -> dict[str, Callable[[Tensor], Tensor]]:
    """Return the bottleneck function of each site (Houlsby et al. 2019, figure 2)."""

    def at(site: str) -> Callable[[Tensor], Tensor]:
        names = ("down.weight", "down.bias", "up.weight", "up.bias")
        down, down_bias, up, up_bias = (torch.from_numpy(adapter.weights[f"{site}.{name}"]) for name in names)
        return lambda h: h + F.gelu(h @ down + down_bias) @ up + up_bias

    return {site: at(site) for site in adapter.placements}


def with_hooks(
    module: nn.Module, places: Iterable[Sequence[str]], adapter: Adapter | None, compute: Callable[[], Tensor]
) -> np.ndarray:
    """Run a live module with bottlenecks after the modules whose results are `h`.

    `places` maps sites to the paths of these; a module called twice has two sites.
    """
    waiting: dict[str, list[Callable[[Tensor], Tensor]]] = defaultdict(list)
    if adapter is not None:
        acting = bottlenecks(adapter)
        for site, path in places:
            waiting[path].append(acting[site])

    def hook(path: str) -> Callable[..., object]:
        def adapt(_module: object, _args: object, result: Tensor | tuple[Tensor, ...]) -> object:
            act = waiting[path].pop(0)
            return (act(result[0]), *result[1:]) if isinstance(result, tuple) else act(result)

        return adapt

    handles = [module.get_submodule(path).register_forward_hook(hook(path)) for path in waiting]
    with torch.no_grad(), unfused():
        result = compute()
    for handle in handles:
        handle.remove()
    assert not any(waiting.values())
    return result.numpy()


@contextmanager
def unfused() -> Iterator[None]:
    """Torch's fused path for whole layers calls none of the modules in them."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    yield
    torch.backends.mha.set_fastpath_enabled(before)
