"""The CLAIM checklist, answered as far as the files of a run can; the rest is marked for the authors."""

from typing import Any

from jinja2 import Environment

from bus_smp.report.facts import read_words
from bus_smp.report.markdown import finished
from bus_smp.report.records import RunRecord

STATES = ("answered", "in part", "for the authors")


def claim_checklist(run: RunRecord, environment: Environment) -> list[dict[str, Any]]:
    """The sections of ``claim.yaml``, in which every item has its ``state`` and its ``answer`` for this run."""
    sections = read_words("claim.yaml")
    for section in sections:
        for item in section["items"]:
            if item.get("needs") and not getattr(run, item["needs"]):
                item |= {"state": STATES[-1], "answer": item.get("otherwise", "")}
            answer = environment.from_string(item.get("answer", "")).render(run=run)
            item |= {"state": item.get("state", STATES[-1]), "answer": finished(" ".join(answer.split()))}
    return sections
