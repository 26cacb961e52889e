"""AdapterHub's bottlenecks: its named kinds, and every field of its configuration (adapters 1.3, `BnConfig`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from adapter_export.errors import UsageError
from adapter_export.graph.kinds.bottleneck import (
    BottleneckOptions,
    Scaling,
    Source,
    Wiring,
    bottleneck_maker,
    bottleneck_widths,
    graph_name,
    wired,
)
from adapter_export.graph.kinds.coupling import nice_component
from adapter_export.graph.kinds.kind import Component, Kind, Places, RelativeWidth, per_layer
from adapter_export.graph.ops import activation_named
from adapter_export.words import quoted

_NORMED = Wiring(reads="normed")

seq_bn = bottleneck_maker(
    "seq_bn",
    "`h + s·U(f(D base_norm(h + x)))` after the FFN: AdapterHub's `seq_bn`, once called `pfeiffer`",
    _NORMED,
    ("ffn",),
    BottleneckOptions("relu"),
    width=RelativeWidth("d", 16),
    scheme="normal",
)
double_seq_bn = bottleneck_maker(
    "double_seq_bn",
    "`h + s·U(f(D h))` after attention and after the FFN: AdapterHub's `double_seq_bn`, once called `houlsby`",
    Wiring(),
    ("attention", "ffn"),
    BottleneckOptions("silu"),
    width=RelativeWidth("d", 16),
    scheme="normal",
)
par_bn = bottleneck_maker(
    "par_bn",
    "`h + 4·U(f(D x))` beside the FFN: AdapterHub's `par_bn`; it reads `x` where the paper's reads `u`",
    Wiring(reads="x"),
    ("ffn",),
    BottleneckOptions("relu", 4.0),
    width=RelativeWidth("d", 2),
    scheme="kaiming_zero_up",
)
scaled_par_bn = bottleneck_maker(
    "scaled_par_bn",
    "`h + s·U(f(D x))` beside the FFN, `s` learned: AdapterHub's `scaled_par_bn` (He et al. 2022, §3.3)",
    Wiring(reads="x"),
    ("ffn",),
    BottleneckOptions("relu", "learned"),
    width=RelativeWidth("d", 2),
    scheme="kaiming_zero_up",
)
adapter_plus = bottleneck_maker(
    "adapter_plus",
    "`y + c⊙U(f(D y))` replaces the block's output `y` (Steitz & Roth 2024, §3)",
    Wiring(reads="normed", residual="read", replaces="y"),
    ("ffn",),
    BottleneckOptions("gelu", "channel", drop_path=0.1),
    width=RelativeWidth("d", 96),
)
compacter = bottleneck_maker(
    "compacter",
    "`double_seq_bn` whose projections are sums of Kronecker products (Mahabadi et al. 2021, §3)",
    Wiring(),
    ("attention", "ffn"),
    BottleneckOptions("gelu", phm_dim=4),
    width=RelativeWidth("d", 32),
    scheme="normal",
)
compacter_plus_plus = bottleneck_maker(
    "compacter++",
    "`seq_bn` whose projections are sums of Kronecker products (Mahabadi et al. 2021, §3)",
    _NORMED,
    ("ffn",),
    BottleneckOptions("gelu", phm_dim=4),
    width=RelativeWidth("d", 32),
    scheme="normal",
)


_INITIALISATIONS: Mapping[str, str] = {"bert": "normal", "mam_adapter": "kaiming_zero_up", "houlsby": "small_normal"}


@dataclass(frozen=True)
class BottleneckConfig:
    """AdapterHub's `BnConfig`: its fields by their own names, with its defaults.

    The `reduction_factor` is by layer number, with `default`, where layers differ. The residual is `h`, with
    `residual_before_ln` False the value read, with `post_add` `h + x`. `init_weights_seed`, `phm_c_init`,
    `phm_init_range`, `learn_phm` and `hypercomplex_nonlinearity` have no effect, as they only affect initial weights.
    An importer brings weights into the form of `phm_linear`: a factorised rule multiplied out, a full factor W as
    `left` W and `right` the identity, missing biases as zeros.
    """

    mh_adapter: bool
    output_adapter: bool
    reduction_factor: float | Mapping[str, float]
    non_linearity: str
    original_ln_before: bool = False
    original_ln_after: bool = True
    ln_before: bool = False
    ln_after: bool = False
    init_weights: str = "bert"
    init_weights_seed: int | None = None
    is_parallel: bool = False
    scaling: float | str = 1.0
    use_gating: bool = False
    residual_before_ln: bool | str = True
    adapter_residual_before_ln: bool = False
    inv_adapter: str | None = None
    inv_adapter_reduction_factor: float | None = None
    cross_adapter: bool = False
    leave_out: tuple[int, ...] = ()
    dropout: float = 0.0
    phm_layer: bool = False
    phm_dim: int = 4
    factorized_phm_W: bool = True  # noqa: N815 - AdapterHub's name
    shared_W_phm: bool = False  # noqa: N815
    shared_phm_rule: bool = True
    factorized_phm_rule: bool = False
    phm_c_init: str = "normal"
    phm_init_range: float = 1e-4
    learn_phm: bool = True
    hypercomplex_nonlinearity: str = "glorot-uniform"
    phm_rank: int = 1
    phm_bias: bool = True
    stochastic_depth: float = 0.0

    def wiring(self) -> Wiring:
        """Its connections to the base, as in `pre_forward` and `post_forward` of `methods/bottleneck.py`.

        Raises `UsageError` if the residual is taken after a sum that this configuration does not make.
        """
        replaces: Literal["h", "y"] = "h" if self.original_ln_after else "y"
        if self.is_parallel:
            return Wiring("x", "h", replaces)
        reads: Source = "normed" if self.original_ln_before else "h"
        inside = self.adapter_residual_before_ln
        if self.residual_before_ln == "post_add":
            if not self.original_ln_before:
                raise UsageError(
                    "`residual_before_ln` is `post_add`, and nothing is added before the adapter",
                    expected="`original_ln_before`",
                    fix="AdapterHub cannot run this configuration either; choose another residual",
                )
            return Wiring(reads, "sum", replaces, inside)
        return Wiring(reads, "h" if self.residual_before_ln is True else "read", replaces, inside)

    def options(self) -> BottleneckOptions:
        """Return the steps between the value that is read and the sum."""
        named: Mapping[str, Scaling] = {"learned": "learned", "channel": "channel"}
        if isinstance(self.scaling, str) and self.scaling not in named:
            raise UsageError("unknown scaling", found=f"`{self.scaling}`", expected="a number, `learned` or `channel`")
        return BottleneckOptions(
            activation=activation_named(self.non_linearity),
            scaling=named[self.scaling] if isinstance(self.scaling, str) else float(self.scaling),
            norm_before=self.ln_before,
            norm_after=self.ln_after,
            dropout=self.dropout,
            drop_path=0.0 if self.is_parallel else self.stochastic_depth,
            gate=self.use_gating,
            phm_dim=self.phm_dim if self.phm_layer else None,
            phm_rank=self.phm_rank if self.phm_layer else None,
            phm_shared_rule=self.shared_phm_rule,
            phm_shared_weights=self.shared_W_phm,
        )


def bottleneck_config(config: BottleneckConfig, name: str = "bottleneck") -> Kind:
    """Return the kind of an AdapterHub configuration: `bottleneck` graphs and, before them, an invertible one.

    Raises `UsageError` if it contradicts itself, or asks for what has no graph here.
    """
    if config.inv_adapter not in (None, "nice"):
        raise UsageError(
            "an invertible adapter that cannot be computed",
            found=f"`inv_adapter`: `{config.inv_adapter}`",
            expected="`nice`",
            fix="AdapterHub's own `glow` fails in every forward pass" if config.inv_adapter == "glow" else None,
        )
    if not (config.mh_adapter or config.cross_adapter or config.output_adapter or config.inv_adapter):
        expected = "`mh_adapter`, `cross_adapter`, `output_adapter` or `inv_adapter`"
        raise UsageError("the configuration acts nowhere", expected=expected)
    if config.init_weights not in _INITIALISATIONS:
        known = quoted(_INITIALISATIONS)
        raise UsageError("unknown `init_weights`", found=f"`{config.init_weights}`", expected=known)
    if config.residual_before_ln not in (True, False, "post_add"):
        shown = f"`{config.residual_before_ln}`"
        raise UsageError("unknown `residual_before_ln`", found=shown, expected="true, false or `post_add`")
    wiring, options = config.wiring(), config.options()
    components: list[Component] = []
    if config.inv_adapter is not None:
        if config.inv_adapter_reduction_factor is None:
            expected = "a number, such as 2"
            raise UsageError("an invertible adapter has no `inv_adapter_reduction_factor`", expected=expected)
        components.append(nice_component(options.activation, config.inv_adapter_reduction_factor))
    chosen = {"attention": config.mh_adapter, "cross_attention": config.cross_adapter, "ffn": config.output_adapter}
    roles = [role for role, is_chosen in chosen.items() if is_chosen]
    if roles:
        places = Places(tuple(roles), leave_out=tuple(config.leave_out))
        widths = bottleneck_widths(options, per_layer(config.reduction_factor))
        components.append(Component(graph_name(wiring, options), wired(wiring, options), places, widths))
    return Kind(name, tuple(components), _INITIALISATIONS[config.init_weights], width="b" if roles else None)
