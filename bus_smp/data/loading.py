"""Cached images as training batches: the same bytes for any number of workers."""

import multiprocessing.queues
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from bus_smp.classes import IGNORED, LABELS, LESIONS
from bus_smp.data.augment import Augmentation
from bus_smp.data.cache import Cache
from bus_smp.data.sampler import Draw, EpochSampler, RankSampler
from bus_smp.errors import TrainingError
from bus_smp.measures.shape import SHAPES, lesion_shape
from bus_smp.system import signals as stopping

if TYPE_CHECKING:
    from bus_smp.config import AugmentSettings

# Keeps the augmentation's random stream apart from the sampler's.
_AUGMENT = 3

# Least and greatest class index of a lesion.
_LESIONS = LESIONS[0].index, LESIONS[-1].index


class Batch(NamedTuple):
    """Images of one training step.

    Attributes:
        images: uint8 (N, S, S, 3), RGB.
        masks: uint8 (N, S, S) of class indices.
        labels: int64 (N,), the label of each image as its place in ``classes.LABELS``; normal where augmentation
            moved the lesion out of it.
        indices: int64 (N,), the place of each image in the cache.
        shapes: float32 (N, 4), the truth of the shape head: share of the area, and what ``lesion_shape`` says; NaN where
            there is no lesion, or where they are not asked for.
    """

    images: torch.Tensor
    masks: torch.Tensor
    labels: torch.Tensor
    indices: torch.Tensor
    shapes: torch.Tensor


class TrainingDataset(Dataset):
    """Augmented images and masks; what a draw gives depends on (seed, epoch, position, image) only.

    Cheap to send to a worker: the cache travels as its path and is mapped again there.

    Args:
        labels: of the images of the cache, in their order.
        measure: whether batches have the shapes of their lesions.
    """

    def __init__(
        self,
        cache: Cache,
        labels: Sequence[str],
        augment: "AugmentSettings",
        seed: int,
        measure: bool = False,
    ) -> None:
        self.cache = cache
        self.labels = np.array([LABELS.index(label) for label in labels], np.uint8)
        self.augmentation = Augmentation(augment)
        self.seed = seed
        self.measure = measure

    def __len__(self) -> int:
        return len(self.cache)

    def __getitem__(self, draw: Draw) -> Batch:
        """Return one draw, without the first axis of a batch."""
        return Batch(*(part[0] for part in self.__getitems__([draw])))

    def __getitems__(self, draws: Sequence[Draw]) -> Batch:
        """Return the draws as one batch; each image is computed at its place in it, so nothing is copied together."""
        shape = self.cache.masks.shape[1:]
        images = torch.empty((len(draws), *shape, 3), dtype=torch.uint8)
        masks = torch.empty((len(draws), *shape), dtype=torch.uint8)
        places = zip(images.numpy(), masks.numpy(), strict=True)
        for (epoch, position, index), place in zip(draws, places, strict=True):
            seed = (self.seed, _AUGMENT, epoch, position)
            self.augmentation(self.cache.images[index], self.cache.masks[index], seed, place)
        indices = torch.tensor([draw.index for draw in draws])
        labels = torch.from_numpy(self.labels).long()[indices]
        for number in torch.nonzero(labels).flatten().tolist():
            before, after = self.cache.masks[draws[number].index], masks[number].numpy()
            # its lesion is no longer in the picture
            if not _shows_lesion(after) and _shows_lesion(before):
                labels[number] = 0
        shapes = torch.full((len(draws), len(SHAPES)), torch.nan)
        if self.measure:
            truths = masks.numpy() * (masks.numpy() != IGNORED)
            shapes = torch.tensor([list(lesion_shape(truth).values()) for truth in truths])
            shapes[:, SHAPES.index("area")] /= masks[0].numel()
        return Batch(images, masks, labels, indices, shapes)


def _shows_lesion(mask: np.ndarray) -> bool:
    return cv2.countNonZero(cv2.inRange(mask, *_LESIONS)) > 0


def _as_it_is(batch: Any) -> Any:
    return batch


# What Python, NumPy, OpenCV, torch and the system say then.
_NO_MEMORY = (
    "MemoryError",
    "Unable to allocate",
    "Insufficient memory",
    "allocate memory",
    "unable to mmap",
    "unable to allocate shared memory",
    "No space left on device",
    "can't start new thread",
)


def _give_up(error: BaseException, batch: object) -> None:
    os._exit(1)


def _start_worker(_: int) -> None:
    stopping.follow_parent()
    # A batch that cannot be sent, for want of shared memory, would be dropped, and the training wait for it for ever.
    multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(_give_up)  # type: ignore[attr-defined]
    # a pool per worker would fight the training step for the cores
    cv2.setNumThreads(1)


def make_loader(
    dataset: TrainingDataset,
    sampler: EpochSampler | RankSampler,
    batch_size: int,
    workers: int,
    device: "torch.device | str",
) -> DataLoader:
    """Make the loader of ``Batch``.

    All batches are full: a last batch of one image has no variance for BatchNorm, and on CUDA another
    shape costs another tuning. The images left over (fewer than ``batch_size``, others in each epoch)
    wait for a later epoch. Only where the whole set is smaller than one batch is that one kept.

    Workers are forked or spawned once and kept; call ``sampler.set_epoch`` before each epoch.
    """
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        collate_fn=_as_it_is,
        num_workers=workers,
        drop_last=len(sampler) >= batch_size,
        pin_memory=torch.device(device).type == "cuda",
        persistent_workers=workers > 0,
        worker_init_fn=_start_worker,
        # Its own generator: else every epoch would draw from torch's global one, and with it change dropout.
        generator=torch.Generator(),
    )


@contextmanager
def explained_workers() -> Iterator[None]:
    """Around a whole training loop, because torch reports a killed worker wherever the program then is.

    Raises:
        TrainingError: if a worker was killed, in most cases by the system for lack of memory, or could get none.
    """
    try:
        yield
    except Exception as error:  # torch raises a worker's own error again, of whatever type it was
        text = str(error)
        if text.startswith("Caught ") and " in DataLoader worker process" in text.splitlines()[0]:
            if not any(words in text for words in _NO_MEMORY):
                raise
            what = f"a data-loading process got no memory ({text.strip().splitlines()[-1]})"
        elif isinstance(error, RuntimeError) and "DataLoader worker" in text:
            what = f"a data-loading process died ({text.splitlines()[0]})"
        else:
            raise
        raise TrainingError(
            what,
            hint="the memory may be full, in a container the shared one (docker run --shm-size): run the same "
            "command again with --set runtime.workers=0; it continues where it was saved",
        ) from None
