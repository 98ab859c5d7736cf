"""The folder of a comparison of two runs or experiments: ``outputs/compare-A-B/``."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bus_smp.errors import EvaluationError
from bus_smp.runs.layout import COMPARISON
from bus_smp.system.files import write_text


def read_comparison(folder: Path) -> dict[str, Any]:
    """What ``compare`` found.

    Returns:
        ``a``, ``b``: names of the two; ``comparisons``: one for each data set that both were scored on, each with
        ``target``, ``split``, ``patient_known``, ``pairs_of_runs`` (``{seed, fold, a, b}``: which were compared) and the
        keys of ``statistics.compare_pairs.compare_pairs``, of which ``metrics`` maps a key of ``METRICS`` to
        ``{a, b, difference, low, high, n, p, p_holm, no_interval, ...}``.

    Raises:
        EvaluationError: if the folder holds no finished comparison, or a damaged one.
    """
    path = Path(folder) / COMPARISON
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not all(isinstance(found[key], str) for key in ("a", "b")):
            raise ValueError("a and b must be names")
        for one in found["comparisons"]:
            if not isinstance(one["metrics"], dict):
                raise ValueError("metrics must be an object")
    except FileNotFoundError:
        raise EvaluationError(f"{folder}: holds no finished comparison", hint="bus-smp compare A B") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EvaluationError(
            f"{path}: cannot be read as a comparison ({error})", hint="make it again: bus-smp compare A B"
        ) from None
    return found


def write_comparison(folder: Path, document: Mapping[str, Any]) -> None:
    """Write ``comparison.json``, the last file of a comparison; the same keys as from ``read_comparison``."""
    write_text(Path(folder) / COMPARISON, json.dumps(document, indent=2, allow_nan=False) + "\n")
