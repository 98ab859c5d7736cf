"""How far a run has come, as ``last.ckpt`` keeps it, and how it ended."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from bus_smp.errors import CheckpointError
from bus_smp.runs.run import Run

# The best epoch has the highest value of it.
SCORE = "val_dice_lesion"


@dataclass(frozen=True)
class Outcome:
    """Progress of a run: its best epoch (from 1), the score of that epoch, and the finished epochs."""

    best_epoch: int
    best_score: float
    epochs: int
    stopped_early: bool


def finished_outcome(run: Run) -> Outcome | None:
    """How a finished run ended, read without PyTorch; None of a run that is not finished.

    Raises:
        CheckpointError: if its weights or its table are damaged.
    """
    if not run.exists() or not run.is_finished():
        return None
    header = run.header()
    try:
        done, score = len(run.metrics()), float(header["score"][SCORE])
    except (OSError, ValueError, KeyError, TypeError):
        raise CheckpointError(
            f"{run.metrics_path} is missing or damaged; the run itself is finished, and its weights can be used",
            hint="to train again, use --run NAME",
        ) from None
    return Outcome(header["epoch"], score, done, done < run.settings().train.epochs)


@dataclass
class Progress:
    """The finished epochs and the best of them.

    Attributes:
        history: the row of ``metrics.csv`` of each finished epoch.
        best_epoch: counted from 1; 0 before the first.
        best_score: ``SCORE`` of that epoch.
        best_weights: ``weights_sha256`` of that epoch's weights.
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
        """Add the row of a finished epoch; return whether it is the best so far. A score of NaN never is."""
        self.history.append(row)
        if not row[SCORE] > self.best_score:
            return False
        self.best_epoch, self.best_score = row["epoch"], row[SCORE]
        return True

    def is_over(self, epochs: int, patience: int) -> bool:
        """True after ``epochs``, or after ``patience`` epochs without a better score; a patience of 0 never ends a run."""
        return self.done >= epochs or 0 < patience <= self.done - self.best_epoch

    def state(self) -> dict[str, Any]:
        """Numbers and texts, from which ``from_state`` makes the same progress."""
        return asdict(self)

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "Progress":
        """From a state file, which anybody may have written; other keys are ignored.

        Raises:
            KeyError, TypeError, ValueError, AttributeError: if it is not what ``state`` returns.
        """
        return cls(
            [{str(name): value for name, value in row.items()} for row in state["history"]],
            int(state["best_epoch"]),
            float(state["best_score"]),
            str(state["best_weights"]),
        )
