"""Printing summaries of evaluations, for ``evaluate`` and ``crosseval``."""

import contextlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bus_smp.commands.quoting import command_line, run_name
from bus_smp.errors import BusSmpError

if TYPE_CHECKING:
    from bus_smp.data.manifest import Manifest


def print_summaries(summaries: Iterable[dict[str, Any]], *, legacy: bool, as_json: bool, full: bool) -> None:
    """Print each summary as soon as it is there; or, at the end, JSON: an object for one summary, else a list.

    Args:
        full: print the whole table after the headlines.
    """
    documents = []
    for summary in summaries:
        documents.append(summary)
        if not as_json:
            _print_summary(summary, legacy, full)
    if as_json:
        click.echo(json.dumps(documents[0] if len(documents) == 1 else documents, indent=2, allow_nan=False))


def next_command(folder: Path, training: "Manifest", out: Path) -> str:
    """What follows a training or ``evaluate``: an external test that is not refused at once, or the report."""
    from bus_smp.data.manifest import list_manifests, read_manifest

    run, seen = run_name(folder, out), training.used()
    for path in list_manifests(Path("data_manifests")):
        with contextlib.suppress(BusSmpError):
            target = read_manifest(path)
            new = target.used()
            shared = [set(new[key]) & set(seen[key]) for key in ("dataset", "group_id", "sha256")]
            if len(new) and not any(shared):
                return command_line("crosseval", "--run", run, "--target", path.stem, out=out)
    return command_line("report", run, out=out)


def _print_summary(summary: dict[str, Any], legacy: bool, full: bool) -> None:
    from bus_smp.evaluation.evaluate import BEATEN
    from bus_smp.evaluation.pooling import format_lines
    from bus_smp.statistics.score_table import columns_of, format_headlines, format_table
    from bus_smp.text import counted, folded, printable

    def show(text: str) -> None:
        click.echo("\n".join(folded(printable(text))))

    if summary["external"]:
        kind = "external test" if summary["external"] is True else "not known to be external"
    elif summary["split"] == "oof":
        kind = "out-of-fold predictions, each image by the run that has not seen its fold"
    else:
        kind = f"{summary['split']} split of the run's own data"
    columns, runs = columns_of(summary), summary.get("runs", [])
    counts = next(iter(columns.values()))["counts"]
    labels = ", ".join(f"{number} {label}" for label, number in counts["by_label"].items() if number)
    of = f" of {counted(counts['groups'], 'patient')}" if summary["patient_known"] else ""
    brackets = f"mean of {counted(len(runs), 'run')} [sd between them]" if runs else "[95 % CI]"
    show(f"{summary['dataset']}: {kind}, {counted(counts['images'], 'image')}{of} ({labels}); {brackets}")
    click.echo("\n".join(format_headlines(columns)))
    # the verdict has said it, and a single run's own warnings stand in its own folder
    warnings = [w for w in summary["warnings"] if not w.startswith((BEATEN, *(f"{run}: " for run in runs)))]
    for warning in warnings:
        show(f"Warning: {warning}")
    others = [w for w in summary["warnings"] if w not in warnings and not w.startswith(BEATEN)]
    if others and not full:
        show(f"{counted(len(others), 'warning')} about single runs: --full shows them.")
    if full:
        click.echo("\n" + format_table(columns))
        if runs:
            click.echo("\n" + format_lines({run: summary["summaries"][run] for run in runs}))
            for warning in others:
                show(f"Warning: {warning}")
    if legacy and "legacy" in summary:
        from bus_smp.statistics.legacy import format_legacy

        click.echo("\n" + format_legacy(summary["legacy"]))
