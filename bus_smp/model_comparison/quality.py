"""The quality of the compared networks: each is trained as ``bus-smp train`` does, for the same steps, and scored on validation."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
import torch

from bus_smp.config import Settings
from bus_smp.data.cache import open_cache
from bus_smp.data.geometry import Geometry
from bus_smp.data.loading import TrainingDataset, make_loader
from bus_smp.data.manifest import Manifest
from bus_smp.data.sampler import EpochSampler
from bus_smp.errors import ConfigError
from bus_smp.evaluation.score_images import validate
from bus_smp.inference.folding import MainHead
from bus_smp.inference.predictor import NetworkPredictor, TorchNetwork
from bus_smp.model.encoders import load_encoder
from bus_smp.model.hybrid import IMAGENET_MEAN, IMAGENET_STD
from bus_smp.model_comparison.networks import build
from bus_smp.system.engine import make_engine, set_determinism
from bus_smp.training.loop import cosine_rate, count_workers
from bus_smp.training.preflight import check_batch
from bus_smp.training.step import TrainingStep

# Settings that every network can follow, or beginnings of their names.
_FOLLOWED = ("augment.", "loss.", "train.", "runtime.", "data.geometry", "data.grey", "model.encoder_weights")
_UNFOLLOWED = ("train.accumulate", "train.sync_batchnorm")


def check_overrides(overrides: Sequence[str]) -> None:
    """Refuse a ``section.key=value`` that would change nothing here.

    Raises:
        ConfigError: naming it.
    """
    for text in overrides:
        key = text.partition("=")[0].strip()
        if not key.startswith(_FOLLOWED) or key in _UNFOLLOWED:
            raise ConfigError(
                f"--set {text}: not every network that is compared can follow it",
                hint=f"those that can: {', '.join(name + '*' * name.endswith('.') for name in _FOLLOWED)}, "
                f"without {' and '.join(_UNFOLLOWED)}",
            )


def add_quality(
    table: pd.DataFrame, settings: Settings, manifest: Manifest, say: Callable[[str], None]
) -> pd.DataFrame:
    """Return the table of ``compare`` with ``steps`` and the scores of ``validate`` for each network without a note.

    Args:
        settings: of the trainings; encoder and size as in the table. All epochs are trained, and the last weights scored:
            no network is helped by choosing the best of its epochs.
        manifest: its train split is trained on and its val split scored. The test split stays unseen for the network
            that is chosen.

    Raises:
        CheckpointError, ConfigError: as for a training.
    """
    rows = []
    for name, note in zip(table["model"], table["note"], strict=True):
        if not note:
            say(f"Training: {name}")
        rows.append({} if note else _train(name, settings, manifest))
    return table.drop(columns="note").join(pd.DataFrame(rows, index=table.index)).assign(note=table["note"])


def _train(name: str, settings: Settings, manifest: Manifest) -> dict[str, float]:
    plan, encoder = settings.train, settings.model.encoder_name
    set_determinism(plan.deterministic)
    engine = make_engine(settings.runtime.device, plan.precision)
    built = build(name, encoder, plan.seed)
    model = built.model if isinstance(built, MainHead) else built
    if weights := settings.model.encoder_weights:
        model.get_submodule("encoder").load_state_dict(load_encoder(encoder, weights)[0].state_dict())
    step = TrainingStep(settings, engine, model=model)
    rows, geometry = manifest.used("train"), Geometry.of(settings.data.model_dump())
    check_batch(step.model, geometry.size, min(plan.batch_size, len(rows)))
    cache = open_cache(manifest, rows, geometry, Path(settings.runtime.cache))
    labels = list(rows["label"])
    sampler = EpochSampler(labels, plan.seed, bool(plan.balanced_sampling))
    dataset = TrainingDataset(cache, labels, settings.augment, plan.seed)
    loader = make_loader(dataset, sampler, plan.batch_size, count_workers(settings, engine), engine.device)
    steps = plan.epochs * len(loader)
    done = 0
    for epoch in range(plan.epochs):
        torch.manual_seed(plan.seed + epoch)
        sampler.set_epoch(epoch)
        step.model.train()
        for batch in loader:
            at = (done, steps, plan.warmup * len(loader))
            step.set_rates([cosine_rate(highest, *at) for highest in step.rates])
            step(batch.images, batch.masks)
            done += 1
    network = TorchNetwork(step.best_model, engine, IMAGENET_MEAN, IMAGENET_STD)
    predictor = NetworkPredictor(network, network.computed_in, geometry=geometry, batch_size=plan.batch_size)
    return {"steps": steps, **validate(predictor, manifest, manifest.used("val"))}
