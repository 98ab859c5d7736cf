"""One reading: who reads what in which mode, what was answered already, and the model behind it.

The mode decides what leaves this process. In ``blind`` no byte of the model's answer is sent before the reader's own
answer to the same image is on the disk; in ``none`` nothing of a model is sent.
"""

import asyncio
import hashlib
import json
import math
import secrets
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

import bus_smp
from bus_smp.classes import LABELS
from bus_smp.data.images import read_mask
from bus_smp.errors import BusSmpError, DataError
from bus_smp.measures.dimensions import measure_lesions
from bus_smp.measures.overlap import score_mask
from bus_smp.serve.answers import Answer, Source
from bus_smp.serve.questions import check_answers, questions_for
from bus_smp.serve.records import Journal, mask_sha256, store_image, store_mask, write_corrections
from bus_smp.serve.worklist import Case, Held, Picture, Worklist
from bus_smp.statistics.readers import call_of

# Images that wait for the model; a browser that asks for more has to try again.
_MOST_WAITING = 16

_LARGEST_FORM = 100_000


class Busy(Exception):
    """Too many images wait for the model."""


class TooEarly(BusSmpError):
    """The answer may not be shown yet, or not at all."""


@dataclass(frozen=True)
class Opened:
    """A picture of a case, with what the records call it."""

    case: Case
    frame: int
    picture: Picture


class Reading:
    """Everything behind the page. Its coroutines run in one event loop.

    Args:
        sources: none, one, or two whose answers are compared without their names.
        seed: of the sides on which two sources are shown.
    """

    def __init__(
        self,
        worklist: Worklist,
        journal: Journal,
        sources: Sequence[Source],
        *,
        mode: str,
        reader: str,
        seed: int = 0,
    ) -> None:
        self.worklist, self.journal, self.mode, self.reader = worklist, journal, mode, reader
        self.sources = tuple(sources) if mode != "none" else ()
        self.questions = questions_for(mode, len(self.sources))
        self._seed = seed
        self._worker = ThreadPoolExecutor(1, "model")
        self._waiting: dict[tuple[str, int], asyncio.Future] = {}
        self._answers = Held()
        self._one_own = threading.Lock()
        settings = {
            "mode": mode,
            "sources": [{"name": one.name, **(one.record or {})} for one in self.sources],
        }
        self._own, self._final, self._shown = self._resume(settings)
        self.session = secrets.token_hex(8)
        self._write("session", settings | {"seed": seed, "bus_smp": bus_smp.__version__})

    def _resume(self, settings: Mapping[str, Any]) -> tuple[dict, dict, set]:
        """What this reader has answered in earlier readings with the same model and mode."""
        own, final, shown = {}, {}, set()
        sessions = {
            record["session"]
            for record in self.journal.records
            if record["kind"] == "session"
            and all(record.get(key) == value for key, value in settings.items())
        }
        for record in self.journal.records:
            if record["session"] in sessions and record["reader"] == self.reader:
                if record["kind"] == "own":
                    own[record["case"]] = record
                elif record["kind"] == "final":
                    final[record["case"]] = record
                elif record["kind"] == "shown":
                    shown.add(record["case"])
        return own, final, shown

    def _write(self, kind: str, more: Mapping[str, Any]) -> dict[str, Any]:
        return self.journal.append({"kind": kind, "reader": self.reader, "session": self.session, **more})

    def finished(self) -> list[str]:
        """Ids of the cases on the disk that this reader has finished earlier."""
        files = {record.get("file") for record in self._final.values()} - {None, ""}
        if not files:
            return []
        return [case.id for case in self.worklist.cases if self.worklist.digest(case) in files]

    def close(self) -> None:
        """Wait for the image that the model is computing."""
        self._worker.shutdown(wait=True, cancel_futures=True)

    # what the page asks for

    def open(self, case_id: str, frame: int) -> Opened:
        """The picture of a case; errors as ``Worklist.open``."""
        return Opened(self.worklist.find(case_id), frame, self.worklist.open(case_id, frame))

    def describe(self, opened: Opened) -> dict[str, Any]:
        """What the page shows of a picture before any answer."""
        picture, key = opened.picture, opened.picture.key
        own, final = self._own.get(key), self._final.get(key)
        return {
            "width": picture.pixels.shape[1],
            "height": picture.pixels.shape[0],
            "frames": opened.case.frames,
            "pixel_mm": picture.pixel_mm,
            "size_source": picture.size_source,
            "notes": picture.notes,
            "phase": "own" if self.mode == "blind" and own is None else "final",
            "own": own and own["answers"],
            "done": final is not None,
        }

    def measure(self, opened: Opened, mask: np.ndarray) -> dict[str, Any]:
        """The lesions of a mask, in mm where the picture has them."""
        lesions, small = measure_lesions(mask, opened.picture.pixel_mm)
        return {"lesions": lesions, "small": small}

    def sides(self, opened: Opened) -> list[Source]:
        """The sources in the order in which they are shown: that of two depends on the seed and the image."""
        digest = hashlib.sha256(f"{self._seed}:{opened.picture.key}".encode()).digest()
        return list(reversed(self.sources) if len(self.sources) > 1 and digest[0] & 1 else self.sources)

    async def prepare(self, opened: Opened) -> None:
        """Let the model begin, unless others wait for it; nothing is given out."""
        if not self._waiting:
            for source in self.sources:
                self._submit(opened, source)

    async def show(self, opened: Opened) -> list[tuple[Source, Answer]]:
        """The answers to a picture, by side; the first time a record says that they were shown.

        Raises:
            TooEarly: in mode ``none``, and in ``blind`` before the own answer.
            Busy: if too many images wait for the model.
        """
        key = opened.picture.key
        if not self.sources:
            raise TooEarly("this reading shows no answers of a model")
        if self.mode == "blind" and key not in self._own:
            raise TooEarly("the model's answer is shown after your own is stored")
        answers = [(source, await self._answer(opened, source)) for source in self.sides(opened)]
        if key not in self._shown:
            await asyncio.to_thread(self._write, "shown", self._names(opened) | {"answers": _shown(answers)})
            self._shown.add(key)
        return answers

    async def _answer(self, opened: Opened, source: Source) -> Answer:
        held = self._answers.get((opened.picture.key, self.sources.index(source)))
        return held or await asyncio.shield(self._submit(opened, source))

    def _submit(self, opened: Opened, source: Source) -> asyncio.Future:
        key = opened.picture.key, self.sources.index(source)
        if key not in self._waiting:
            if len(self._waiting) >= _MOST_WAITING:
                raise Busy

            def give() -> Answer:
                answer = source.give(opened.case, opened.picture)
                self._answers.put(key, answer, answer.mask.nbytes)
                return answer

            self._waiting[key] = future = asyncio.get_running_loop().run_in_executor(self._worker, give)

            def finish(done: asyncio.Future) -> None:
                self._waiting.pop(key, None)
                if not done.cancelled():
                    # an error of an answer that nobody waits for is raised again when it is asked for
                    done.exception()

            future.add_done_callback(finish)
        return self._waiting[key]

    def _names(self, opened: Opened) -> dict[str, Any]:
        return {
            "case": opened.picture.key,
            "frame": opened.frame + 1,
            "patient": self.journal.patient_key(opened.picture.patient),
        }

    def store_own(self, opened: Opened, sent: Mapping[str, Any], mask: np.ndarray | None) -> None:
        """Store what the reader answers, and has outlined, before anything is shown.

        Raises:
            DataError: if an answer is missing or wrong, or the model's was shown already.
            BusSmpError: if it cannot be written.
        """
        key = opened.picture.key
        if self.mode != "blind":
            raise DataError("this reading has no answer of its own before the model's")
        answers = check_answers(sent.get("answers"), self.questions["own"])
        with self._one_own:
            if key in self._own:
                raise DataError(
                    "your own answer to this image is stored already, and the model's may have been seen",
                    hint="load the page again to go on from it",
                )
            drawn = None
            if mask is not None and mask.any():
                _check_consistent(mask, answers)
                drawn = store_mask(self.journal.folder, key, mask)
            self._own[key] = self._write(
                "own",
                self._names(opened) | {"answers": answers, "mask": drawn, "seconds": _seconds(sent, "own")},
            )

    async def store_final(
        self, opened: Opened, sent: Mapping[str, Any], mask: np.ndarray | None
    ) -> dict[str, Any]:
        """Store the reader's last word, and the mask if it was drawn or changed.

        Args:
            sent: ``answers``, ``seconds``, ``calipers`` ([[x, y, x, y], ...] in pixels) and ``base``: the side (0 or 1)
                whose mask was corrected.

        Returns:
            ``changed``: pixels that differ from the model's mask; ``corrections``: rows of the table.

        Raises:
            DataError, BusSmpError: as ``store_own``; also if the mask contradicts the answers.
        """
        if self.mode == "blind" and opened.picture.key not in self._own:
            raise DataError("your own answer comes first")
        answers = check_answers(sent.get("answers"), self.questions["final"])
        before = None
        sides: dict[str, Any] = {"shown": []}
        if self.sources:
            given = await self.show(opened)
            base = sent.get("base", 0)
            if type(base) is not int or base not in range(len(given)):
                raise DataError("no such side")
            before = given[base][1].mask
            sides = {"shown": _shown(given), "base": base}
        # without a model, what is drawn differs from an empty mask
        changed = 0 if mask is None else int(np.count_nonzero(mask != (0 if before is None else before)))
        return await asyncio.to_thread(
            self._store_final, opened, sent, answers, before, mask if changed else before, changed, sides
        )

    def _own_mask(self, own: Mapping[str, Any] | None) -> np.ndarray | None:
        if not own or not own["mask"]:
            return None
        return read_mask([self.journal.folder / own["mask"]["file"]], "color", LABELS[-1])

    def _store_final(self, opened, sent, answers, before, mask, changed, sides) -> dict[str, Any]:
        key, picture, folder = opened.picture.key, opened.picture, self.journal.folder
        if changed:
            _check_consistent(mask, answers)
        own = self._own.get(key)
        self._final[key] = self._write(
            "final",
            self._names(opened)
            | sides
            | {
                "answers": answers,
                "own": own and own["answers"],
                "mask_before": None if before is None else store_mask(folder, key, before),
                "mask_after": None if mask is None else store_mask(folder, key, mask),
                "mask_label": None if mask is None else _label_of(mask),
                "image": store_image(folder, key, picture.pixels) if changed else "",
                "changed_pixels": changed,
                "dice": _dice(mask, before),
                "dice_own": _dice(self._own_mask(own), before),
                "lesions": None if mask is None else self.measure(opened, mask)["lesions"],
                "calipers": _calipers(sent.get("calipers", []), picture),
                "pixel_mm": picture.pixel_mm,
                "size_source": picture.size_source,
                "seconds": _seconds(sent, "own", "final"),
                "file": self.worklist.digest(opened.case),
            },
        )
        return {"changed": changed, "corrections": write_corrections(folder, self.journal.records)}


def _shown(answers: Sequence[tuple[Source, Answer]]) -> list[dict[str, Any]]:
    """What a record keeps of the answers, by side."""
    return [
        {
            "source": source.name,
            "label": answer.label,
            "score": answer.score,
            "mask": mask_sha256(answer.mask),
        }
        for source, answer in answers
    ]


def _label_of(mask: np.ndarray) -> str:
    return LABELS[int(mask.max(initial=0))]


def _dice(mask: np.ndarray | None, before: np.ndarray | None) -> float | None:
    """Lesion Dice of the model's mask with the reader's; None where one is not there or the reader's is empty."""
    if mask is None or before is None:
        return None
    dice = score_mask(mask, before)["dice_lesion"]
    return None if math.isnan(dice) else round(dice, 6)


def _check_consistent(mask: np.ndarray, answers: Mapping[str, Any]) -> None:
    label = _label_of(mask)
    answer = call_of(answers)
    if label != answer:
        marks = "no lesion" if label == LABELS[0] else f"a {label} lesion"
        says = "there is none" if answer == LABELS[0] else f"it is {answer}"
        raise DataError(
            f"the outline marks {marks}, your answer says {says}",
            hint="change the answer, or the outline: C changes the class of a lesion, Delete removes it",
        )


def _seconds(sent: Mapping[str, Any], *phases: str) -> dict[str, float]:
    given = sent.get("seconds")
    found: dict[str, float] = {}
    if not isinstance(given, Mapping):
        return found
    for phase in phases:
        value = given.get(phase)
        if isinstance(value, int | float) and 0 <= value < 1e6:
            found[phase] = round(value, 1)
    return found


def _calipers(given: Any, picture: Picture) -> list[dict[str, Any]]:
    """Lines that the reader measured, with their lengths by the picture's own rule."""
    height, width = picture.pixels.shape[:2]
    across, down = picture.pixel_mm or (1.0, 1.0)
    found = []
    for line in given if isinstance(given, list) else []:
        if not (isinstance(line, list) and len(line) == 4 and all(isinstance(v, int | float) for v in line)):
            raise DataError("a caliper is two points")
        x0, y0, x1, y1 = line
        if not (all(0 <= x <= width for x in (x0, x1)) and all(0 <= y <= height for y in (y0, y1))):
            raise DataError("a caliper lies outside of the image")
        length = math.hypot((x1 - x0) * across, (y1 - y0) * down)
        found.append({"line": line, "length": round(length, 2), "unit": "mm" if picture.pixel_mm else "px"})
    return found


def parse_answer(body: bytes, shape: tuple[int, int]) -> tuple[dict[str, Any], np.ndarray | None]:
    """The parts of an answer: a line of JSON, then the class indices of an outline line by line, or nothing.

    Raises:
        DataError: if it is not of this form.
    """
    head, _, pixels = body.partition(b"\n")
    try:
        form = json.loads(head) if len(head) <= _LARGEST_FORM else None
    except (ValueError, RecursionError):
        form = None
    if not isinstance(form, dict):
        raise DataError("the answers cannot be read")
    return form, parse_mask(pixels, shape) if pixels else None


def parse_mask(body: bytes, shape: tuple[int, int]) -> np.ndarray:
    """Class indices, uint8 (H, W), from their bytes.

    Raises:
        DataError: if they are of another size, or no class indices.
    """
    if len(body) != shape[0] * shape[1]:
        raise DataError("the outline has another size than its image")
    mask = np.frombuffer(body, np.uint8).reshape(shape)
    if mask.max(initial=0) >= len(LABELS):
        raise DataError("the outline holds a class that there is not")
    return mask
