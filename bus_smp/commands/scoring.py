"""What ``evaluate`` and ``crosseval`` share: scoring one target, from the images to the printed table."""

import json
import sys
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    import pandas as pd

    from bus_smp.data.manifest import Manifest
    from bus_smp.training.journal import Journal


class Scorer:
    """A run's best weights, ready to score several targets."""

    def __init__(self, journal: "Journal", device: str, precision: str, legacy: bool, as_json: bool) -> None:
        from bus_smp.engine import make_engine
        from bus_smp.evaluation.predictor import load_predictor
        from bus_smp.model.checkpoint import read_header

        self.journal = journal
        self.legacy, self.as_json = legacy, as_json
        trained_in = read_header(journal.best_path)["precision"]
        self.engine = make_engine(device, precision, trained_in)
        self.predictor, self.header = load_predictor(journal.best_path, self.engine)
        self.summaries: list[dict[str, Any]] = []
        click.echo(f"Run: {journal.folder}, weights of epoch {self.header['epoch']}", err=True)

    def score(
        self, manifest: "Manifest", rows: "pd.DataFrame", dataset: str, split: str, external: bool
    ) -> None:
        """Score ``rows``, write the evaluation folder, print the table."""
        from tqdm import tqdm

        from bus_smp.evaluation.record import evaluate
        from bus_smp.evaluation.score_table import format_table

        folder = self.journal.folder / f"eval-{dataset}-{split}"
        with tqdm(total=len(rows), desc=dataset, unit="image", disable=not sys.stderr.isatty()) as bar:
            summary = evaluate(
                self.predictor,
                self.header,
                manifest,
                rows,
                folder,
                about={
                    "run": self.journal.folder.name,
                    "dataset": dataset,
                    "split": split,
                    "external": external,
                },
                legacy=self.legacy,
                progress=bar.update,
            )
        self.summaries.append(summary)
        if not self.as_json:
            kind = "external test, all used images" if external else f"{split} split of the run's own data"
            click.echo(f"{dataset}: {kind}\n")
            click.echo(format_table(summary["summaries"]))
            for warning in summary["warnings"]:
                click.echo(f"Warning: {warning}")
            if self.legacy:
                from bus_smp.evaluation.legacy import format_legacy

                click.echo("\n" + format_legacy(summary["legacy"]))
        click.echo(f"Written: {folder}", err=True)

    def finish(self) -> None:
        """Print the JSON, if that was asked for: one object for one target, else a list."""
        if self.as_json:
            document = self.summaries[0] if len(self.summaries) == 1 else self.summaries
            click.echo(json.dumps(document, indent=2, allow_nan=False))
