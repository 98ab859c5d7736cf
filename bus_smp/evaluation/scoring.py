"""Scoring a run, or all runs of an experiment, on data: from the images to the evaluation folders and their summaries."""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from bus_smp.data.manifest import Manifest
from bus_smp.errors import EvaluationError
from bus_smp.evaluation.evaluate import evaluate, is_current, is_current_pool
from bus_smp.evaluation.external import OWN, Externality
from bus_smp.evaluation.pooling import pool_folds, write_members
from bus_smp.inference.backends import choose_precision, describe_ensemble, open_ensemble
from bus_smp.inference.predictor import Predictor, describe_computing
from bus_smp.runs.ensemble import Ensemble, make_ensemble
from bus_smp.runs.evaluations import read_summary
from bus_smp.runs.experiment import Experiment
from bus_smp.runs.layout import PER_IMAGE, evaluation_folder
from bus_smp.runs.run import Run
from bus_smp.system import ranks
from bus_smp.system.console import show_progress
from bus_smp.system.files import file_sha256


@dataclass
class Scorer:
    """How runs are scored. It keeps the network of the last run, so that several targets load it once.

    Attributes:
        backend, device, precision: as for ``open_predictor``.
        legacy: also compute the numbers of the notebook this project replaces.
        again: also score what is scored already, from the same weights and the same images.
        say: receives one line per event.
        bar: show progress on stderr.
    """

    backend: str = "torch"
    device: str = "auto"
    precision: str = "auto"
    legacy: bool = False
    again: bool = False
    say: Callable[[str], None] = lambda text: print(text, file=sys.stderr)
    bar: bool = False
    _loaded: tuple[Path, Predictor, dict[str, Any]] | None = field(default=None, init=False)

    @property
    def network(self) -> str:
        """Ending of an evaluation folder's name; the quantised network's results never replace the run's own."""
        return "-int8" if self.precision == "int8" else ""

    def score_own(
        self,
        trained: Run | Experiment | Ensemble,
        manifest: Manifest,
        split: str,
        *,
        datasets: Sequence[str] | None = None,
    ) -> Iterator[dict[str, Any]]:
        """Score a run, all runs of an experiment, or an ensemble on their own split; yield a summary for each data set.

        The test folds of a cross-validation become one table of out-of-fold predictions. An ensemble is scored on the
        split of its first run.

        Args:
            manifest: ``trained.manifest()``, with its images where they are.
            split: ``test`` or ``val``.
            datasets: only these; None: all that the run was trained on.

        Raises:
            EvaluationError: if the split is empty, or a run of an ensemble has learnt from it.
            ManifestError: if a folder of images is missing.
            TrainingError: if a run of the experiment is not trained to its end.
        """
        if isinstance(trained, Experiment):
            yield from self._score_members(trained, manifest, split, datasets)
            return
        manifest.require_images(trained.manifest_path)
        rows = manifest.used(split)
        if datasets is not None:
            rows = rows[rows["dataset"].isin(datasets)]
        if rows.empty:
            raise EvaluationError(
                f"the {split} split of {trained.folder} is empty",
                hint="make the manifest with a test split and train again",
            )
        if isinstance(trained, Ensemble):
            trained.check_unseen(rows, split)
        for dataset, part in rows.groupby("dataset"):
            yield self._score(trained, manifest, part.reset_index(drop=True), str(dataset), split)

    def score_target(
        self, trained: Run | Experiment | Ensemble, target: Manifest, externality: Externality
    ) -> dict[str, Any]:
        """Score a run, all runs of an experiment, or an ensemble on all used images of an external data set; return the summary.

        Args:
            externality: what ``check_external`` found of the target.
        """
        rows, dataset = target.used(), "+".join(target.datasets)
        if not isinstance(trained, Experiment):
            return self._score(trained, target, rows, dataset, "all", externality)
        members = {
            run.name: self._score(run, target, rows, dataset, "all", externality)
            for run in trained.trained_runs()
        }
        folder = evaluation_folder(trained.folder, dataset, "all", self.network)
        about = {"run": trained.name, "dataset": dataset, "split": "all", "external": externality.external}
        summary = write_members(folder, members, about, target)
        self.say(f"Mean of the runs: {folder}")
        return summary

    def _score_members(
        self,
        experiment: Experiment,
        manifest: Manifest,
        split: str,
        datasets: Sequence[str] | None,
    ) -> Iterator[dict[str, Any]]:
        runs = dict(zip(experiment.members, experiment.trained_runs(), strict=True))
        manifest.require_images(experiment.run(experiment.members[0]).manifest_path)
        found = {}
        for member, run in runs.items():
            # the runs share their rows and differ in the splits
            own = manifest if member == experiment.members[0] else run.manifest(manifest.roots)
            summaries = self.score_own(run, own, split, datasets=datasets)
            found[member] = {summary["dataset"]: summary for summary in summaries}
        for dataset in next(iter(found.values())):
            about = {"run": experiment.name, "dataset": dataset, "split": split, "external": False}
            if experiment.folds is None:
                results = {member.run: of[dataset] for member, of in found.items()}
            else:
                about["split"] = "oof" if split == "test" else split
                results = self._pool(experiment, manifest, about, split)
            folder = evaluation_folder(experiment.folder, dataset, about["split"], self.network)
            one_table = experiment.folds is not None and len(results) == 1
            if one_table:
                yield results[experiment.name]
                continue
            summary = write_members(folder, results, about, manifest)
            self.say(f"Mean of the runs: {folder}")
            yield summary

    def _pool(
        self, experiment: Experiment, manifest: Manifest, about: dict[str, Any], split: str
    ) -> dict[str, dict[str, Any]]:
        """One table for each seed, of what its folds' runs found on their own split; name -> summary."""
        used = manifest.used()
        used = used[used["dataset"] == about["dataset"]]
        pooled = {}
        for seed in experiment.seeds:
            runs = [experiment.run(member) for member in experiment.members if member.seed == seed]
            ending = f"-seed{seed}" if len(experiment.seeds) > 1 else ""
            name = experiment.name + ending
            parts = [evaluation_folder(run.folder, about["dataset"], split, self.network) for run in runs]
            folder = evaluation_folder(
                experiment.folder, about["dataset"], about["split"], self.network + ending
            )
            sources = {run.name: file_sha256(part / PER_IMAGE) for run, part in zip(runs, parts, strict=True)}
            if not self.again and is_current_pool(folder, sources, manifest, used):
                pooled[name] = read_summary(folder)
                if not self.legacy or "legacy" in pooled[name]:
                    self.say(f"Already scored: {folder} (--again scores it again)")
                    continue
            of_seed = about | {"run": name, "pooled": [run.name for run in runs], "pooled_from": sources}
            pooled[name] = pool_folds(parts, used, folder, of_seed, manifest, legacy=self.legacy)
            self.say(f"Written: {folder}")
        return pooled

    def _score(
        self,
        trained: Run | Ensemble,
        manifest: Manifest,
        rows: pd.DataFrame,
        dataset: str,
        split: str,
        externality: Externality = OWN,
    ) -> dict[str, Any]:
        """Score ``rows`` with one run or ensemble, write its evaluation folder, return the summary."""
        ensemble = make_ensemble([trained]) if isinstance(trained, Run) else trained
        folder = evaluation_folder(ensemble.folder, dataset, split, self.network)
        about = {"run": ensemble.name, "dataset": dataset, "split": split, **asdict(externality)}
        if ensemble.folder != ensemble.runs[0].folder:
            about["ensemble"] = {
                "runs": [run.name for run in ensemble.runs],
                "views": list(ensemble.views),
                "experiment": ensemble.experiment,
            }
            ranks.by_first(ensemble.write)()
        if not self.again and self._is_current(ensemble, folder, manifest, rows):
            summary = read_summary(folder)
            found = [warning in summary["warnings"] for warning in externality.warnings]
            same = summary["external"] == externality.external and all(found)
            if same and (not self.legacy or "legacy" in summary):
                how = describe_computing(summary["computed_in"])
                self.say(f"Already scored: {folder} ({how}; --again scores it again)")
                return summary
        predictor, header = self._load(ensemble)
        with show_progress(len(rows), dataset, wanted=self.bar) as progress:
            summary = evaluate(
                predictor,
                header,
                manifest,
                rows,
                folder,
                about=about,
                legacy=self.legacy,
                progress=progress.update,
            )
        self.say(f"Written: {folder}")
        return summary

    def _is_current(self, ensemble: Ensemble, folder: Path, manifest: Manifest, rows: pd.DataFrame) -> bool:
        """Whether the folder holds what scoring now would write, except for the legacy numbers."""
        precision = self.precision
        if self.backend != "torch":
            chosen = (
                choose_precision(self.backend, precision, run.header()["precision"]) for run in ensemble.runs
            )
            precision = "+".join(dict.fromkeys(chosen))
        weights = ensemble.weights_sha256()
        return is_current(folder, weights, manifest, rows, backend=self.backend, precision=precision)

    def _load(self, ensemble: Ensemble) -> tuple[Predictor, dict[str, Any]]:
        """The predictor of the best weights, and their header."""
        if self._loaded is None or self._loaded[0] != ensemble.folder:
            # in one process after the other: the first may have to write an export, which the others read
            predictor, header = ranks.after_first(
                lambda: open_ensemble(
                    ensemble,
                    backend=self.backend,
                    device=self.device,
                    precision=self.precision,
                    say=self.say,
                )
            )
            self._loaded = ensemble.folder, predictor, header
            self.say(describe_ensemble(ensemble, predictor, header))
        return self._loaded[1:]
