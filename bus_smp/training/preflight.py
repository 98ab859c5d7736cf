"""Checks before a training starts, and clear errors for memory and compiler failures during it.

The module's top level loads no PyTorch, so that a file that is missing is found at once.
"""

import contextlib
import errno
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from bus_smp.classes import LABELS
from bus_smp.config import Settings
from bus_smp.data.dicom import split_address
from bus_smp.data.manifest import SPLITS, Manifest
from bus_smp.errors import ConfigError, ManifestError, TrainingError
from bus_smp.system import ranks

if TYPE_CHECKING:
    from torch import nn


def check_trainable(manifest: Manifest) -> list[str]:
    """Return warnings about the splits.

    Raises:
        TrainingError: if the training or validation split is empty or holds no lesion.
    """
    warnings = []
    for split in ("train", "val"):
        labels = manifest.used(split)["label"]
        remedy = _remedy(manifest, split)
        if labels.empty:
            raise TrainingError(f"the {split} split of {', '.join(manifest.datasets)} is empty", hint=remedy)
        if not labels.isin(LABELS[1:]).any():
            purpose = "nothing can be learnt" if split == "train" else "lesion Dice is undefined"
            raise TrainingError(f"the {split} split has no image with a lesion, so {purpose}", hint=remedy)
        warnings += [
            f"the {split} split has no {name} image" for name in LABELS if not (labels == name).any()
        ]
    return warnings


def check_heads(settings: Settings, manifest: Manifest) -> list[str]:
    """Return a warning for each data set of which the image head can learn the look in place of the class.

    Raises:
        ConfigError: if the training split shows one class only.
    """
    if not settings.heads.image:
        return []
    rows = manifest.used("train")
    if rows["label"].nunique() == 1:
        raise ConfigError(
            f"heads.image: all images of the train split are {rows['label'].iloc[0]}, there is no class to tell apart",
            hint="leave the image head out: --set heads.image=0",
        )
    if settings.heads.consistency and not set(LABELS[1:]) <= set(rows["label"]):
        raise ConfigError(
            "heads.consistency: the train split needs benign and malignant images to learn what a shape says",
            hint="leave it out: --set heads.consistency=0",
        )
    labels = rows.groupby("dataset")["label"].agg(["nunique", "first"])
    single = labels[labels["nunique"] == 1]
    return [
        f"all training images of {dataset} are {row['first']}: the image head can learn the look of {dataset} in place of "
        f"what is {row['first']}"
        for dataset, row in single.iterrows()
    ]


def _remedy(manifest: Manifest, split: str) -> str:
    """What helps where a split is empty or has no lesion: it depends on how many groups have one."""
    used = manifest.used()
    if not len(manifest.used("train")):
        return "it is a test set for models trained on other data: bus-smp crosseval --target NAME"
    owners = used.loc[used["label"] != LABELS[0], "group_id"].nunique()
    if owners < len(SPLITS):
        return f"images with a lesion come from {owners} of the needed {len(SPLITS)} patients (groups): add patients"
    again = "make the manifest again, which divides all anew: bus-smp make-manifest --split 70/15/15"
    return f"{again}; a lesion is in {owners} patients (groups), enough for every split"


def check_processes(settings: Settings, images: int) -> None:
    """Refuse a number of processes that cannot share the batches, and settings that do not go together.

    Args:
        images: number of images in the training split.

    Raises:
        ConfigError: naming the setting.
    """
    plan, count = settings.train, ranks.count()
    others = {
        "several processes": count > 1,
        "train.compile": plan.compile,
        "train.accumulate": plan.accumulate > 1,
    }
    wrong = [name for name, used in others.items() if used]
    if settings.runtime.graph and wrong:
        raise ConfigError(
            f"runtime.graph does not work with {' and '.join(wrong)}",
            hint="leave it out: --set runtime.graph=false",
        )
    if count == 1:
        return
    if plan.batch_size % count or images < plan.batch_size:
        raise ConfigError(
            f"train.batch_size={plan.batch_size}: {count} processes cannot share such batches of {images} images equally",
            hint=f"for example --set train.batch_size={max(1, min(plan.batch_size, images) // count) * count}",
        )
    from bus_smp.system.engine import make_engine

    if plan.sync_batchnorm and make_engine(settings.runtime.device, plan.precision).device.type == "cpu":
        raise ConfigError(
            "train.sync_batchnorm needs GPUs", hint="on CPUs leave it out: --set train.sync_batchnorm=false"
        )


def check_files(settings: Settings, manifest: Manifest) -> None:
    """Look for every file that the training will read, before the first is opened.

    Raises:
        ManifestError, ConfigError: naming the first that is missing, and how many are.
    """
    weights = settings.model.encoder_weights
    if weights and ("/" in weights or Path(weights).suffix) and not Path(weights).expanduser().exists():
        raise ConfigError(
            f"{weights}: no such file of encoder weights",
            hint="name another one, or start from random weights: --set model.encoder_weights=null",
        )
    rows = [row for split in ("train", "val") for row in manifest.used(split).to_dict("records")]
    files = [path for row in rows for path in (manifest.image_path(row), *manifest.mask_paths(row))]
    missing = [path for path in files if not split_address(path)[0].exists()]
    if missing:
        several = f" (and {len(missing) - 1} more of {len(files)} files)" if len(missing) > 1 else ""
        raise ManifestError(
            f"{missing[0]}: no such file{several}",
            hint="say where the images are with --root FOLDER, or make the manifest again: bus-smp make-manifest",
        )


def check_batch(model: "nn.Module", size: int, images: int) -> None:
    """Refuse batches of one image that leave batch norm with one value per channel, which has no variance.

    Args:
        model: is run on an empty image, to find how large its features are.
        size: side of the images, in pixels.
        images: in the smallest batch that batch norm sees.

    Raises:
        ConfigError: naming settings that work.
    """
    # two images are two values at least
    if images > 1 or not _narrow_norms(model, size):
        return
    larger = next((side for side in (2 * size, 4 * size) if not _narrow_norms(model, side)), None)
    also = f", or larger images: --set data.size={larger}" if larger else ""
    raise ConfigError(
        f"batches of 1 image of {size} px leave batch norm one value per channel: nothing can be trained",
        hint=f"use larger batches: --set train.batch_size={2 * ranks.count()}{also}",
    )


def _narrow_norms(model: "nn.Module", size: int) -> int:
    """How many layers of batch norm see a single value per channel in an image of ``size`` px."""
    import torch
    from torch.nn.modules.batchnorm import _BatchNorm

    found = []

    def look(_: "nn.Module", inputs: tuple) -> None:
        found.append(inputs[0][0, 0].numel() == 1)

    hooks = [part.register_forward_pre_hook(look) for part in model.modules() if isinstance(part, _BatchNorm)]
    trained = model.training
    try:
        with torch.no_grad():
            # changes no statistics and draws no random number
            model.eval()(torch.zeros(1, 3, size, size, device=next(model.parameters()).device))
    finally:
        model.train(trained)
        for hook in hooks:
            hook.remove()
    return sum(found)


def check_disk(folder: Path, needed: int = 1_500_000_000) -> None:
    """Refuse to start where the disk has too little room.

    Args:
        needed: bytes; two states of a ResNet-50 and its best weights.

    Raises:
        TrainingError: naming the free and the needed space.
    """
    there = next(parent for parent in (folder, *folder.resolve().parents) if parent.exists())
    free = shutil.disk_usage(there).free
    if free < needed:
        raise TrainingError(
            f"{folder}: {free / 1e9:.1f} GB free, a run needs about {needed / 1e9:.1f} GB",
            hint="free some space, or put the run elsewhere with --out FOLDER",
        )


@contextlib.contextmanager
def explained_memory(settings: Settings) -> Iterator[None]:
    """Turn exhausted memory, of the computer or of the GPU, into an error with a remedy.

    Raises:
        TrainingError: in place of the errors that PyTorch raises then. Any other error passes.
    """
    import torch

    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError, OSError) as error:
        exhausted = (
            isinstance(error, (torch.OutOfMemoryError, MemoryError))
            # no process can be started
            or getattr(error, "errno", None) == errno.ENOMEM
            or "can't allocate memory" in str(error)
            # a GPU that is full before PyTorch begins
            or "CUDA error: out of memory" in str(error)
        )
        if not exhausted:
            raise
        plan, smaller = settings.train, "a smaller data.size"
        if plan.batch_size > 1:
            smaller = (
                f"--set train.batch_size={plan.batch_size // 2} --set train.accumulate={2 * plan.accumulate}, which updates "
                f"the weights from as many images (or {smaller})"
            )
        raise TrainingError(
            f"not enough memory for batches of {plan.batch_size} images at {settings.data.size} px{_held_by_others()}",
            hint=f"try --run NAME with {smaller}",
        ) from None


def _held_by_others() -> str:
    """Words about other processes that hold more than a tenth of the GPU; empty where there are none."""
    import torch

    if not torch.cuda.is_initialized():
        return ""
    try:
        free, total = torch.cuda.mem_get_info()
    except RuntimeError:
        # too full to be asked
        return "; other processes may hold the GPU's memory (nvidia-smi lists them)"
    others = total - free - torch.cuda.memory_reserved()
    if others < total / 10:
        return ""
    return (
        f"; other processes hold {others / 1e9:.0f} of the {total / 1e9:.0f} GB of the GPU (nvidia-smi lists them; "
        "--set runtime.device=cuda:1 takes another one)"
    )


@contextlib.contextmanager
def explained_compile(settings: Settings) -> Iterator[None]:
    """Turn a failed compilation into an error with a remedy.

    Raises:
        TrainingError: in place of the errors of PyTorch's compiler. Any other error passes.
    """
    try:
        yield
    except Exception as error:
        if not (
            settings.train.compile and type(error).__module__.startswith(("torch._dynamo", "torch._inductor"))
        ):
            raise
        reason = next(
            (line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__
        )
        raise TrainingError(
            f"torch.compile failed ({reason})",
            hint="train without it: --set train.compile=false --run NAME",
        ) from None
