"""The one table of metrics, and what derives from it. As a script this file writes the table of docs/evaluation.md anew."""

import itertools
import re
from pathlib import Path

import pytest
from tables import random_table

from bus_smp.statistics.compare import compare
from bus_smp.statistics.comparison_table import format_comparison
from bus_smp.statistics.metrics import BY_KEY, COMPARED, HEADLINES, IMAGE_COLUMNS, METRICS, PRIMARY, Metric
from bus_smp.statistics.score_table import format_table, table_rows
from bus_smp.statistics.summary import NEEDED, summarise

DOCS = Path(__file__).resolve().parents[1] / "docs" / "evaluation.md"
PLACE = re.compile(r"(<!-- metrics[^>]*-->\n).*?(\n<!-- end of metrics -->)", re.DOTALL)


def _without_target(text: str, metric: Metric, put: str) -> str:
    return re.sub(rf"\b{metric.target}\b", put, text) if metric.target else text


def _stem(metric: Metric) -> str:
    return metric.key.replace(metric.target, "*") if metric.target else metric.key


def documented() -> str:
    """The metrics as Markdown tables, one for each question; the same number of several targets is one row."""
    lines = []
    for question, of_question in itertools.groupby(METRICS, lambda metric: metric.question):
        lines += [
            "",
            f"**{question}**",
            "",
            "| number | key | what it is | taken over | not counted where | better | compared |",
        ]
        lines += ["|---|---|---|---|---|---|---|"]
        rows: dict[str, list[Metric]] = {}
        for metric in of_question:
            rows.setdefault(_stem(metric), []).append(metric)
        for stem, (first, *others) in rows.items():
            key = stem if others else first.key
            words = (
                _without_target(first.words, first, "").replace(" ,", ",").strip() if others else first.words
            )
            over = _without_target(first.over, first, "the target")
            compared = ", ".join(m.target or "yes" for m in (first, *others) if m.compared)
            cells = (
                words,
                f"`{key}`",
                first.formula,
                over,
                first.undefined or "-",
                first.better,
                compared or "-",
            )
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def test_the_documentation_holds_the_table_as_it_is():
    found = PLACE.search(DOCS.read_text(encoding="utf-8"))
    assert found and found.group() == found[1] + documented() + found[2], (
        "type: python tests/test_metric_table.py"
    )


@pytest.fixture(scope="module")
def table():
    return random_table(40, 12, 0).assign(pixel_mm=0.1)


def test_every_entry_is_in_the_summary_under_its_part_and_in_the_printed_table(table):
    summary = summarise(table, draws=0)
    assert {key for part in ("metrics", "rates") for key in summary[part]} == set(BY_KEY)
    assert all(metric.key in summary[metric.part] for metric in METRICS)
    assert {words for _, words, _ in table_rows({"model": summary})} == {
        m.words for m in METRICS if m.printed
    }
    assert len(BY_KEY) == len({m.words for m in METRICS}) == len(METRICS), (
        "a key or its words stand for two numbers"
    )
    assert all(set(level) >= set(HEADLINES) for of in summary["strata"].values() for level in of.values())


def test_the_comparison_of_two_runs_is_of_the_entries_marked_for_it(table):
    comparison = compare(table, table, draws=0, permutations=10)
    assert list(comparison["metrics"]) == list(COMPARED)
    assert (COMPARED[0], next(iter(HEADLINES)), comparison["primary"]) == (PRIMARY, PRIMARY, PRIMARY)
    printed = format_comparison({**comparison, "pairs": 1}, ["a", "b"])
    assert all(BY_KEY[key].words in printed for key in COMPARED)


def test_a_new_number_is_one_entry(table, monkeypatch):
    """Columns, summary and printed table follow; nothing else is touched."""
    entry = Metric(
        "solidity", "Solidity predicted", METRICS[0].question, "mean", "all images", ("solidity_predicted",),
        BY_KEY["pixel_brier"].estimator,
    )  # fmt: skip
    for module in ("summary", "score_table"):
        monkeypatch.setattr(f"bus_smp.statistics.{module}.METRICS", (*METRICS, entry))
    monkeypatch.setitem(BY_KEY, entry.key, entry)
    summary = summarise(table, draws=20)
    assert summary["rates"]["solidity"]["mean"] == pytest.approx(table["solidity_predicted"].mean())
    assert "  Solidity predicted" in format_table({"model": summary})


def test_a_table_needs_the_columns_that_the_metrics_are_computed_from(table):
    columns = {column for metric in METRICS for column in metric.columns}
    assert columns - set(IMAGE_COLUMNS) <= set(NEEDED) <= set(table.columns)


if __name__ == "__main__":
    DOCS.write_text(
        PLACE.sub(lambda m: m[1] + documented() + m[2], DOCS.read_text(encoding="utf-8")), encoding="utf-8"
    )
