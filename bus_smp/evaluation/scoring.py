"""What ``evaluate`` and ``crosseval`` share: scoring a run or an experiment, from the images to the printed table."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    import pandas as pd

    from bus_smp.data.manifest import Manifest
    from bus_smp.runs.experiment import Experiment
    from bus_smp.runs.run import Run

    Scored = Run | Experiment


class Scorer:
    """How a command was asked to score and print; keeps the network of the last run."""

    def __init__(self, device: str, backend: str, precision: str, legacy: bool, as_json: bool) -> None:
        self.device, self.backend, self.precision = device, backend, precision
        self.legacy, self.as_json = legacy, as_json
        # another network, whose results never take the place of the run's own
        self.network = "-int8" if precision == "int8" else ""
        self.documents: list[dict[str, Any]] = []
        self._loaded: tuple[Path, Any, dict[str, Any]] | None = None

    def load(self, journal: "Run") -> tuple[Any, dict[str, Any]]:
        """The predictor of a run's best weights, and their header."""
        from bus_smp.inference.backends import open_predictor
        from bus_smp.inference.predictor import describe_computing
        from bus_smp.system import ranks

        if self._loaded is None or self._loaded[0] != journal.folder:
            self._loaded = (
                journal.folder,
                *ranks.after_first(
                    lambda: open_predictor(
                        journal.folder,
                        backend=self.backend,
                        device=self.device,
                        precision=self.precision,
                        say=lambda text: click.echo(text, err=True),
                    )
                ),
            )
            predictor, header = self._loaded[1:]
            how = describe_computing(predictor.computed_in)
            click.echo(f"Run: {journal.folder}, weights of epoch {header['epoch']}, {how}", err=True)
        return self._loaded[1:]

    def _is_current(self, journal: "Run", folder: Path, manifest: "Manifest", rows: "pd.DataFrame") -> bool:
        """Whether the folder holds what scoring now would write, but for the legacy numbers."""
        from bus_smp.evaluation.evaluate import is_current
        from bus_smp.inference.backends import choose_precision
        from bus_smp.model.checkpoint import read_header
        from bus_smp.system.files import file_sha256

        precision = self.precision
        if self.backend != "torch":
            precision = choose_precision(self.backend, precision, read_header(journal.best_path)["precision"])
        return is_current(
            folder, file_sha256(journal.best_path), manifest, rows, backend=self.backend, precision=precision
        )

    def score(
        self,
        journal: "Run",
        manifest: "Manifest",
        rows: "pd.DataFrame",
        dataset: str,
        split: str,
        *,
        again: bool = True,
    ) -> dict[str, Any]:
        """Score ``rows`` with one run, write its evaluation folder, return the summary.

        Args:
            split: ``test`` or ``val`` of the run's own data, or ``all`` images of an external data set.
            again: False takes an evaluation of the same weights and the same images as it is.
        """
        from tqdm import tqdm

        from bus_smp.evaluation.evaluate import evaluate
        from bus_smp.inference.predictor import describe_computing
        from bus_smp.runs.evaluations import read_summary

        folder = journal.folder / self._name(dataset, split)
        if not again and self._is_current(journal, folder, manifest, rows):
            summary = read_summary(folder)
            if not self.legacy or "legacy" in summary:
                how = describe_computing(summary["computed_in"])
                click.echo(f"Current: {folder} ({how})", err=True)
                return summary
        predictor, header = self.load(journal)
        with tqdm(total=len(rows), desc=dataset, unit="image", disable=not sys.stderr.isatty()) as bar:
            summary = evaluate(
                predictor,
                header,
                manifest,
                rows,
                folder,
                about={
                    "run": journal.folder.name,
                    "dataset": dataset,
                    "split": split,
                    "external": split == "all",
                },
                legacy=self.legacy,
                progress=bar.update,
            )
        click.echo(f"Written: {folder}", err=True)
        return summary

    def score_own(
        self,
        scored: "Scored",
        split: str,
        root: Any = None,
        only: "list[str] | None" = None,
        again: bool = True,
    ) -> Iterator[dict[str, Any]]:
        """Score a run, or all runs of an experiment, on their own split: a summary for each data set.

        Args:
            only: these data sets; None: all that the run was trained on.

        Raises:
            EvaluationError: if the split is empty.
        """
        from bus_smp.errors import EvaluationError
        from bus_smp.runs.run import Run

        if not isinstance(scored, Run):
            yield from self._own_of_members(scored, split, root, only)
            return
        manifest = scored.manifest(root, images=True)
        rows = manifest.used(split)
        if only is not None:
            rows = rows[rows["dataset"].isin(only)]
        if rows.empty:
            raise EvaluationError(
                f"the {split} split of {scored.folder} is empty",
                hint="make the manifest with a test split and train again",
            )
        for dataset, part in rows.groupby("dataset"):
            yield self.score(scored, manifest, part.reset_index(drop=True), str(dataset), split, again=again)

    def _own_of_members(
        self, experiment: "Experiment", split: str, root: Any, only: "list[str] | None"
    ) -> Iterator[dict[str, Any]]:
        from bus_smp.evaluation.pooling import pool_folds, write_members

        journals = dict(zip(experiment.members, experiment.trained(), strict=True))
        found = {
            member: {one["dataset"]: one for one in self.score_own(journal, split, root, only, again=False)}
            for member, journal in journals.items()
        }
        manifest, name = experiment.manifest(root, images=True), experiment.folder.name
        for dataset in next(iter(found.values())):
            about = {"run": name, "dataset": dataset, "split": split, "external": False}
            if experiment.folds is None:
                members = {member.run: of[dataset] for member, of in found.items()}
            else:
                about["split"] = "oof" if split == "test" else split
                used = manifest.used()
                used = used[used["dataset"] == dataset]
                members = {}
                for seed in experiment.seeds:
                    runs = [journals[member].folder for member in experiment.members if member.seed == seed]
                    ending = f"-seed{seed}" if len(experiment.seeds) > 1 else ""
                    members[name + ending] = pool_folds(
                        [run / self._name(dataset, split) for run in runs],
                        used,
                        experiment.folder / (self._name(dataset, about["split"]) + ending),
                        about | {"run": name + ending, "pooled": [run.name for run in runs]},
                        manifest,
                        legacy=self.legacy,
                    )
            folder = experiment.folder / self._name(dataset, about["split"])
            one_table = experiment.folds is not None and len(members) == 1
            summary = members[name] if one_table else write_members(folder, members, about, manifest)
            click.echo(f"Written: {folder}", err=True)
            yield summary

    def score_target(self, scored: "Scored", manifest: "Manifest", again: bool = True) -> dict[str, Any]:
        """Score a run, or all runs of an experiment, on all used images of an external data set."""
        from bus_smp.evaluation.pooling import write_members
        from bus_smp.runs.run import Run

        rows, dataset = manifest.used(), "+".join(manifest.datasets)
        if isinstance(scored, Run):
            return self.score(scored, manifest, rows, dataset, "all", again=again)
        members = {
            journal.folder.name: self.score(journal, manifest, rows, dataset, "all", again=False)
            for journal in scored.trained()
        }
        folder = scored.folder / self._name(dataset, "all")
        about = {"run": scored.folder.name, "dataset": dataset, "split": "all", "external": True}
        summary = write_members(folder, members, about, manifest)
        click.echo(f"Written: {folder}", err=True)
        return summary

    def _name(self, dataset: str, split: str) -> str:
        """Name of an evaluation folder."""
        return f"eval-{dataset}-{split}{self.network}"

    def show(self, summary: dict[str, Any]) -> None:
        """Print the table of an evaluation, or keep its JSON for ``finish``."""
        from bus_smp.evaluation.pooling import format_members
        from bus_smp.statistics.score_table import format_table

        self.documents.append(summary)
        if self.as_json:
            return
        over_runs = "members" in summary
        if summary["external"]:
            kind = "external test, all used images"
        elif summary["split"] == "oof":
            kind = "out-of-fold predictions, each image by the run that has not seen its fold"
        else:
            kind = f"{summary['split']} split of the run's own data"
        click.echo(f"{summary['dataset']}: {kind}\n")
        click.echo(format_members(summary) if over_runs else format_table(summary["summaries"]))
        for warning in summary["warnings"]:
            click.echo(f"Warning: {warning}")
        if self.legacy and "legacy" in summary:
            from bus_smp.statistics.legacy import format_legacy

            click.echo("\n" + format_legacy(summary["legacy"]))

    def finish(self) -> None:
        """Print the JSON, if that was asked for: one object for one target, else a list."""
        if self.as_json:
            document = self.documents[0] if len(self.documents) == 1 else self.documents
            click.echo(json.dumps(document, indent=2, allow_nan=False))
