"""What a reader is asked: the words of the page, and what an answer may be.

Descriptors are those of the ACR BI-RADS Atlas 2013, ultrasound. The page builds its form from this table.
"""

import re
from collections.abc import Mapping
from typing import Any

from bus_smp.errors import DataError

_YES_NO = (("no", "No"), ("yes", "Yes"))
_LESION = {"lesion": "yes"}

# kind: "one" of the options, "many" of them, "number" from..to, or "text". when: asked only after these answers.
# phases: "own" before the model's answer is shown, "final" after it; in a mode with one phase all are asked.
QUESTIONS: tuple[dict[str, Any], ...] = (
    {
        "key": "agreement", "words": "Do you agree with the answer shown?", "kind": "one", "phases": ("final",), "required": True,
        "options": (("agree", "Agree"), ("partly", "Agree in part"), ("disagree", "Disagree")),
    },
    {"key": "reason", "words": "Why not?", "kind": "text", "phases": ("final",), "when": {"agreement": ("partly", "disagree")}},
    {
        "key": "vote", "words": "Which answer is better?", "kind": "one", "phases": ("final",), "required": True,
        "options": (("a", "A"), ("b", "B"), ("equal", "Equally good"), ("neither", "Neither is usable")),
    },
    {"key": "vote_reason", "words": "Why?", "kind": "text", "phases": ("final",)},
    {
        "key": "lesion", "words": "Is there a lesion?", "kind": "one", "phases": ("own", "final"), "required": True,
        "options": _YES_NO,
    },
    {
        "key": "class", "words": "Benign or malignant?", "kind": "one", "phases": ("own", "final"), "required": True,
        "when": _LESION, "options": (("benign", "Benign"), ("malignant", "Malignant")),
    },
    {
        "key": "birads", "words": "BI-RADS category", "kind": "one", "phases": ("own", "final"), "required": True,
        "options": tuple((str(number), str(number)) for number in range(7)), "digits_from": 0,
    },
    {
        "key": "confidence", "words": "Confidence, %", "kind": "number", "phases": ("own", "final"), "required": True,
        "from": 0, "to": 100,
    },
    {
        "key": "shape", "words": "Shape", "kind": "one", "phases": ("own",), "when": _LESION,
        "options": (("oval", "Oval"), ("round", "Round"), ("irregular", "Irregular")),
    },
    {
        "key": "orientation", "words": "Orientation", "kind": "one", "phases": ("own",), "when": _LESION,
        "options": (("parallel", "Parallel"), ("not parallel", "Not parallel")),
    },
    {
        "key": "margin", "words": "Margin", "kind": "many", "phases": ("own",), "when": _LESION,
        "options": (
            ("circumscribed", "Circumscribed"), ("indistinct", "Indistinct"), ("angular", "Angular"),
            ("microlobulated", "Microlobulated"), ("spiculated", "Spiculated"),
        ),
    },
    {
        "key": "echo", "words": "Echo pattern", "kind": "one", "phases": ("own",), "when": _LESION,
        "options": (
            ("anechoic", "Anechoic"), ("hyperechoic", "Hyperechoic"), ("complex", "Complex cystic and solid"),
            ("hypoechoic", "Hypoechoic"), ("isoechoic", "Isoechoic"), ("heterogeneous", "Heterogeneous"),
        ),
    },
    {
        "key": "posterior", "words": "Posterior features", "kind": "one", "phases": ("own",), "when": _LESION,
        "options": (
            ("none", "None"), ("enhancement", "Enhancement"), ("shadowing", "Shadowing"), ("combined", "Combined"),
        ),
    },
    {
        "key": "calcifications", "words": "Calcifications", "kind": "one", "phases": ("own",), "when": _LESION,
        "options": (
            ("none", "None"), ("in mass", "In the mass"), ("outside", "Outside a mass"), ("intraductal", "Intraductal"),
        ),
    },
    {
        "key": "side", "words": "Side", "kind": "one", "phases": ("own",), "when": _LESION,
        "options": (("right", "Right"), ("left", "Left")),
    },
    {"key": "clock", "words": "Clock position, h", "kind": "number", "phases": ("own",), "when": _LESION, "from": 1, "to": 12},
    {
        "key": "nipple_mm", "words": "Distance from the nipple, mm", "kind": "number", "phases": ("own",), "when": _LESION,
        "from": 0, "to": 300,
    },
    {
        "key": "third_mm", "words": "Third dimension (orthogonal view), mm", "kind": "number", "phases": ("own",), "when": _LESION,
        "from": 0, "to": 300,
    },
    {
        "key": "seen", "words": "Have you seen this image before?", "kind": "one", "phases": ("own",),
        "options": (*_YES_NO, ("unsure", "Not sure")),
    },
    {"key": "comment", "words": "Comment", "kind": "text", "phases": ("own", "final")},
)  # fmt: skip

# As in form.js.
_LONGEST_TEXT = 2000
_HALVES = re.compile("[\ud800-\udfff]")


def questions_for(mode: str, sources: int) -> dict[str, list[dict[str, Any]]]:
    """The questions of each phase in their order.

    Args:
        mode: ``blind`` has the phases ``own`` and ``final``; ``concurrent`` and ``none`` only ``final``.
        sources: how many answers are shown: none, that of one model, or those of two to choose from.
    """
    left_out = {0: ("agreement", "reason", "vote", "vote_reason"), 1: ("vote", "vote_reason")}
    dropped = left_out.get(sources if mode != "none" else 0, ("agreement", "reason"))
    asked = [question for question in QUESTIONS if question["key"] not in dropped]
    if mode != "blind":
        # the reader's own words first, then the verdict on the model's answer
        return {"final": sorted(asked, key=lambda question: question["phases"] == ("final",))}
    return {phase: [one for one in asked if phase in one["phases"]] for phase in ("own", "final")}


def check_answers(answers: Any, questions: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the answers to the questions that were asked, in their order.

    Raises:
        DataError: if one is missing, or is none of those that the question allows.
    """
    if not isinstance(answers, Mapping):
        raise DataError("the answers are no table")
    kept: dict[str, Any] = {}
    for question in questions:
        if not _is_asked(question, kept):
            continue
        value = answers.get(question["key"])
        if value in (None, "", []):
            if question.get("required"):
                raise DataError(f"not answered: {question['words']}")
            continue
        if not _fits(value, question):
            raise DataError(f"{question['words']}: the answer does not fit the question")
        kept[question["key"]] = value
    return kept


def _is_asked(question: Mapping[str, Any], answers: Mapping[str, Any]) -> bool:
    """Whether the answers so far lead to this question."""
    return all(
        answers.get(key) in ((wanted,) if isinstance(wanted, str) else wanted)
        for key, wanted in question.get("when", {}).items()
    )


def _fits(value: Any, question: Mapping[str, Any]) -> bool:
    kind = question["kind"]
    if kind == "text":
        # halves of characters, which JSON can hold, cannot be written
        return isinstance(value, str) and len(value) <= _LONGEST_TEXT and not _HALVES.search(value)
    if kind == "number":
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number and question["from"] <= value <= question["to"]
    known = [option for option, _ in question["options"]]
    if kind == "one":
        return isinstance(value, str) and value in known
    return isinstance(value, list) and all(isinstance(one, str) and one in known for one in value)
