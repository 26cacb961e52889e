"""The training record: what an adapter tells about where it came from."""

from __future__ import annotations

import platform
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from adapter_export import __version__
from adapter_export.torch.objectives import Scores
from adapter_export.torch.progress import TrainingResult
from adapter_export.torch.settings import TrainingSettings
from adapter_export.torch.task import TextTask


def training_record(
    settings: TrainingSettings, options: dict[str, Any], task: TextTask, result: TrainingResult, test: Scores | None
) -> dict[str, Any]:
    """Put a finished run together as JSON.

    Args:
        settings: how it was trained.
        options: what else decided the result: widths, first weights and how far they moved the output, the cut.
        task: what it was trained on.
        result: the run.
        test: the scores on the test rows, if there were any.
    """
    record: dict[str, Any] = {
        "producer": f"adapter-export {__version__}",
        "task": task.task,
        "settings": {**asdict(settings), **options},
        "data": {
            **task.sources,
            "training_rows": len(task.training.texts),
            "validation_rows": len(task.validation.texts),
        },
        "history": [{**asdict(record), "validation": record.validation.document()} for record in result.history],
        "best_epoch": result.best_epoch,
        "validation": result.best.validation.document(),
        "steps": result.steps,
        "seconds": round(sum(record.seconds for record in result.history), 3),
        "versions": {"python": platform.python_version(), "torch": str(torch.__version__), "numpy": np.__version__},
        "threads": torch.get_num_threads(),
    }
    return record if test is None else {**record, "test": test.document()}
