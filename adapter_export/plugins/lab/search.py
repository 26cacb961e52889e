"""The search of a sweep: Optuna chooses the next setting, and stores trials in a file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import RDBStorage
from optuna.trial import TrialState

from adapter_export.plugins.lab.sweep_results import Range, Setting, Space

_DIGITS = 3
"""Significant digits of a learning rate that is drawn from a range; more would suggest a precision it does not have."""


class Search:
    """Trials of a sweep: settings with a score to maximize.

    An SQLite file stores them, so a killed search can resume. Settings are drawn by the tree-structured Parzen
    estimator (Bergstra et al. 2011), numbers of a range on a logarithmic scale.
    """

    def __init__(self, path: Path, space: Space) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._space = space
        self._study = optuna.create_study(
            storage=RDBStorage(f"sqlite:///{path}"), study_name="sweep", direction="maximize", load_if_exists=True
        )
        # a resumed search must not draw the same settings again
        self._study.sampler = optuna.samplers.TPESampler(seed=len(self._study.trials))

    def settings(self, trials: int) -> Iterator[tuple[int, Setting]]:
        """Yield the number and the setting of `trials` trials in all, known ones first."""
        known = self._study.get_trials(states=(TrialState.RUNNING, TrialState.COMPLETE))
        left = trials - len(known)
        for trial in known:
            if "learning_rate" in trial.params:
                yield trial.number, self._setting(trial.params)
            else:  # killed before all of its setting was drawn
                self._study.tell(trial.number, state=TrialState.FAIL)
                left += 1
        for _ in range(left):
            drawn = self._study.ask()
            kind = drawn.suggest_categorical("kind", tuple(self._space.kinds))
            if self._space.kinds[kind]:
                self._suggest(drawn, "bottleneck", self._space.bottlenecks)
            if self._space.placements:
                self._suggest(drawn, "placement", self._space.placements)
            self._suggest(drawn, "learning_rate", self._space.learning_rates)
            yield drawn.number, self._setting(drawn.params)

    def tell(self, number: int, value: float | None) -> None:
        """Store the value of a trial, `None` if it failed; a stored value stays."""
        state = TrialState.FAIL if value is None else TrialState.COMPLETE
        self._study.tell(number, value, state=state, skip_if_finished=True)

    @staticmethod
    def _suggest(drawn: optuna.Trial, name: str, values: tuple[Any, ...] | Range) -> None:
        if not isinstance(values, Range):
            drawn.suggest_categorical(name, values)
        elif isinstance(values.low, int) and isinstance(values.high, int):
            drawn.suggest_int(name, values.low, values.high, log=True)
        else:
            drawn.suggest_float(name, values.low, values.high, log=True)

    @staticmethod
    def _setting(params: dict[str, Any]) -> Setting:
        rate = float(f"{params['learning_rate']:.{_DIGITS}g}")
        return Setting(params["kind"], params.get("bottleneck"), params.get("placement"), rate)
