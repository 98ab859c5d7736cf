"""One result from several runs: out-of-fold predictions in one table, or mean and standard deviation.

The two answer different questions. The interval of one table covers the choice of patients in the test. The standard
deviation over runs shows how much the number changes when the training is repeated (other seeds) or gets other
patients (folds). Neither includes the other.
"""

import contextlib
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bus_smp import __version__
from bus_smp.data.manifest import Manifest
from bus_smp.errors import EvaluationError
from bus_smp.evaluation.evaluate import describe_data, write_evaluation
from bus_smp.runs import layout
from bus_smp.runs.evaluations import (
    MODEL,
    Tables,
    mask_path,
    read_summary,
    read_tables,
    write_data,
    write_paper_tables,
    write_summary,
    write_table,
)
from bus_smp.statistics.metrics import BY_KEY, HEADLINES
from bus_smp.statistics.score_table import columns_of
from bus_smp.system import ranks
from bus_smp.text import counted, folded

PARTS = ("metrics", "rates")

# What a reader looks at first, in words.
MAIN = {key: BY_KEY[key].words for key in HEADLINES}


@ranks.by_first
def pool_folds(
    parts: Sequence[Path],
    rows: pd.DataFrame,
    folder: Path,
    about: Mapping[str, Any],
    manifest: Manifest,
    *,
    legacy: bool = False,
) -> dict[str, Any]:
    """Make one evaluation folder of several that share no image; return its summary.

    With the test folds of a cross-validation, every image is predicted by the one network that has not seen it, and
    the interval is over all patients. An AUC then compares scores of different networks, which makes it slightly
    too low, not too high (Airola et al., Comput. Stat. Data Anal. 2011).

    Args:
        parts: evaluation folders of the members.
        rows: rows of ``manifest`` that must be there, each once.
        about, legacy: as for ``write_evaluation``.

    Raises:
        EvaluationError: if an image is in no part or in two, or a table is missing or damaged.
    """
    read = [read_tables(part) for part in parts]
    tables = Tables.joined(read)
    keys = ["dataset", "image_id"]
    scored, wanted = (pd.MultiIndex.from_frame(table[keys].astype(str)) for table in (tables.model, rows))
    wrong = list(scored[scored.duplicated()]) + list(wanted.symmetric_difference(scored))
    if wrong:
        raise EvaluationError(
            f"{counted(len(wrong), 'image')} not scored exactly once by {', '.join(part.parent.name for part in parts)} "
            f"(e.g. {' '.join(wrong[0])})",
            hint="the runs of a cross-validation must come from one manifest; train them again",
        )
    for part, own in zip(parts, read, strict=True):
        for row in own.model[keys].to_dict("records"):
            mask = mask_path(folder, row)
            mask.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(mask_path(part, row), mask)
    return write_evaluation(folder, tables, about, manifest, legacy=legacy)


def spread(summaries: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, dict[str, Any]]]:
    """Every estimate over several runs: its mean and standard deviation (n - 1 in the denominator).

    Args:
        summaries: results of ``summarise``, one for each run.

    Returns:
        ``metrics`` and ``rates``, each name -> ``{mean, sd, n, n_undefined}``, over the n runs in which
        the estimate is defined; mean is None if n is 0, sd is None if n is below 2.
    """
    summaries = list(summaries)
    result: dict[str, dict[str, dict[str, Any]]] = {}
    for part in PARTS:
        names = dict.fromkeys(name for summary in summaries for name in summary[part])
        result[part] = {
            name: _spread_of([(summary[part].get(name) or {}).get("mean") for summary in summaries])
            for name in names
        }
    return result


def _spread_of(means: Sequence[float | None]) -> dict[str, Any]:
    values = np.array([mean for mean in means if mean is not None])
    return {
        "mean": float(values.mean()) if len(values) else None,
        "sd": float(values.std(ddof=1)) if len(values) > 1 else None,
        "n": len(values),
        "n_undefined": len(means) - len(values),
    }


@ranks.by_first
def write_members(
    folder: Path, members: Mapping[str, Mapping[str, Any]], about: Mapping[str, Any], manifest: Manifest
) -> dict[str, Any]:
    """Write ``members.csv`` (a row for each run), the tables for a paper, ``data.json`` and ``summary.json``; return the last.

    Args:
        members: run -> its summary, from ``evaluate`` or ``write_evaluation``; all on the same images.
        about: ``run`` (the experiment's name), ``dataset``, ``split``, ``external``; recorded.
        manifest: of the images.

    Returns:
        ``members`` as from ``spread``; ``runs``: their names; ``summaries``: each run's by its name, then the
        baselines', which are the same for all runs.
    """
    models = {run: summary["summaries"][MODEL] for run, summary in members.items()}
    first = next(iter(members.values()))
    table = pd.DataFrame(
        {"run": run, "images": model["counts"]["images"], "groups": model["counts"]["groups"], **cells(model)}
        for run, model in models.items()
    )
    of_all = [w for w in first["warnings"] if all(w in summary["warnings"] for summary in members.values())]
    of_one = [
        f"{run}: {w}" for run, summary in members.items() for w in summary["warnings"] if w not in of_all
    ]
    document = {
        "bus_smp": __version__,
        **about,
        "runs": list(members),
        "patient_known": first["patient_known"],
        "manifest_sha256": manifest.sha256,
        "warnings": of_all + of_one,
        "members": spread(models.values()),
        "summaries": models | {name: one for name, one in first["summaries"].items() if name != MODEL},
    }
    with contextlib.suppress(EvaluationError):
        # not written again, so that a comparison does not look older than what it compared
        if read_summary(folder) == json.loads(json.dumps(document)) and (folder / layout.TABLE_TEX).is_file():
            return document
    write_table(table, folder / layout.MEMBERS)
    write_paper_tables(folder, columns_of(document), document)
    write_data(folder, describe_data(manifest))
    write_summary(folder, document)
    return document


def estimates_of(summary: Mapping[str, Any]) -> dict[str, Any]:
    """``counts``, ``metrics`` and ``rates`` of the model in any summary: of one table, or ``spread`` over runs."""
    if "members" not in summary:
        return summary["summaries"][MODEL]
    return {"counts": summary["summaries"][summary["runs"][0]]["counts"], **summary["members"]}


def estimates_by_key(estimates: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The estimates of ``estimates_of``, or of one result of ``summarise``, by their key in ``METRICS``."""
    return {key: estimate for part in PARTS for key, estimate in estimates[part].items()}


def cells(estimates: Mapping[str, Any], names: Sequence[str] | None = None) -> dict[str, float | None]:
    """Estimates in one row: ``<name>, <name>_low, <name>_high``, or ``<name>, <name>_sd`` over runs.

    Args:
        estimates: as from ``estimates_of``.
        names: the ones wanted; None: all.
    """
    found = estimates_by_key(estimates)
    row: dict[str, float | None] = {}
    for name in found if names is None else names:
        row[name] = found[name]["mean"]
        row |= {f"{name}_{key}": found[name][key] for key in ("low", "high", "sd") if key in found[name]}
    return row


# Columns of ``format_lines``: characters of a number with its interval.
_CELL = 16


def format_lines(lines: Mapping[str, Mapping[str, Any] | str]) -> str:
    """For each result its name, and below it the main estimates in columns; at most 80 characters wide.

    Args:
        lines: name -> estimates as from ``estimates_of``, or the reason why there are none.
    """
    shown = [" ".join(["  images", *(words.ljust(_CELL) for words in HEADLINES.values())]).rstrip()]
    for name, result in lines.items():
        shown += folded(name)
        if isinstance(result, str):
            shown += [f"  {line}" for line in folded(result)]
        else:
            found = estimates_by_key(result)
            cells = (_short(found[key]).ljust(_CELL) for key in HEADLINES)
            shown.append(f"{result['counts']['images']:>8} {' '.join(cells)}".rstrip())
    return "\n".join(shown)


def _short(estimate: Mapping[str, Any]) -> str:
    """An estimate with two decimals, its interval or sd between runs; only the number where there is neither."""
    if estimate["mean"] is None:
        return "-"
    value = f"{estimate['mean']:.2f}"
    if estimate.get("sd") is not None:
        return f"{value} sd {estimate['sd']:.2f}"
    return value if estimate.get("low") is None else f"{value} [{estimate['low']:.2f} {estimate['high']:.2f}]"
