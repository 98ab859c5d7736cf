"""Printing summaries of evaluations, for ``evaluate`` and ``crosseval``."""

import json
from collections.abc import Iterable
from typing import Any

import click


def print_summaries(summaries: Iterable[dict[str, Any]], *, legacy: bool, as_json: bool) -> None:
    """Print each table as soon as it is there; or, at the end, JSON: an object for one summary, else a list."""
    documents = []
    for summary in summaries:
        documents.append(summary)
        if not as_json:
            _print_table(summary, legacy)
    if as_json:
        click.echo(json.dumps(documents[0] if len(documents) == 1 else documents, indent=2, allow_nan=False))


def _print_table(summary: dict[str, Any], legacy: bool) -> None:
    from bus_smp.evaluation.pooling import format_members
    from bus_smp.statistics.score_table import format_table

    if summary["external"]:
        proven = "external test" if summary["external"] is True else "not known to be external"
        kind = f"{proven}, all used images"
    elif summary["split"] == "oof":
        kind = "out-of-fold predictions, each image by the run that has not seen its fold"
    else:
        kind = f"{summary['split']} split of the run's own data"
    click.echo(f"{summary['dataset']}: {kind}\n")
    click.echo(format_members(summary) if "members" in summary else format_table(summary["summaries"]))
    for warning in summary["warnings"]:
        click.echo(f"Warning: {warning}")
    if legacy and "legacy" in summary:
        from bus_smp.statistics.legacy import format_legacy

        click.echo("\n" + format_legacy(summary["legacy"]))
