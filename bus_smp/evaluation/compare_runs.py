"""Comparing two runs, or two experiments by their seed/fold pairs, on the images that both were scored on.

Only tables are read.
"""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from bus_smp import __version__
from bus_smp.errors import BusSmpError, EvaluationError
from bus_smp.runs import layout
from bus_smp.runs.comparisons import read_comparison, write_comparison
from bus_smp.runs.ensemble import is_ensemble, make_ensemble, read_ensemble
from bus_smp.runs.evaluations import read_summary, write_table
from bus_smp.runs.experiment import is_experiment, read_experiment
from bus_smp.runs.layout import PER_IMAGE, evaluation_folder
from bus_smp.runs.run import Run
from bus_smp.statistics.compare_pairs import compare_pairs
from bus_smp.statistics.comparison_table import comparison_frame, comparison_latex
from bus_smp.statistics.summary import read_per_image
from bus_smp.system.files import write_text
from bus_smp.text import shortened

# Evaluations of a data set, in the order in which they are chosen.
SPLITS = ("all", "test", "oof", "val")

# Seed and fold of a run in an experiment; both None for a run of its own.
Key = tuple[int | None, int | None]


@dataclass(frozen=True)
class Side:
    """One of the two that are compared.

    Attributes:
        folder: of a run or an experiment.
        options: what names it in a command, e.g. ``--run mine --out elsewhere``.
    """

    folder: Path
    options: str

    def evaluations(self) -> dict[tuple[str, str], dict[Key, Path]]:
        """Data set and split -> evaluation folders by seed and fold."""
        experiment = read_experiment(self.folder) if is_experiment(self.folder) else None
        found: dict[tuple[str, str], dict[Key, Path]] = {}
        for path in layout.list_evaluations(self.folder):
            dataset, split = layout.evaluated(path)
            if split not in SPLITS:
                # of another network (-int8), or one seed's part of a mean
                continue
            if experiment is None:
                of: dict[Key, Path] = {(None, None): path}
            elif experiment.folds is not None and split != "all":
                ending = {
                    seed: f"-seed{seed}" if len(experiment.seeds) > 1 else "" for seed in experiment.seeds
                }
                of = {
                    (seed, None): evaluation_folder(self.folder, dataset, split, end)
                    for seed, end in ending.items()
                }
            else:
                of = {
                    (member.seed, member.fold): evaluation_folder(
                        experiment.run(member).folder, dataset, split
                    )
                    for member in experiment.members
                }
            found[dataset, split] = of
        return found

    def own_keys(self) -> list[Key]:
        """The keys of its evaluation on its own test split: folds are one table there."""
        if not is_experiment(self.folder):
            return [(None, None)]
        return [(seed, None) for seed in read_experiment(self.folder).seeds]

    def trained_on(self) -> list[str]:
        """The data sets of its training; none where the weights are missing."""
        try:
            if is_ensemble(self.folder):
                headers = [run.header() for run in read_ensemble(self.folder).runs]
                return sorted({name for header in headers for name in header["datasets"]})
            members = (
                read_experiment(self.folder).runs() if is_experiment(self.folder) else [Run(self.folder)]
            )
            return list(members[0].header()["datasets"])
        except (BusSmpError, KeyError):
            return []

    def command(self, target: str, split: str | None) -> str:
        """What makes the evaluation; ``split`` None: the one that a user would make."""
        if split is None:
            split = "test" if target in self.trained_on() else "all"
        if split == "all":
            return f"bus-smp crosseval {self.options} --target {target}"
        return f"bus-smp evaluate {self.options}" + (" --split val" if split == "val" else "")


def compare_runs(
    sides: Sequence[Side], target: str | None = None, split: str | None = None
) -> list[dict[str, Any]]:
    """Compare what both were scored on; two experiments by the runs that have seed and fold in common.

    Args:
        sides: A and B.
        target: data set; None: all that both were scored on.
        split: None: of each data set the first of ``SPLITS`` that both have.

    Returns:
        For each data set what ``runs.comparisons.read_comparison`` describes.

    Raises:
        EvaluationError: if an evaluation is missing, or is of other weights than the run has now, the two are not of the
            same images, or no run of the one has the seed and fold of one of the other. The hint is what to type.
    """
    evaluations = [side.evaluations() for side in sides]
    chosen = _common(evaluations, target, split)
    if not chosen:
        raise _nothing_common(sides, evaluations, target, split)
    return [
        _compare(sides, dataset, found, [of[dataset, found] for of in evaluations])
        for dataset, found in chosen
    ]


def lacks_own(sides: Sequence[Side], target: str | None = None, split: str | None = None) -> bool:
    """Whether nothing asked for is scored in both, and scoring the test split of the data of both would help.

    Raises:
        EvaluationError: if it would, but their runs have no seed in common.
    """
    if _common([side.evaluations() for side in sides], target, split):
        return False
    own = [sorted(side.trained_on()) for side in sides]
    if not own[0] or own[0] != own[1] or split not in (None, "test", "oof") or target not in (None, *own[0]):
        return False
    # scoring takes minutes
    _paired(sides, *(side.own_keys() for side in sides))
    return True


def _common(
    evaluations: Sequence[Mapping[tuple[str, str], Any]],
    target: str | None,
    split: str | None,
) -> list[tuple[str, str]]:
    """Data set and split: external ones first, each data set once."""
    first, second = evaluations
    both = [one for one in first if one in second and target in (None, one[0]) and split in (None, one[1])]
    chosen: dict[str, tuple[str, str]] = {}
    for one in sorted(both, key=lambda one: (SPLITS.index(one[1]), one[0])):
        chosen.setdefault(one[0], one)
    return list(chosen.values())


def _nothing_common(
    sides: Sequence[Side],
    evaluations: Sequence[Mapping[tuple[str, str], Any]],
    target: str | None,
    split: str | None,
) -> EvaluationError:
    if target is None:
        has = [", ".join(f"{dataset} ({part})" for dataset, part in of) or "nothing" for of in evaluations]
        names = [side.folder.name for side in sides]
        own = [side.trained_on() for side in sides]
        shared = own[0][0] if own[0] and own[0] == own[1] else None
        both = " and ".join(side.command(shared or "NAME", split) for side in sides)
        return EvaluationError(
            f"{names[0]} and {names[1]} were not scored on the same images: {names[0]} has {has[0]}; "
            f"{names[1]} has {has[1]}",
            hint=both if shared else f"score both on a data set that neither has seen: {both}",
        )
    is_own = [target in side.trained_on() for side in sides]
    if is_own[0] != is_own[1]:
        seen, other = sides if is_own[0] else sides[::-1]
        return EvaluationError(
            f"{target} is {seen.folder.name}'s own data and external to {other.folder.name}: they are not scored on the "
            "same images",
            hint="compare them on a data set that neither or both were trained on",
        )
    # the evaluation that one of them has, the other needs too
    parts = [part for of in evaluations for dataset, part in of if dataset == target]
    wanted = split or next((part for part in SPLITS if part in parts), None)
    lacking = [
        side
        for side, of in zip(sides, evaluations, strict=True)
        if not any((target, part) in of for part in ([wanted] if wanted else SPLITS))
    ]
    return EvaluationError(
        f"{' and '.join(side.folder.name for side in lacking)} {'holds' if len(lacking) == 1 else 'hold'} no finished "
        f"evaluation of {target}",
        hint=" and ".join(side.command(target, wanted) for side in lacking),
    )


def _compare(
    sides: Sequence[Side], target: str, split: str, evaluations: Sequence[Mapping[Key, Path]]
) -> dict[str, Any]:
    first, second = evaluations
    pairs = [(key, first[key], second[other]) for key, other in _paired(sides, list(first), list(second))]
    again = " and ".join(side.command(target, split) for side in sides)
    tables: list[tuple[pd.DataFrame, pd.DataFrame]] = []
    rows, known = set(), True
    for _, one, other in pairs:
        read = [
            _read_evaluation(folder, side.command(target, split))
            for folder, side in zip((one, other), sides, strict=True)
        ]
        tables.append((read[0][0], read[1][0]))
        rows |= {summary.get("rows_sha256") for _, summary in read}
        known = known and all(summary["patient_known"] for _, summary in read)
    if len(rows) > 1:
        raise EvaluationError(
            f"the runs were scored on other manifests of {target}",
            hint=f"score both on the same one: {again}",
        )
    try:
        found = compare_pairs(tables)
    except EvaluationError as error:
        raise EvaluationError(error.what, hint=f"score both on the same manifest: {again}") from None
    return {
        "target": target,
        "split": split,
        "patient_known": known,
        "pairs_of_runs": [
            {"seed": seed, "fold": fold, "a": _name(one, sides[0]), "b": _name(other, sides[1])}
            for (seed, fold), one, other in pairs
        ],
        **found,
    }


def _paired(sides: Sequence[Side], first: Sequence[Key], second: Sequence[Key]) -> list[tuple[Key, Key]]:
    """Which runs of A and B are compared with each other."""
    # a run of its own has no seed and fold to look for
    if len(first) == len(second) == 1:
        return [(first[0], second[0])]
    if common := [(key, key) for key in first if key in second]:
        return common
    raise EvaluationError(
        f"{' and '.join(side.folder.name for side in sides)} have no seed and fold in common: {_listed(first)} "
        f"against {_listed(second)}",
        hint="compare single runs, or train both with the same --seeds and --folds",
    )


def _name(evaluation: Path, side: Side) -> str:
    """The run that was scored; of out-of-fold predictions the experiment."""
    return evaluation.parent.name if evaluation.parent != side.folder else side.folder.name


def _listed(of: Sequence[Key]) -> str:
    words = [
        " ".join([f"seed {seed}"] * (seed is not None) + [f"fold {fold}"] * (fold is not None)) or "one run"
        for seed, fold in of
    ]
    return shortened(words, 5)


def _read_evaluation(scored: Path, again: str) -> tuple[pd.DataFrame, dict[str, Any]]:
    run = Run(scored.parent)
    try:
        summary = read_summary(scored)
        if "members" in summary:
            again = f"compare one of them: {', '.join(summary['runs'])}"
            raise EvaluationError(f"{scored}: is a mean over runs")
        weights = (summary.get("checkpoint") or {}).get("sha256")
        of_now = read_ensemble(run.folder) if is_ensemble(run.folder) else make_ensemble([run])
        has_weights = all(one.has_weights() for one in of_now.runs)
        if weights and has_weights and of_now.weights_sha256() != weights:
            raise EvaluationError(f"{scored} is of other weights than {run.folder} holds now")
        return read_per_image(scored / PER_IMAGE), summary
    except EvaluationError as error:
        raise EvaluationError(error.what, hint=again) from None


def write_comparison_folder(
    folder: Path, names: Sequence[str], comparisons: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Write ``table.csv``, ``table.tex`` and ``comparison.json``; return what the last holds.

    Args:
        folder: of ``layout.comparison_folder``.
        names: of A and B.

    Raises:
        BusSmpError: if the folder holds something else than a comparison of these two.
    """
    found = {path.name for path in folder.glob("*") if not path.name.startswith(".")}
    if found - {layout.COMPARISON, layout.TABLE_CSV, layout.TABLE_TEX}:
        raise EvaluationError(
            f"{folder}: holds something else than a comparison ({', '.join(sorted(found)[:3])})",
            hint="rename it, or write elsewhere: --out FOLDER",
        )
    with contextlib.suppress(EvaluationError):
        before = read_comparison(folder)
        # a-b with c, and a with b-c, have one folder
        if [before["a"], before["b"]] != list(names):
            raise BusSmpError(
                f"{folder}: holds the comparison of {before['a']} and {before['b']}",
                hint="rename it, or write elsewhere: --out FOLDER",
            )
    document = {"bus_smp": __version__, "a": names[0], "b": names[1], "comparisons": list(comparisons)}
    write_table(comparison_frame(comparisons), folder / layout.TABLE_CSV)
    write_text(folder / layout.TABLE_TEX, comparison_latex(comparisons, names))
    write_comparison(folder, document)
    return document
