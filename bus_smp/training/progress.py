"""How far a run has come, as ``last.ckpt`` keeps it."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

SCORE = "val_dice_lesion"  # the best epoch has the highest


@dataclass
class Progress:
    """The finished epochs and the best of them.

    Attributes:
        history: the row of ``metrics.csv`` of each finished epoch.
        best_epoch: counted from 1; 0 before the first.
        best_score: ``SCORE`` of that epoch.
        best_weights: what ``weights_sha256`` says of that epoch's weights.
    """

    history: list[dict[str, Any]] = field(default_factory=list)
    best_epoch: int = 0
    best_score: float = -math.inf
    best_weights: str = ""

    @property
    def done(self) -> int:
        """Number of finished epochs."""
        return len(self.history)

    def add(self, row: dict[str, Any]) -> bool:
        """Take the row of a finished epoch; whether it is the best so far. A score of NaN never is."""
        self.history.append(row)
        if not row[SCORE] > self.best_score:
            return False
        self.best_epoch, self.best_score = row["epoch"], row[SCORE]
        return True

    def is_over(self, epochs: int, patience: int) -> bool:
        """After ``epochs``, or after ``patience`` without a better score; a patience of 0 never ends."""
        return self.done >= epochs or 0 < patience <= self.done - self.best_epoch

    def state(self) -> dict[str, Any]:
        """For ``from_state``: numbers and texts."""
        return asdict(self)

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "Progress":
        """From a file that anybody may have written; other keys are not looked at.

        Raises:
            KeyError, TypeError, ValueError, AttributeError: if it is not what ``state`` returns.
        """
        return cls(
            [{str(name): value for name, value in row.items()} for row in state["history"]],
            int(state["best_epoch"]),
            float(state["best_score"]),
            str(state["best_weights"]),
        )
