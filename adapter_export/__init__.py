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

import os
from typing import TYPE_CHECKING

from adapter_export import errors
from adapter_export.api.adapters.adapters import load_adapter, save
from adapter_export.api.bundles.bundles import open_bundle
from adapter_export.api.bundles.run_many import run_many
from adapter_export.api.bundles.signatures import verify_signature
from adapter_export.api.models.base import Base
from adapter_export.api.models.opening import open_base
from adapter_export.api.models.sites import Sites
from adapter_export.api.training.attach import attach
from adapter_export.commands.adapters.compose import compose
from adapter_export.commands.adapters.export import export
from adapter_export.commands.adapters.import_.adapterhub import import_adapterhub
from adapter_export.commands.adapters.import_.peft import import_peft
from adapter_export.commands.adapters.merge import merge
from adapter_export.commands.adapters.pack import pack
from adapter_export.commands.bundles.add import add
from adapter_export.commands.bundles.build import build
from adapter_export.commands.bundles.check import check, self_test
from adapter_export.commands.bundles.compare import compare
from adapter_export.commands.bundles.evaluate import evaluate
from adapter_export.commands.bundles.inspect import Inspection, inspect
from adapter_export.commands.bundles.remove import remove
from adapter_export.commands.bundles.sign import sign
from adapter_export.commands.bundles.verify import verify
from adapter_export.commands.models.capture import capture
from adapter_export.commands.models.identify import identify
from adapter_export.commands.serving.bench import bench
from adapter_export.commands.serving.pull import pull
from adapter_export.commands.serving.push import push
from adapter_export.commands.serving.serve import serve
from adapter_export.commands.serving.ship import ship
from adapter_export.commands.training._trainer import trainer_callback
from adapter_export.commands.training.distil import distil
from adapter_export.commands.training.drop import drop
from adapter_export.commands.training.lint import lint
from adapter_export.commands.training.plan import plan
from adapter_export.commands.training.sweep import sweep
from adapter_export.commands.training.train import train
from adapter_export.reporting import Reporter
from adapter_export.version import __version__

if TYPE_CHECKING:  # for annotations; each loads more than a program may need
    from adapter_export.analysis.adapter_costs import Plan as Plan
    from adapter_export.analysis.comparison import Comparison as Comparison
    from adapter_export.analysis.evaluation import Evaluation as Evaluation
    from adapter_export.analysis.layer_drop import Drop as Drop
    from adapter_export.analysis.mistakes import Lint as Lint
    from adapter_export.analysis.speed.concurrency import Benchmark as Benchmark
    from adapter_export.analysis.student import Distillation as Distillation
    from adapter_export.analysis.sweep_results import Sweep as Sweep
    from adapter_export.bundle.report import Report as Report
    from adapter_export.bundle.signature import Signature as Signature
    from adapter_export.deploy.layout import Shipped as Shipped
    from adapter_export.graph.adapter import Adapter as Adapter
    from adapter_export.hub.fetch import Fetched as Fetched
    from adapter_export.hub.push import Pushed as Pushed
    from adapter_export.runtime import Bundle as Bundle

# ONNX Runtime 1.29 and later report models and machines to Microsoft, unless this is set before it is imported
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__all__ = [
    "Base",
    "Inspection",
    "Reporter",
    "Sites",
    "__version__",
    "add",
    "attach",
    "bench",
    "build",
    "capture",
    "check",
    "compare",
    "compose",
    "distil",
    "drop",
    "errors",
    "evaluate",
    "export",
    "identify",
    "import_adapterhub",
    "import_peft",
    "inspect",
    "lint",
    "load_adapter",
    "merge",
    "open_base",
    "open_bundle",
    "pack",
    "plan",
    "pull",
    "push",
    "remove",
    "run_many",
    "save",
    "self_test",
    "serve",
    "ship",
    "sign",
    "sweep",
    "train",
    "trainer_callback",
    "verify",
    "verify_signature",
]
