"""Export a frozen base model and its adapters to one ONNX graph with swappable adapter weights.

::

    import adapter_export as ae

    base = ae.capture("huggingface-folder", "model.pt")
    bundle = ae.build(base, ["a", "b"], "bundle")
    ae.check(bundle, against=base).raise_for_failure()
    session = bundle.session()

Every command of `adapter-export` is one of these calls. `docs/how-to/python.md` shows them, `adapter_export.errors` the
exceptions. Importing this package loads neither torch nor onnx. It disables ONNX Runtime's telemetry unless
`ORT_DISABLE_TELEMETRY` is set (`docs/explanation/security.md`).
"""

import importlib
import os
from typing import TYPE_CHECKING

from adapter_export import errors
from adapter_export.bases.adapters import load_adapter, save
from adapter_export.bases.base import Base
from adapter_export.bases.opening import open_base
from adapter_export.bases.sites import Sites
from adapter_export.bundle.open_bundle import open_bundle
from adapter_export.bundle.verify_signature import verify_signature
from adapter_export.commands.adapters.compose import compose
from adapter_export.commands.adapters.merge import merge
from adapter_export.commands.bundles.add import add
from adapter_export.commands.bundles.build import build
from adapter_export.commands.bundles.check import check
from adapter_export.commands.bundles.generate import generate
from adapter_export.commands.bundles.inspect import Inspection, inspect
from adapter_export.commands.bundles.remove import remove
from adapter_export.commands.bundles.sign import sign
from adapter_export.commands.bundles.verify import verify
from adapter_export.commands.models.capture import capture
from adapter_export.commands.models.identify import identify
from adapter_export.commands.training._trainer import trainer_callback
from adapter_export.commands.training.train import train
from adapter_export.plugin import public_calls
from adapter_export.reporting import Reporter
from adapter_export.training.attach import attach
from adapter_export.version import __version__

if TYPE_CHECKING:  # for annotations; each loads more than a program may need
    from adapter_export.bundle.report import Report as Report
    from adapter_export.bundle.signature import Signature as Signature
    from adapter_export.graph.adapter import Adapter as Adapter
    from adapter_export.plugins.formats.commands.doctor import doctor as doctor
    from adapter_export.plugins.formats.commands.export import export as export
    from adapter_export.plugins.formats.commands.import_.adapterhub import import_adapterhub as import_adapterhub
    from adapter_export.plugins.formats.commands.import_.finetuned import import_finetuned as import_finetuned
    from adapter_export.plugins.formats.commands.import_.peft import import_peft as import_peft
    from adapter_export.plugins.formats.commands.pack import pack as pack
    from adapter_export.plugins.hub.commands.pull import pull as pull
    from adapter_export.plugins.hub.commands.push import push as push
    from adapter_export.plugins.hub.fetch import Fetched as Fetched
    from adapter_export.plugins.hub.push import Pushed as Pushed
    from adapter_export.plugins.lab.adapter_costs import Plan as Plan
    from adapter_export.plugins.lab.commands.bench import bench as bench
    from adapter_export.plugins.lab.commands.compare import compare as compare
    from adapter_export.plugins.lab.commands.distil import distil as distil
    from adapter_export.plugins.lab.commands.drop import drop as drop
    from adapter_export.plugins.lab.commands.evaluate import evaluate as evaluate
    from adapter_export.plugins.lab.commands.lint import lint as lint
    from adapter_export.plugins.lab.commands.plan import plan as plan
    from adapter_export.plugins.lab.commands.sweep import sweep as sweep
    from adapter_export.plugins.lab.comparison import Comparison as Comparison
    from adapter_export.plugins.lab.evaluation import Evaluation as Evaluation
    from adapter_export.plugins.lab.layer_drop import Drop as Drop
    from adapter_export.plugins.lab.mistakes import Lint as Lint
    from adapter_export.plugins.lab.speed.concurrency import Benchmark as Benchmark
    from adapter_export.plugins.lab.student import Distillation as Distillation
    from adapter_export.plugins.lab.sweep_results import Sweep as Sweep
    from adapter_export.plugins.selftest.planted_faults import self_test as self_test
    from adapter_export.plugins.serve.commands.serve import serve as serve
    from adapter_export.plugins.ship.commands.ship import ship as ship
    from adapter_export.plugins.ship.layout import Shipped as Shipped
    from adapter_export.plugins.tables.commands.run_many import run_many as run_many
    from adapter_export.runtime import Bundle as Bundle

# ONNX Runtime 1.29 and later report models and machines to Microsoft, unless this is set before it is imported
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


def __getattr__(name: str) -> object:
    """Return a public call of a plug-in, imported when it is first asked for (PEP 562)."""
    module = public_calls().get(name)
    if module is None:
        raise AttributeError(f"module `adapter_export` has no attribute `{name}`")
    call = getattr(importlib.import_module(module), name)
    globals()[name] = call
    return call


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


__all__ = [
    "Base",
    "Inspection",
    "Reporter",
    "Sites",
    "__version__",
    "add",
    "attach",
    "build",
    "capture",
    "check",
    "compose",
    "errors",
    "generate",
    "identify",
    "inspect",
    "load_adapter",
    "merge",
    "open_base",
    "open_bundle",
    "remove",
    "save",
    "sign",
    "train",
    "trainer_callback",
    "verify",
    "verify_signature",
]
__all__ += public_calls()
