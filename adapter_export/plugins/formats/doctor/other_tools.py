"""Rules by which other tools load adapters.

PEFT's own loader decides for PEFT. The rules of the others are those of their sources in 09/2026: `vllm/lora/utils.py`,
`lora_model.py` and `peft_helper.py` of vLLM, `convert_lora_to_gguf.py` and `llama-adapter.h` of llama.cpp, and
`adapters/loading.py` of AdapterHub.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from adapter_export.errors import InputError
from adapter_export.plugins.formats.doctor.adapter_files import PREFIX, AdapterFiles
from adapter_export.plugins.formats.doctor.diagnosis import Reads, ToolReading
from adapter_export.plugins.formats.importers.adapterhub.adapterhub_folder import names_of
from adapter_export.tables import number_of
from adapter_export.words import quoted

_NOT_PEFT = "it reads PEFT's `adapter_config.json` and `adapter_model.safetensors`"
_FACTORS = re.compile(r"\.(?:lora_[AB]\.weight|lora_embedding_[AB])$")
_EMBEDDING_WEIGHTS = (".embed_tokens.base_layer.weight", ".lm_head.base_layer.weight")


@dataclass(frozen=True)
class Reader:
    """An adapter, and the base as other tools open it.

    Attributes:
        files: the adapter's files.
        folder: the base's Hugging Face folder, if it is one.
        factors: the factor of each module that the adapter's own library applies, by module path.
        fits: whether the importer accepts it.
        misfit: first module whose matrices do not fit its layer, if any.
    """

    files: AdapterFiles
    folder: Path | None
    factors: Mapping[str, float]
    fits: bool = False
    misfit: str | None = None


def tool_readings(reader: Reader) -> tuple[ToolReading, ...]:
    """Return what each tool makes of an adapter."""
    return tuple(read(reader) for read in _TOOLS)


def _peft(reader: Reader) -> ToolReading:
    if reader.files.library != "PEFT":
        return ToolReading("PEFT", "refuses", reason="its config has no `peft_type`")
    if reader.folder is None or not (reader.folder / "config.json").is_file():
        return ToolReading("PEFT", "not asked", reason="pass the base as a Hugging Face folder")
    if find_spec("peft") is None or find_spec("transformers") is None:
        return ToolReading("PEFT", "not asked", reason="`peft` is not installed")
    from adapter_export.torch_backend.peft_model import loaded_keys

    try:
        keys = loaded_keys(reader.folder, reader.files.path, in_memory=reader.fits)
    except InputError as error:
        return ToolReading("PEFT", "refuses", reason=str(error.found))
    if not keys.unexpected and not keys.missing:
        return ToolReading("PEFT", "all")
    if not keys.unexpected:
        reason = f"expected but missing: {number_of(len(keys.missing), 'tensor')}, which stay as they were initialized"
        return ToolReading("PEFT", "all", reason=reason, missing=keys.missing)
    reason = f"no module of `{keys.model_class}` has the path of these"
    return ToolReading("PEFT", _share(keys.unexpected, reader), keys.unexpected, reason, missing=keys.missing)


def _vllm(reader: Reader) -> ToolReading:
    files, config = reader.files, reader.files.config
    if files.library != "PEFT":
        return ToolReading("vLLM", "refuses", reason=_NOT_PEFT)
    known = _served_modules(reader.folder)
    paths = {key: _FACTORS.sub("", key).replace(PREFIX, "") for key in files.tensors if _FACTORS.search(key)}
    refusals = [*_refusals_of_vllm(files, paths, known), *_misfits(reader)]
    if refusals:
        return ToolReading("vLLM", "refuses", reason="; ".join(refusals))
    ignored = tuple(key for key in files.tensors if key.endswith(_EMBEDDING_WEIGHTS))
    reason = "weights of embeddings are skipped" if ignored else ""
    outside = tuple(key for key, path in paths.items() if known and path not in known)
    if outside:
        reason = f"only ends of names are compared, and no module is called `{paths[outside[0]]}`"
    ignored += outside
    factor = _vllm_factor(config)
    return ToolReading("vLLM", _share(ignored, reader), ignored, reason, _other_factor(reader, lambda _: factor))


def _refusals_of_vllm(files: AdapterFiles, paths: Mapping[str, str], known: Collection[str]) -> Iterator[str]:
    config = files.config
    for name in ("r", "lora_alpha", "target_modules"):
        if config.get(name) is None:
            yield f"`{name}` is missing in the config"
    if config.get("modules_to_save"):
        yield "`modules_to_save` is not supported"
    if config.get("use_dora"):
        yield "DoRA is not supported"
    if config.get("bias", "none") != "none":
        yield "trained biases are not supported"
    others = [key for key in files.tensors if key not in paths and not key.endswith(_EMBEDDING_WEIGHTS)]
    if others:
        yield f"`{others[0]}` is no LoRA weight"
    unknown = sorted({path.rpartition(".")[2] for path in paths.values()} - {path.rpartition(".")[2] for path in known})
    if known and unknown:
        yield f"the model has no module named {quoted(unknown)}"


def _misfits(reader: Reader) -> list[str]:
    return [] if reader.misfit is None else [f"the matrices of `{reader.misfit}` do not fit its layer"]


def _vllm_factor(config: Mapping[str, object]) -> float | None:
    """Return the factor of all modules, by the config's alpha and rank."""
    alpha, rank = config.get("lora_alpha"), config.get("r")
    if not isinstance(alpha, int | float) or not isinstance(rank, int) or rank < 1:
        return None
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _llama_cpp(reader: Reader) -> ToolReading:
    files, config = reader.files, reader.files.config
    if files.library != "PEFT":
        return ToolReading("llama.cpp", "refuses", reason=_NOT_PEFT)
    if config.get("lora_alpha") is None:
        return ToolReading("llama.cpp", "refuses", reason="`lora_alpha` is missing in the config")
    ignored = tuple(key for key in files.tensors if key.endswith(".base_layer.weight"))
    norms = [key for key in files.tensors if "_layernorm" in key or ".norm" in key]
    others = [key for key in files.tensors if not _FACTORS.search(key) and key not in (*ignored, *norms)]
    if others:
        return ToolReading("llama.cpp", "refuses", reason=f"`{others[0]}` is not a LoRA weight")
    ranks = {
        key.removesuffix(".lora_A.weight").replace(PREFIX, ""): len(tensor)
        for key, tensor in files.tensors.items()
        if key.endswith(".lora_A.weight") and tensor.ndim == 2 and len(tensor)
    }
    known = _served_modules(reader.folder)
    outside = [path for path in ranks if known and path not in known]
    refusals = [*(f"the model has no tensor `{path}.weight`" for path in outside), *_misfits(reader)]
    if refusals:
        return ToolReading("llama.cpp", "refuses", reason=refusals[0])
    scale = _other_factor(reader, lambda path: _llama_cpp_factor(config, ranks.get(path)))
    reason = "saved weights of the base are skipped" if ignored else ""
    return ToolReading("llama.cpp", _share(ignored, reader), ignored, reason, scale)


def _llama_cpp_factor(config: Mapping[str, object], rank: int | None) -> float | None:
    """Return the factor of a module: alpha by its rank, and 1 if alpha is 0."""
    alpha = config["lora_alpha"]
    if not isinstance(alpha, int | float) or rank is None:
        return None
    return alpha / rank if alpha else 1.0


def _adapterhub(reader: Reader) -> ToolReading:
    files = reader.files
    if files.library != "AdapterHub":
        return ToolReading("AdapterHub", "refuses", reason="it reads `pytorch_adapter.bin` or `adapter.safetensors`")
    name = files.config.get("name")
    heads = tuple(key for key in files.tensors if key.startswith("heads."))
    names = names_of((key for key in files.tensors if key not in heads), str(name))
    reason = f"they do not belong to the adapter `{name}` of the config" if names.others else ""
    return ToolReading("AdapterHub", _share(names.others, reader), names.others, reason)


_TOOLS: tuple[Callable[[Reader], ToolReading], ...] = (_peft, _vllm, _llama_cpp, _adapterhub)


def _share(ignored: Collection[str], reader: Reader) -> Reads:
    if not ignored:
        return "all"
    return "none" if len(ignored) >= len(reader.files.tensors) else "part"


def _served_modules(folder: Path | None) -> frozenset[str]:
    """Return the module paths of the class that a folder names, which vLLM serves; empty if unknown."""
    if folder is None or find_spec("transformers") is None:
        return frozenset()
    from adapter_export.torch_backend.peft_model import named_modules

    try:
        return named_modules(folder)
    except InputError:  # transformers does not know the class
        return frozenset()


def _other_factor(reader: Reader, factor: Callable[[str], float | None]) -> str | None:
    """Return a sentence on the first module at which a tool applies another factor, if any."""
    for path, right in reader.factors.items():
        applied = factor(path)
        if applied is not None and not math.isclose(applied, right, rel_tol=1e-6):
            return f"scales `{path.rpartition('.')[2]}` by {applied:.4g} instead of {right:.4g}"
    return None
