"""Match the modules of an adapter with sites of a base, by module path or by layer number.

Prefixes of module paths may differ: an adapter trained in a model with a head has `bert.encoder.layer.0…`, the captured
base `encoder.layer.0…`, or `model.encoder.layer.0…` inside another module. Other differences mean another model, unless
the user sets `by_number`, which matches other names and sites without paths.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from adapter_export.errors import AdapterError, OtherModulesError
from adapter_export.sites.site import LAYERS, SUBLAYERS, Role, Site, SiteMap
from adapter_export.words import argument, command, quoted

_SITES = command("open_base(MODEL).sites", "sites MODEL")


@dataclass(frozen=True)
class Target:
    """Location of an adapter's module in the model it was trained in.

    `stem` is the path of a linear layer or a lookup, or of a module that contains the last product of a sublayer of
    this role.
    """

    path: str
    stem: str
    role: Role = "linear"


@dataclass(frozen=True)
class Renaming:
    """A prefix removed from the adapter's module paths, such as `bert`, or added to them, such as `model`."""

    drop: str = ""
    add: str = ""

    def __call__(self, path: str) -> str | None:
        """Return the path in the base, or `None` for a module without the prefix `drop`, such as a head."""
        if self.drop and not path.startswith(f"{self.drop}."):
            return None
        rest = path[len(self.drop) + 1 :] if self.drop else path
        return f"{self.add}.{rest}" if self.add else rest

    def back(self, path: str) -> str | None:
        """Return the path in the adapter's model for a path in the base, if any."""
        return Renaming(self.add, self.drop)(path)


@dataclass(frozen=True)
class Match:
    """Sites of an adapter's modules, by module path.

    A module has several sites if the base calls it several times, and no site if it is missing. `known` are the
    candidate sites; `where` names the adapter in messages.
    """

    sites: Mapping[str, Sequence[Site]]
    renaming: Renaming
    by_number: bool
    known: Sequence[Site]
    where: object

    def require(self, paths: Collection[str]) -> None:
        """Raise AdapterError, listing modules that the base lacks or also calls outside of sites."""
        missing = [path for path in paths if not self.sites.get(path)]
        if missing:
            some = "pass a base that has these modules and depends on them, or train without them"
            raise _not_there(missing, self.known, self.where, some if len(missing) < len(paths) else None)
        twice = dict.fromkeys(site.path or site.name for path in paths for site in self.sites[path] if site.other_calls)
        if twice:
            raise AdapterError(
                "acts on layers that the base also calls on other values, such as relative positions, "
                "where adapters cannot act; the results would differ",
                where=self.where,
                found=quoted(twice),
                expected="layers that are called only at their sites",
                fix="merge the adapter into the base with its library, and use the result as a base; "
                "or train on other layers",
            )

    def modules(self) -> dict[str, str]:
        """Return the path of the module at each site, by site name; AdapterError for two modules at one site."""
        paths: dict[str, str] = {}
        for path, sites in self.sites.items():
            for site in sites:
                if paths.setdefault(site.name, path) != path:
                    raise AdapterError(
                        "two modules of the adapter act at one site",
                        where=f"`{site.name}`",
                        found=f"`{paths[site.name]}` and `{path}`",
                        expected="one module at each site",
                    )
        return paths

    def notes(self) -> tuple[str, ...]:
        """Notes on the match."""
        note = "module names of base and adapter differ: layers were matched by number"
        return (note,) if self.by_number else ()


def match(targets: Collection[Target], sites: SiteMap, where: object, *, by_number: bool = False) -> Match:
    """Find the sites of an adapter's modules, by layer number if no path matches and `by_number` is set.

    Raises:
        AdapterError: neither paths nor allowed numbers match, or paths match ambiguously.
    """
    roles = {target.role for target in targets}
    known = [
        site for site in sites if site.role in roles or ("linear" in roles and site.part_paths and site.role == "part")
    ]
    index = _index(known)
    renaming = find_renaming({target.stem for target in targets if _fits(target)}, {stem for _, stem in index}, where)
    if renaming is not None or not targets:
        renaming = renaming or Renaming()
        by_path = {
            target.path: index.get((target.role, renaming(target.stem) or ""), []) if _fits(target) else []
            for target in targets
        }
        for path, matched in by_path.items():
            _check_one_module(path, matched, where)
        return Match(by_path, renaming, False, known, where)
    numbered = sites_by_number(targets, sites)
    if numbered and by_number:
        return Match({path: (site,) for path, site in numbered.items()}, Renaming(), True, known, where)
    option = argument("by_number", True)
    fix = "if layers with equal numbers correspond, pass " + option + "; otherwise pass the base that it was trained on"
    if numbered:
        raise _not_there([target.path for target in targets], known, where, fix)
    # if most modules match by number, report the others
    lost = [path for path, site in _numbered(targets, sites).items() if site is None]
    if 0 < len(lost) < len(targets):
        fix = f"train without these; the other {len(targets) - len(lost)} match by number with " + option
        raise _not_there(lost, known, where, fix)
    raise _not_there([target.path for target in targets], known, where)


def check_architecture(adapter: str | None, base: str | None, *, by_number: bool) -> None:
    """Raise AdapterError if the architectures of an adapter's model and the base, such as `bert`, differ."""
    if adapter and base and not by_number and adapter.replace("-", "_") != base.replace("-", "_"):
        raise OtherModulesError(
            "was trained on another architecture",
            found=f"`{adapter}`",
            expected=f"`{base}`",
            fix="pass the model that it was trained on; or, if layers with equal numbers correspond, "
            + argument("by_number", True),
        )


def _index(sites: Iterable[Site]) -> dict[tuple[Role, str], list[Site]]:
    """Index sites by role and path: layers by their path, sublayers by every parent of their last layer."""
    sites_by_path: dict[tuple[Role, str], list[Site]] = {}
    for site in sites:
        names = [] if site.path is None else site.path.split(".")
        ends = range(1, len(names)) if site.role in SUBLAYERS else [len(names)] if names else []
        role: Role = "linear" if site.role == "part" else site.role
        for end in ends:
            sites_by_path.setdefault((role, ".".join(names[:end])), []).append(site)
    return sites_by_path


def _check_one_module(path: str, sites: Sequence[Site], where: object) -> None:
    """Raise AdapterError if a module contains several sublayers of a role, such as a language adapter beside a FFN."""
    modules = dict.fromkeys(site.path or site.name for site in sites)
    if len(modules) > 1:
        raise AdapterError(
            "a module of the adapter contains several sublayers of the base",
            where=where,
            found=f"`{path}`: {quoted(modules)}",
            expected="one sublayer in the module",
            fix="pass the model that it was trained on, with the same modules",
        )


def _fits(target: Target) -> bool:
    """Return whether a path identifies one layer; a module that contains all layers does not."""
    return target.role in ("linear", "lookup") or _has_number(target.stem)


def _not_there(paths: Sequence[str], known: Sequence[Site], where: object, fix: str | None = None) -> AdapterError:
    with_path = [site for site in known if site.path]
    shown = quoted(site.path for site in with_path[:3])
    roles = {site.role for site in known}
    lookups = "linear layers and lookups" if roles <= {"linear", "lookup"} else "sublayers"
    what = "linear layers" if roles <= {"linear"} else lookups
    return OtherModulesError(
        "acts on modules that the base does not have",
        where=where,
        found=quoted(paths),
        expected=f"some of its {len(with_path)} {what} with a path" + (f", such as {shown}" if shown else ""),
        fix=fix or "list the base's sites with " + _SITES + ", and pass the base that it was trained on",
    )


def find_renaming(adapter: Collection[str], base: Collection[str], where: object) -> Renaming | None:
    """Return the renaming that matches the most modules of the adapter, or `None`.

    One path must be a suffix of the other: `decoder.block.0…` never matches `encoder.block.0…`. Numbers are never
    dropped: layer 5 never matches the only layer of a small base. Raises AdapterError if two renamings fit equally
    well.
    """
    candidates = {_difference(path, other) for path in adapter for other in base}
    hits = {
        renaming: sum(renaming(path) in base for path in adapter)
        for renaming in candidates
        if renaming is not None and not _has_number(renaming.drop)
    }
    best = [renaming for renaming, count in hits.items() if count == max(hits.values())]
    if Renaming() in best or not best:
        return Renaming() if best else None
    if len(best) == 1:
        return best[0]
    raise AdapterError(
        "its modules match the base ambiguously",
        where=where,
        found=quoted(sorted(adapter)),
        expected=f"one prefix, not {' and '.join(sorted(f'`{renaming.drop or renaming.add}`' for renaming in best))}",
        fix="pass the base that it was trained on, captured with the same names of modules",
    )


def _difference(adapter: str, base: str) -> Renaming | None:
    if adapter == base:
        return Renaming()
    if adapter.endswith(f".{base}"):
        return Renaming(drop=adapter[: -len(base) - 1])
    if base.endswith(f".{adapter}"):
        return Renaming(add=base[: -len(adapter) - 1])
    return None


def _has_number(path: str) -> bool:
    return any(part.isdecimal() for part in path.split("."))


# Matching by number. Modules are renamed between versions: ViT's `encoder.layer.0.attention.attention.query` is
# `layers.0.attention.q_proj` in transformers 5. Graphs of other exporters have no module paths. The table maps names
# of sites to layer names in transformers.

_NAMES: Mapping[str, tuple[str, ...]] = {
    "attention.output": ("attention.output.dense", "o_proj", "out_proj", "out_lin"),
    "attention.query": ("query", "q_proj", "q_lin"),
    "attention.key": ("key", "k_proj", "k_lin"),
    "attention.value": ("value", "v_proj", "v_lin"),
    "ffn.up": ("intermediate.dense", "up_proj", "fc1", "lin1"),
    "ffn.gate": ("gate_proj",),
    "ffn.down": ("output.dense", "down_proj", "fc2", "lin2"),
}
"""Path suffixes by site name; the first match counts."""

_OTHER_STREAMS = ("decoder", "cross", "encoder_attn", "EncDec")
"""Words in paths of layers that do not correspond to encoder layers of the same number."""


def sites_by_number(targets: Collection[Target], sites: SiteMap) -> dict[str, Site]:
    """Find the site of each module by layer number, and name or role.

    Empty if a module has no unique number, an unknown name or a layer missing in the base, or if two share a site.
    """
    numbered = _numbered(targets, sites)
    complete = {path: site for path, site in numbered.items() if site is not None}
    apart = len({site.name for site in complete.values()}) == len(targets)
    return complete if apart and len(complete) == len(targets) else {}


def _numbered(targets: Collection[Target], sites: SiteMap) -> dict[str, Site | None]:
    """Return the site of each module by number and name, or `None`."""
    known = {site.name: site for site in sites.of_roles((*LAYERS, *SUBLAYERS))}
    sites_by_path: dict[str, Site | None] = {}
    for target in targets:
        numbers = [part for part in target.path.split(".") if part.isdecimal()]
        names: list[str] = [target.role]
        if target.role == "linear":
            path = f".{target.path}"
            names = [name for name, ends in _NAMES.items() if path.endswith(tuple(f".{end}" for end in ends))]
        clear = len(numbers) == 1 and names and not any(word in target.path for word in _OTHER_STREAMS)
        sites_by_path[target.path] = known.get(f"layers.{int(numbers[0])}.{names[0]}") if clear else None
    return sites_by_path


def alike(matched: Iterable[Site], sites: SiteMap) -> list[Site]:
    """Return unmatched sites with the name of a matched one, in any layer or stream."""
    inner_names = {site.name: inside(site) for site in matched}
    names = set(inner_names.values())
    return [site for site in sites.of_roles(LAYERS) if inside(site) in names and site.name not in inner_names]


def inside(site: Site) -> str:
    """Return a site's name without layer and stream: `attention.query` for `layers.3.attention.query`."""
    return site.name.partition("layers.")[2].partition(".")[2] or site.name
