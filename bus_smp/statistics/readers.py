"""What readers answered, next to a model's answers: shares and means with intervals over patients."""

import math
from collections.abc import Iterable, Mapping
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from bus_smp.classes import LABELS, MALIGNANT
from bus_smp.statistics.bootstrap import MIN_GROUPS, Resampled, bootstrap, draw_groups, estimate
from bus_smp.statistics.estimators import Ratio
from bus_smp.text import counted

# key -> words, unit. "%" is a share of images.
MEASURES = {
    "agree": ("Agrees with the model's answer", "%"),
    "partly": ("Agrees in part", "%"),
    "disagree": ("Disagrees", "%"),
    "same_own": ("Own call equals the model's", "%"),
    "same_final": ("Final call equals the model's", "%"),
    "changed": ("Call changed", "%"),
    "towards": ("Call changed to the model's", "%"),
    "helped": ("Call changed to right (helped)", "%"),
    "harmed": ("Call changed to wrong (harmed)", "%"),
    "right_own": ("Own call right", "%"),
    "right_final": ("Final call right", "%"),
    "sensitivity_own": ("Malignant called malignant, own", "%"),
    "sensitivity_final": ("Malignant called malignant, final", "%"),
    "specificity_own": ("Others not called malignant, own", "%"),
    "specificity_final": ("Others not called malignant, final", "%"),
    "corrected": ("Outline corrected", "%"),
    "dice": ("Dice of model and reader, final", ""),
    "dice_own": ("Dice of model and own outline", ""),
    "seconds_own": ("Seconds before the model's answer", "s"),
    "seconds_final": ("Seconds after it", "s"),
}

ALL_READERS = "all readers"


def call_of(answers: Mapping[str, Any]) -> str:
    """The label that answers amount to: normal, benign or malignant."""
    return LABELS[0] if answers["lesion"] == "no" else answers["class"]


def read_table(records: Iterable[Mapping[str, Any]], truth: Mapping[str, tuple[str, str]]) -> pd.DataFrame:
    """One row per reader and image: the last answer under the same mode and model.

    Args:
        records: of ``bus-smp serve``, oldest first.
        truth: SHA-256 of an image's pixels -> its label and group; may be empty.

    Returns:
        columns ``reader, mode, case, group, own, final, model, truth`` (calls; "" where there is none), ``agreement``,
        ``vote`` (the name of the preferred source, "equal", "neither" or ""), ``corrected`` (0, 1, NaN), ``dice``,
        ``dice_own``, ``seconds_own``, ``seconds_final``.
    """
    sessions: dict[str, Mapping[str, Any]] = {}
    rows: dict[tuple, dict[str, Any]] = {}
    for record in records:
        if record["kind"] == "session":
            sessions[record["session"]] = record
        if record["kind"] != "final":
            continue
        session, answers, own = sessions[record["session"]], record["answers"], record["own"]
        shown = record["shown"]
        label, group = truth.get(record["case"], ("", ""))
        agreement = answers.get("agreement", "")
        corrected = bool(record["changed_pixels"])
        # an outline that was left as it is, by a reader who does not agree, is no outline of the reader
        drawn = corrected or agreement == "agree"
        names = [one["source"] for one in shown]
        vote = answers.get("vote", "")
        seconds = record["seconds"]
        rows[record["reader"], record["case"], session["mode"], tuple(names)] = {
            "reader": record["reader"],
            "mode": session["mode"],
            "case": record["case"],
            "group": group or record["patient"] or record["case"],
            "own": call_of(own) if own else call_of(answers) if session["mode"] == "none" else "",
            "final": call_of(answers),
            "model": shown[0]["label"] if len(shown) == 1 else "",
            "truth": label,
            "agreement": agreement,
            "vote": names["ab".index(vote)] if vote in ("a", "b") else vote,
            "corrected": float(corrected) if shown else math.nan,
            "dice": record["dice"] if drawn and record["dice"] is not None else math.nan,
            "dice_own": math.nan if record["dice_own"] is None else record["dice_own"],
            "seconds_own": seconds.get("own", math.nan) if own else math.nan,
            "seconds_final": seconds.get("final", math.nan),
        }
    return pd.DataFrame(list(rows.values()))


def tabulate_readers(table: pd.DataFrame, draws: int = 5000, seed: int = 42) -> dict[str, Any]:
    """Summarise a ``read_table``.

    Returns:
        ``readers``: reader (and ``all readers`` where there are several) -> ``images``, ``patients``, ``measures`` (key of
        ``MEASURES`` -> estimate as in ``statistics.summary``; those that nothing is known of are left out) and ``votes``
        (source, "equal" or "neither" -> number). ``kappa``: of each two readers with common images
        ``readers`` (their names), ``images``, and the estimate ``kappa`` (Cohen's) of their calls, those before any
        model's answer where there are such.
    """
    names = list(dict.fromkeys(table["reader"]))
    parts = {name: table[table["reader"] == name] for name in names}
    if len(names) > 1:
        parts[ALL_READERS] = table
    pairs = [(a, b, _shared(parts[a], parts[b])) for a, b in combinations(names, 2)]
    return {
        "readers": {name: _tabulate(part, draws, seed) for name, part in parts.items()},
        "kappa": [
            {"readers": [a, b], "images": len(shared), "kappa": _kappa(shared, draws, seed)}
            for a, b, shared in pairs
            if len(shared)
        ],
    }


def _tabulate(table: pd.DataFrame, draws: int, seed: int) -> dict[str, Any]:
    values = {key: value for key, value in _measures(table).items() if not np.isnan(value).all()}
    group = np.unique(table["group"], return_inverse=True)[1]
    stratum = np.zeros(group.max() + 1, int)
    estimators = {key: Ratio.mean(value) for key, value in values.items()}
    resampled = bootstrap(estimators, group, stratum, draws, seed)
    return {
        "images": len(table),
        "patients": len(stratum),
        "measures": {
            key: estimate(resampled[key], one.kinds, group, stratum, 0.95, len(table))
            for key, one in estimators.items()
        },
        "votes": {str(vote): int(count) for vote, count in table["vote"].value_counts().items() if vote},
    }


def _measures(table: pd.DataFrame) -> dict[str, np.ndarray]:
    """Float (images,) of each measure, NaN where it does not apply."""

    def share(what: pd.Series, where: pd.Series) -> np.ndarray:
        return np.where(where, what, np.nan).astype(float)

    own, final, model, truth = (table[name] for name in ("own", "final", "model", "truth"))
    agreed, both, known = table["agreement"] != "", (own != "") & (model != ""), truth != ""
    changed = own != final
    judged = both & known
    malignant = truth == MALIGNANT.name
    return {
        **{key: share(table["agreement"] == key, agreed) for key in ("agree", "partly", "disagree")},
        "same_own": share(own == model, both),
        "same_final": share(final == model, model != ""),
        "changed": share(changed, both),
        "towards": share(changed & (final == model), both),
        "helped": share((own != truth) & (final == truth), judged),
        "harmed": share((own == truth) & (final != truth), judged),
        "right_own": share(own == truth, known & (own != "")),
        "right_final": share(final == truth, known),
        "sensitivity_own": share(own == MALIGNANT.name, malignant & (own != "")),
        "sensitivity_final": share(final == MALIGNANT.name, malignant),
        "specificity_own": share(own != MALIGNANT.name, known & ~malignant & (own != "")),
        "specificity_final": share(final != MALIGNANT.name, known & ~malignant),
        **{
            key: table[key].to_numpy(float)
            for key in ("corrected", "dice", "dice_own", "seconds_own", "seconds_final")
        },
    }


def _shared(a: pd.DataFrame, b: pd.DataFrame) -> pd.DataFrame:
    """The calls of two readers on the images that both read: columns ``a, b, group``; empty if there are none."""
    calls = []
    for table in (a, b):
        last = table.drop_duplicates("case", keep="last").set_index("case")
        calls.append(last.assign(call=last["own"].where(last["own"] != "", last["final"])))
    both = calls[0].index.intersection(calls[1].index)
    return pd.DataFrame(
        {
            "a": calls[0].loc[both, "call"],
            "b": calls[1].loc[both, "call"],
            "group": calls[0].loc[both, "group"],
        }
    )


def _kappa(shared: pd.DataFrame, draws: int, seed: int) -> dict[str, Any]:
    group = np.unique(shared["group"], return_inverse=True)[1]
    groups = group.max() + 1
    cells = shared["a"].map(LABELS.index) * len(LABELS) + shared["b"].map(LABELS.index)
    tables = np.zeros((groups, len(LABELS) ** 2))
    np.add.at(tables, (group, cells), 1)
    stratum = np.zeros(groups, int)
    weights = draw_groups(stratum, draws, np.random.default_rng(seed))
    resampled = Resampled(float(cohen_kappa(tables.sum(axis=0)[None])[0]), cohen_kappa(weights @ tables))
    return estimate(resampled, (np.ones(len(shared)),), group, stratum, 0.95, len(shared))


def cohen_kappa(tables: np.ndarray) -> np.ndarray:
    """Cohen's kappa (Educ. Psychol. Meas. 1960) of counts, float (n, k * k), rows of one reader by columns of the other.

    NaN where both give only one and the same label, for which agreement by chance is certain.
    """
    k = math.isqrt(tables.shape[1])
    shares = tables.reshape(-1, k, k) / tables.sum(axis=1)[:, None, None]
    agreed = np.trace(shares, axis1=1, axis2=2)
    by_chance = (shares.sum(axis=2) * shares.sum(axis=1)).sum(axis=1)
    return np.divide(
        agreed - by_chance, 1 - by_chance, out=np.full(len(shares), np.nan), where=by_chance < 1 - 1e-12
    )


def format_readers(found: Mapping[str, Any]) -> list[str]:
    """The result of ``tabulate_readers`` as lines of a table."""
    lines: list[str] = []
    for name, of in found["readers"].items():
        lines += [
            f"{name}: {counted(of['images'], 'image')} of {of['patients']} patients or images; [95 % CI]"
        ]
        for key, (words, unit) in MEASURES.items():
            if key in of["measures"]:
                lines.append(f"  {words:<38} {_shown(of['measures'][key], unit)}")
        if of["votes"]:
            lines.append(
                "  Preferred: " + ", ".join(f"{vote} {count}" for vote, count in of["votes"].items())
            )
    for pair in found["kappa"]:
        words = f"Kappa of {' and '.join(pair['readers'])}"
        lines.append(f"{words:<40} {_shown(pair['kappa'], '')}")
    estimates = [one for of in found["readers"].values() for one in of["measures"].values()]
    if any(one["low"] is None for one in estimates):
        lines.append(f"No interval: fewer than {MIN_GROUPS} patients, or the same in every image.")
    return lines


def _shown(of: Mapping[str, Any], unit: str) -> str:
    scale, digits = (100, 0) if unit == "%" else (1, 1 if unit == "s" else 3)
    if of["mean"] is None:
        return "not defined"
    interval = (
        f"[{', '.join(f'{of[end] * scale:.{digits}f}' for end in ('low', 'high'))}]"
        if of["low"] is not None
        else ""
    )
    return f"{of['mean'] * scale:6.{digits}f} {unit:<2}{interval:<16} n={of['n']}"
