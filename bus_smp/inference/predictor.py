"""From images to class probabilities: at each image's own size, and on the network's grid."""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar, overload

import numpy as np
import torch
from torch import nn

from bus_smp.classes import BENIGN, LABELS, MALIGNANT
from bus_smp.data.geometry import Geometry
from bus_smp.data.images import check_image, read_image, restore_in_bands, restore_probabilities
from bus_smp.errors import EvaluationError
from bus_smp.figures.overlay import overlay
from bus_smp.inference.folding import MainHead, fold_batch_norms
from bus_smp.measures.decision import NO_RULES, DecisionRules, MarkedLesions
from bus_smp.measures.out_of_distribution import Reference
from bus_smp.measures.overlap import classes_of, confusion, malignant_score, predicted_label
from bus_smp.measures.shape import SHAPES
from bus_smp.measures.uncertainty import binary_entropy, uncertainty_row
from bus_smp.model.checkpoint import load_model
from bus_smp.model.hybrid import HybridResNet50, normalise
from bus_smp.system.engine import Engine
from bus_smp.system.files import file_sha256

# Of an image with more pixels, the probabilities at its own size are never in memory as a whole, only for its mask.
_LARGE = 16_000_000


class Outputs(NamedTuple):
    """What a network returns for N images, float32.

    Attributes:
        logits: (N, classes, S, S).
        image: (N, 3), logits of normal, benign and malignant for the whole image; None without an image head.
        shape: (N, 4), the lesion on the grid: share of its area, depth to width, circularity, solidity; None without a shape
            head.
        features: (N, channels), mean of the encoder's feature at 1/16; None where an exported file has no such output.
    """

    logits: np.ndarray
    image: np.ndarray | None = None
    shape: np.ndarray | None = None
    features: np.ndarray | None = None


def outputs_of(found: torch.Tensor | Sequence[torch.Tensor], names: Sequence[str]) -> Outputs:
    """The tensors that a ``MainHead`` with these ``names`` returned, as arrays."""
    parts = [found] if isinstance(found, torch.Tensor) else found
    arrays = (part.float().cpu().contiguous().numpy() for part in parts)
    return Outputs(**dict(zip(names, arrays, strict=True)))


# From uint8 (N, S, S, 3), RGB.
Network = Callable[[np.ndarray], Outputs]


@dataclass(frozen=True, eq=False, repr=False)
class Prediction:
    """What was predicted for one image.

    Attributes:
        grid: float32 (3, h, w), probabilities of background, benign and malignant on the network's grid, without its
            padding, after temperature: scores and calibration come from it. They sum to 1 over the classes.
        raw_grid: the same before temperature.
        shape: height and width of the image in pixels.
        rules: of the run: from which score the image is called malignant, and which lesions are kept.
        image: uint8 (H, W, 3), RGB.
        spread: float32, as large as a plane of ``grid``: standard deviation of the probability of a lesion between the
            networks, or between the views of one; None: there is only one.
        disagreement: 1 - mean pairwise Dice of their lesion masks on the grid, 0..1, of ``networks`` and of ``views``;
            empty: there is only one.
        ood_score: how far the image is from the training images, above 1: out of distribution (``measures.out_of_distribution``);
            NaN: not known.
        parts: the raw grids of networks whose grids differ in size, weighted; at the image's own size they are added.
            Empty: ``raw_grid`` is all.
        image_probabilities: float32 (3,) of normal, benign and malignant, what the image head says, after its own
            temperature; None without such a head.
        head_shape: what the shape head says of the lesion at the image's own size, by the names of ``lesion_shape`` (area in
            pixels); None without one. Circularity and solidity are those on the network's grid.
    """

    grid: np.ndarray
    raw_grid: np.ndarray
    shape: tuple[int, int]
    rules: DecisionRules = NO_RULES
    image: np.ndarray | None = None
    spread: np.ndarray | None = None
    disagreement: Mapping[str, float] = field(default_factory=dict)
    ood_score: float = math.nan
    parts: tuple[np.ndarray, ...] = ()
    image_probabilities: np.ndarray | None = None
    head_shape: Mapping[str, float] | None = None

    @cached_property
    def native(self) -> np.ndarray:
        """Probabilities at the image's own size, float32 (3, H, W).

        They are taken before temperature: masks come from them, so that calibration never moves an outline.
        """
        first, *others = self.parts or (self.raw_grid,)
        whole = restore_probabilities(first, self.shape)
        for part in others:
            whole += restore_probabilities(part, self.shape)
        return whole

    @property
    def mask(self) -> np.ndarray:
        """The class of each pixel, uint8 (H, W): 0 background, 1 benign, 2 malignant.

        It is the most probable one; where ``rules.drops_lesions``, without the lesions that the operating point drops.
        """
        return self.kept_mask if self.rules.drops_lesions else self.plain_mask

    @cached_property
    def lesions(self) -> MarkedLesions:
        """The lesions of the plain mask, with their probabilities after temperature."""
        normal = 0.0 if self.image_probabilities is None else float(self.image_probabilities[0])
        if self._is_large:
            bands = (band[0] for band in restore_in_bands(self.grid[:1], self.shape))
            return MarkedLesions.of(self.plain_mask, bands, normal)
        return MarkedLesions.of(self.plain_mask, restore_probabilities(self.grid[:1], self.shape), normal)

    @cached_property
    def kept_mask(self) -> np.ndarray:
        """The mask at the operating point; the plain mask where the run has none."""
        return (
            self.lesions.kept(self.plain_mask, self.rules)
            if self.rules.has_operating_point
            else self.plain_mask
        )

    @property
    def _is_large(self) -> bool:
        return self.shape[0] * self.shape[1] > _LARGE

    @cached_property
    def plain_mask(self) -> np.ndarray:
        """The most probable class of each pixel, uint8 (H, W)."""
        if self._is_large:
            bands = zip(
                *(restore_in_bands(part, self.shape) for part in self.parts or (self.raw_grid,)), strict=True
            )
            return np.concatenate([classes_of(sum(band[1:], band[0])) for band in bands])
        return classes_of(self.native)

    @property
    def score(self) -> float:
        """The highest probability of malignancy of a pixel, after temperature, in 0..1."""
        return malignant_score(self.grid)

    @property
    def uncertainty(self) -> dict[str, float]:
        """How unsure the mask is, by ``measures.uncertainty.UNCERTAINTIES``; NaN where it needs more than one network or view."""
        return uncertainty_row(self.grid, self.disagreement) | {"ood_score": self.ood_score}

    @property
    def uncertainty_map(self) -> np.ndarray:
        """How unsure each pixel is, float (h, w) on the network's grid, 0..1.

        Twice ``spread``, the standard deviation between networks or views; of a single network the entropy of the
        probability of a lesion, in bits.
        """
        return binary_entropy(1 - self.grid[0]) if self.spread is None else 2 * self.spread

    @property
    def label(self) -> str:
        """The decision: normal, benign or malignant, by the rule that ``label_rule`` states."""
        if self.rules.threshold is None:
            return predicted_label(confusion(np.zeros_like(self.mask), self.mask))
        if self.rules.drops_lesions and not self.mask.any():
            return LABELS[0]
        if self.score >= self.rules.threshold:
            return MALIGNANT.name
        return BENIGN.name if self.mask.any() else LABELS[0]

    def overlay(self) -> np.ndarray:
        """Return the image with the mask drawn on it, uint8 (H, W, 3), RGB: benign green and even, malignant red and hatched."""
        if self.image is None:
            raise ValueError("a prediction without its image: use bus_smp.overlay(image, prediction.mask)")
        return overlay(self.image, self.mask)

    def __repr__(self) -> str:
        lesion = int(np.count_nonzero(self.mask))
        height, width = self.shape
        return f"<Prediction: {self.label}, score {self.score:.3f}, lesion {lesion} of {width} x {height} px>"


def label_rule(rules: DecisionRules) -> str:
    """Return in words how ``Prediction.label`` is decided."""
    dropped = ""
    if rules.drops_lesions and rules.least_area is not None:
        dropped = (
            f"; the mask keeps lesions with a probability >= {rules.least_probability:.6g} "
            f"and >= {rules.least_area:.4%} of the image"
        )
        if rules.most_normal is not None:
            dropped += f", and none where the image head says normal with more than {rules.most_normal:.6g}"
    if rules.threshold is None:
        return f"the lesion with more pixels in the mask; normal if there is none{dropped}"
    malignant = f"malignant if malignant_score >= {rules.threshold:.6g}"
    if dropped:
        return f"normal if the mask shows no lesion; else {malignant}; else benign{dropped}"
    return f"{malignant}; else benign if the mask shows a lesion; else normal"


# An image as a user gives it.
Source = np.ndarray | str | Path
_Sources = TypeVar("_Sources", bound=Source)


@dataclass(frozen=True, eq=False)
class Prepared:
    """An image as ``Predictor.predict_prepared`` takes it: no larger than the networks' grids.

    Attributes:
        shape: height and width of the image in pixels.
        grids: what each network of the predictor gets.
    """

    shape: tuple[int, int]
    grids: tuple[Any, ...]


class Predictor(Protocol):
    """What predicts images: a network, a view of one, or several of them as one. Nobody asks how many there are.

    Attributes:
        size: height and width in pixels of the network's grid; of several networks the largest.
        batch_size: images in one pass of a network.
        weights: SHA-256 of each checkpoint that takes part; empty for weights that are still being trained.
        computed_in: ``backend``, ``device`` and ``precision``: what a number may depend on besides the weights.
    """

    size: int
    batch_size: int
    weights: tuple[str, ...]
    computed_in: dict[str, str]

    def prepare(self, image: np.ndarray) -> Prepared:
        """Bring an image, uint8 RGB (H, W, 3), onto the grids of the networks."""
        ...

    def predict_prepared(self, images: Sequence[Prepared]) -> list[Prediction]:
        """Return the predictions of at most ``batch_size`` images, without their ``image``.

        Raises:
            EvaluationError: if the network returns NaN or infinity.
        """
        ...

    @overload
    def predict(self, images: Source) -> Prediction: ...
    @overload
    def predict(self, images: list[_Sources] | tuple[_Sources, ...]) -> list[Prediction]: ...
    def predict(self, images: Any) -> Any:
        """Return the ``Prediction`` of an image; of a list of images the list of theirs, in their order.

        Args:
            images: one image or a list of them: a path, as for ``read_image``, or an array of uint8, RGB (H, W, 3) or
                grey (H, W), of any size. Of a list, ``batch_size`` take part in one pass of the network, and all stay
                in memory.

        Raises:
            ConfigError: if something is not such an image.
            ImageError: if a file cannot be read.
            EvaluationError: if the network returns NaN or infinity.
        """
        if not isinstance(images, list | tuple):
            return self.predict([images])[0]
        checked = [
            read_image(image) if isinstance(image, str | Path) else check_image(image) for image in images
        ]
        found: list[Prediction] = []
        for start in range(0, len(checked), self.batch_size):
            batch = checked[start : start + self.batch_size]
            predicted = self.predict_prepared([self.prepare(image) for image in batch])
            found += [replace(one, image=image) for one, image in zip(predicted, batch, strict=True)]
        return found


class NetworkPredictor(Predictor):
    """One network with the geometry that it was trained with.

    Training's validation and every later evaluation predict through this class, so a number has the same meaning in
    both.

    Args:
        network: a ``TorchNetwork``, or what ``formats`` reads from an exported file.
        computed_in: ``backend``, ``device`` and ``precision`` of the network.
        geometry: that the network was trained with.
        temperature, image_temperature: > 0; logits of pixels, and those of the image head, are divided by it.
        rules: of the run; they decide what a mask shows and what is called malignant.
        weights: as in ``Predictor``.
        reference: for ``Prediction.ood_score``; a network that gives no features, as an exported one, has no use for it.
    """

    def __init__(
        self,
        network: Network,
        computed_in: Mapping[str, str],
        *,
        geometry: Geometry,
        batch_size: int = 8,
        temperature: float = 1.0,
        image_temperature: float = 1.0,
        rules: DecisionRules = NO_RULES,
        weights: tuple[str, ...] = (),
        reference: Reference | None = None,
    ) -> None:
        self.network = network
        self.computed_in = dict(computed_in)
        self.geometry, self.size = geometry, geometry.size
        self.batch_size = batch_size
        self.temperature, self.image_temperature = temperature, image_temperature
        self.rules, self.weights, self.reference = rules, weights, reference

    def at_temperature(self, temperature: float) -> "NetworkPredictor":
        """Return the same predictor with another temperature, and none of the image head; the weights are shared."""
        other = copy.copy(self)
        other.temperature, other.image_temperature = temperature, 1.0
        return other

    def at_operating_point(self) -> "NetworkPredictor":
        """Return the same predictor whose masks leave out the lesions that the operating point drops."""
        other = copy.copy(self)
        other.rules = replace(self.rules, drops_lesions=True)
        return other

    def prepare(self, image: np.ndarray) -> Prepared:
        """See ``Predictor.prepare``."""
        return Prepared(image.shape[:2], (self.geometry.image(image),))

    def predict_prepared(self, images: Sequence[Prepared]) -> list[Prediction]:
        """See ``Predictor.predict_prepared``."""
        if not images:
            return []
        outputs = self._outputs([image.grids[0] for image in images])
        logits = torch.from_numpy(outputs.logits)
        raw = torch.softmax(logits, dim=1).numpy()
        scaled = raw if self.temperature == 1 else torch.softmax(logits / self.temperature, dim=1).numpy()
        cut = self.geometry.cut
        found = [
            Prediction(cut(grid, image.shape), cut(raw_grid, image.shape), image.shape, self.rules)
            for image, grid, raw_grid in zip(images, scaled, raw, strict=True)
        ]
        if self.reference is not None and outputs.features is not None:
            scores = self.reference.scores(outputs.features)
            found = [replace(one, ood_score=float(score)) for one, score in zip(found, scores, strict=True)]
        if outputs.image is not None or outputs.shape is not None:
            return [self._with_heads(one, outputs, place) for place, one in enumerate(found)]
        return found

    def _with_heads(self, found: Prediction, outputs: Outputs, place: int) -> Prediction:
        """Add what the heads of the whole image say."""
        probabilities, shape = None, None
        if outputs.image is not None:
            of_image = torch.from_numpy(outputs.image[place]) / self.image_temperature
            probabilities = torch.softmax(of_image, dim=0).numpy()
        if outputs.shape is not None:
            # from the grid to the image's own size: the padding is no part of it, and stretching changes depth to width
            scales = [
                own / on_grid
                for own, on_grid in zip(found.shape, self.geometry.extent(found.shape), strict=True)
            ]
            shape = dict(zip(SHAPES, map(float, outputs.shape[place]), strict=True))
            shape["area"] *= self.size**2 * scales[0] * scales[1]
            shape["depth_to_width"] *= scales[0] / scales[1]
        return replace(found, image_probabilities=probabilities, head_shape=shape)

    def grid_logits(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Return the logits of one batch of uint8 RGB images, before temperature: float32 (N, 3, S, S).

        Raises:
            EvaluationError: if the network returns NaN or infinity.
        """
        return self._outputs([self.prepare(image).grids[0] for image in images]).logits

    def _outputs(self, grids: Sequence[np.ndarray]) -> Outputs:
        outputs = self.network(np.stack(grids))
        # NaN and infinity survive a sum, which is ten times faster than asking each value
        if not all(torch.isfinite(torch.from_numpy(one).sum()) for one in outputs if one is not None):
            raise EvaluationError(
                "the network returned NaN or infinite values",
                hint="the weights are damaged or training diverged; try another run or --precision fp32",
            )
        return outputs


class TorchNetwork:
    """A hybrid model as a ``Network``: normalisation in front, the full-size head only, batch norms folded.

    The folded copy is made again when the weights have changed, as between two validations of a training.

    Args:
        model: on the engine's device.
        mean, std: of each channel, in 0..1.
    """

    def __init__(
        self, model: HybridResNet50, engine: Engine, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        self.model, self.engine = model, engine
        self.mean, self.std = tuple(mean), tuple(std)
        self._folded: nn.Module | None = None
        self._folded_from: list[int] = []

    @property
    def computed_in(self) -> dict[str, str]:
        """``backend``, ``device`` and ``precision``."""
        return {
            "backend": "torch",
            "device": self.engine.device.type,
            "precision": self.engine.precision,
        }

    @torch.inference_mode()
    def __call__(self, images: np.ndarray) -> Outputs:
        """Return what is predicted of uint8 (N, S, S, 3)."""
        network = self._prediction_network()
        inputs = normalise(torch.from_numpy(images).to(self.engine.device), self.mean, self.std)
        with self.engine.autocast():
            found = network(inputs)
        return outputs_of(found, MainHead(self.model, features=True).names)

    def _prediction_network(self) -> nn.Module:
        # Every change that torch knows of increases a tensor's version, except those of fused optimisers; but the
        # forward pass of a training step changes batch norm's counters. Folding costs a tenth of one batch.
        versions = [tensor._version for tensor in self.model.state_dict().values()]
        if self._folded is None or self.model.training or versions != self._folded_from:
            self.model.eval()
            self._folded = fold_batch_norms(MainHead(self.model, features=True))
            self._folded_from = versions
        return self._folded


def load_predictor(
    path: Path, engine: Engine, batch_size: int = 8
) -> tuple[NetworkPredictor, dict[str, Any]]:
    """Read ``best.safetensors``; return the predictor and the checkpoint's header with the file's ``sha256``.

    The predictor's ``network`` is a ``TorchNetwork``.

    Raises:
        CheckpointError: if the file is missing, damaged, or of another model.
    """
    model, header = load_model(path, device=str(engine.device))
    model = model.to(memory_format=torch.channels_last)
    header |= {"sha256": file_sha256(path)}
    network = TorchNetwork(model, engine, header["mean"], header["std"])
    return predictor_of(network, network.computed_in, header, batch_size), header


def predictor_of(
    network: Network, computed_in: Mapping[str, str], header: Mapping[str, Any], batch_size: int
) -> NetworkPredictor:
    """Return the predictor of a network that was made from the checkpoint with this header (and ``sha256``)."""
    return NetworkPredictor(
        network,
        computed_in,
        geometry=Geometry.of(header),
        batch_size=batch_size,
        temperature=temperature_of(header),
        image_temperature=((header.get("calibration") or {}).get("image") or {}).get("temperature", 1.0),
        rules=DecisionRules.of(header.get("calibration")),
        weights=(header["sha256"],),
        reference=Reference.of(header),
    )


def temperature_of(header: Mapping[str, Any]) -> float:
    """Return the temperature a checkpoint was calibrated to; 1 where it was not."""
    return (header.get("calibration") or {}).get("temperature") or 1.0


def describe_computing(computed_in: Mapping[str, str]) -> str:
    """Return ``Predictor.computed_in`` in words; the results of a quantised network name it so everywhere."""
    words = f"{computed_in.get('backend', 'torch')} {computed_in['precision']} on {computed_in['device']}"
    return f"{words}, a quantised network" if computed_in["precision"] == "int8" else words
