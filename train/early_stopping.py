"""--patience: ending a run that gets no better."""

import math
from typing import Any

from train.config import TrainConfig


class EarlyStopping:
    """Counts evaluations without a better top-1, as the callbacks of Keras and Lightning count theirs: one that is not
    above the best by more than --min-delta. Its state is part of a checkpoint, so a resumed run ends where an
    uninterrupted one would."""

    def __init__(self, config: TrainConfig) -> None:
        self._patience, self._min_delta = config.patience, config.min_delta
        self._best, self._waited = -math.inf, 0

    @property
    def is_due(self) -> bool:
        """Whether the run is to end."""
        return self._patience is not None and self._waited >= self._patience

    def evaluated(self, top1: float) -> None:
        """Count an evaluation; `top1` in percent."""
        if top1 > self._best + self._min_delta:
            self._best, self._waited = top1, 0
        else:
            self._waited += 1

    def state_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"best": self._best, "waited": self._waited}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned, with the settings of this run."""
        self._best, self._waited = float(state["best"]), int(state["waited"])
