"""What AdapterHub calls a config whose name its files do not hold: the class is lost when it is saved."""

from __future__ import annotations

from adapter_export.graph.kinds.adapterhub import BottleneckConfig

Shape = tuple[object, ...]

_NAMES: dict[Shape, str] = {
    # parallel, norm before, norm after, attention, ffn, Kronecker products, learned factors
    (False, True, True, False, True, False, False): "seq_bn",
    (False, False, True, True, True, False, False): "double_seq_bn",
    (True, False, True, False, True, False, False): "par_bn",
    (True, False, True, False, True, False, "learned"): "scaled_par_bn",
    (False, True, False, False, True, False, "channel"): "adapter_plus",
    (False, False, True, True, True, True, False): "compacter",
    (False, True, True, False, True, True, False): "compacter++",
}


def kind_of(config: BottleneckConfig) -> str:
    """The name of the kind with these placements; `bottleneck` for those without one."""
    learned = config.scaling if isinstance(config.scaling, str) else False
    placements = (config.original_ln_before, config.original_ln_after, config.mh_adapter, config.output_adapter)
    return _NAMES.get((config.is_parallel, *placements, config.phm_layer, learned), "bottleneck")
