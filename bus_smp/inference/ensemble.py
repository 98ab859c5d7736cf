"""Several networks, or several views of one, as one predictor: the mean of their probabilities, and how far they differ."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from bus_smp.data.images import restore_probabilities
from bus_smp.inference.predictor import Prediction, Predictor, Prepared
from bus_smp.measures.decision import DecisionRules, join_rules
from bus_smp.measures.overlap import classes_of
from bus_smp.measures.uncertainty import mean_pairwise_dice


class MirrorPredictor(Predictor):
    """A predictor that mirrors each image left to right, predicts it, and mirrors the result back."""

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor
        self.size, self.batch_size = predictor.size, predictor.batch_size
        self.weights, self.computed_in = predictor.weights, predictor.computed_in

    def prepare(self, image: np.ndarray) -> Prepared:
        """See ``Predictor.prepare``."""
        return self.predictor.prepare(np.ascontiguousarray(image[:, ::-1]))

    def predict_prepared(self, images: Sequence[Prepared]) -> list[Prediction]:
        """See ``Predictor.predict_prepared``."""
        return [
            replace(found, grid=_mirrored(found.grid), raw_grid=_mirrored(found.raw_grid))
            for found in self.predictor.predict_prepared(images)
        ]


class EnsemblePredictor(Predictor):
    """The mean of several predictors. They predict a batch one after the other, and only the sum is kept.

    Outlines come from the mean of the probabilities before temperature, at the image's own size; scores from the mean of
    the calibrated ones, on the grid of the largest network. The threshold is the mean of theirs.

    Args:
        members: networks, whose grids may differ in size and geometry; or the views of one network.
        of: what they are, ``networks`` or ``views``: the key of their disagreement.
    """

    def __init__(self, members: Sequence[Predictor], of: str = "networks") -> None:
        # the largest grid comes first, the others are brought to it; of equal sizes, whose grids differ where one is
        # letterboxed, always the same, in whichever order they are named
        self.members = sorted(members, key=lambda member: (-member.size, member.weights))
        self.of = of
        self.size = self.members[0].size
        self.batch_size = min(member.batch_size for member in members)
        self.weights = tuple(dict.fromkeys(one for member in members for one in member.weights))
        ways = [member.computed_in for member in members]
        self.computed_in = {key: "+".join(dict.fromkeys(way[key] for way in ways)) for key in ways[0]}

    def prepare(self, image: np.ndarray) -> Prepared:
        """See ``Predictor.prepare``."""
        return Prepared(image.shape[:2], tuple(member.prepare(image) for member in self.members))

    def predict_prepared(self, images: Sequence[Prepared]) -> list[Prediction]:
        """See ``Predictor.predict_prepared``."""
        means = [_Mean() for _ in images]
        for number, member in enumerate(self.members):
            found = member.predict_prepared([image.grids[number] for image in images])
            for mean, prediction in zip(means, found, strict=True):
                mean.add(prediction)
        return [mean.prediction(self.of) for mean in means]


class _Mean:
    """The sum of the predictions of one image; of each one only the lesion mask is kept."""

    def __init__(self) -> None:
        self.lesions: list[np.ndarray] = []
        self.raw: dict[tuple[int, ...], np.ndarray] = {}
        self.disagreements: list[dict[str, float]] = []
        self.of_heads: list[tuple[np.ndarray | None, Mapping[str, float] | None]] = []
        self.rules: list[DecisionRules] = []
        self.ood_scores: list[float] = []

    def add(self, found: Prediction) -> None:
        if not self.lesions:
            self.shape = found.shape
            self.grid = np.zeros_like(found.grid)
            # float64: the difference of two large sums
            self.lesion, self.squared = np.zeros((2, *found.grid.shape[1:]))
        extent = self.grid.shape[1:]
        grid, raw = (_on(extent, of) for of in (found.grid, found.raw_grid))
        self.grid += grid
        probability = (1 - grid[0]).astype(np.float64)
        self.lesion += probability
        self.squared += probability**2
        self.lesions.append(classes_of(raw) != 0)
        for part in found.parts or (found.raw_grid,):
            self.raw[part.shape] = self.raw[part.shape] + part if part.shape in self.raw else part
        self.disagreements.append(dict(found.disagreement))
        self.of_heads.append((found.image_probabilities, found.head_shape))
        self.rules.append(found.rules)
        self.ood_scores.append(found.ood_score)

    def prediction(self, of: str) -> Prediction:
        number = np.float32(len(self.lesions))
        parts = tuple(part / number for part in self.raw.values())
        raw = sum((_on(self.grid.shape[1:], part) for part in parts[1:]), parts[0])
        variance = self.squared / number - (self.lesion / number) ** 2
        inner = self.disagreements[0].keys()
        return Prediction(
            self.grid / number,
            raw,
            self.shape,
            join_rules(self.rules),
            spread=np.sqrt(variance.clip(0)).astype(np.float32),
            disagreement={of: 1 - mean_pairwise_dice(self.lesions)}
            | {key: float(np.mean([one[key] for one in self.disagreements])) for key in inner},
            ood_score=float(np.mean(self.ood_scores)),
            parts=parts if len(parts) > 1 else (),
            **self._mean_of_heads(),
        )

    def _mean_of_heads(self) -> dict[str, Any]:
        """The mean output of the heads of the whole image; None for a head that not every network has."""
        images, shapes = zip(*self.of_heads, strict=True)
        return {
            "image_probabilities": np.mean(images, axis=0)
            if all(one is not None for one in images)
            else None,
            "head_shape": {key: float(np.mean([one[key] for one in shapes])) for key in shapes[0]}
            if all(one is not None for one in shapes)
            else None,
        }


def _mirrored(grid: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(grid[..., ::-1])


def _on(extent: tuple[int, ...], grid: np.ndarray) -> np.ndarray:
    """Probabilities (C, h, w) on a grid of another ``extent``: both show the whole image."""
    return grid if grid.shape[1:] == extent else restore_probabilities(grid, (extent[0], extent[1]))
