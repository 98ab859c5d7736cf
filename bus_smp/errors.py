"""The errors a user can cause. The command line prints them in one or two lines and exits with 1.

Anything that is not a ``BusSmpError`` is a bug and keeps its traceback. They are shown on terminals and kept in
tables, so what a file's name could do there is escaped here, once.
"""

from bus_smp.text import printable


class BusSmpError(Exception):
    """What happened and where; ``hint``: what to do or type next."""

    def __init__(self, what: str, *, hint: str = "") -> None:
        what, hint = ("\n".join(map(printable, text.split("\n"))) for text in (what, hint))
        super().__init__(what)
        self.what = what
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.what}\n{self.hint}" if self.hint else self.what


class DataError(BusSmpError):
    """A data set is not where, or not as, it should be."""


class ImageError(DataError):
    """One image or mask file cannot be used: missing, truncated, of another size, wrong colours."""


class ManifestError(DataError):
    """A manifest is missing, malformed, or would leak."""


class ConfigError(BusSmpError):
    """A setting is unknown, of the wrong type, or contradicts another."""


class CheckpointError(BusSmpError):
    """A checkpoint is missing, damaged, or belongs to another model."""


class TrainingError(BusSmpError):
    """Training cannot start or go on."""


class EvaluationError(BusSmpError):
    """An evaluation would be impossible or dishonest."""
