"""What training sees: the order of the images, and the batches."""

import os
import pickle
import signal
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from bus_smp import classes
from bus_smp.config import AugmentSettings
from bus_smp.data.cache import Cache
from bus_smp.data.loading import TrainingDataset, explained_workers, make_loader
from bus_smp.data.sampler import Draw, EpochSampler
from bus_smp.errors import TrainingError

SIZE = 48
STRONG = AugmentSettings(vertical_flip=0.5, elastic=1.0)
LABELS = ["normal"] * 13 + ["benign"] * 5 + ["malignant"] * 3


def picture(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A smooth scan-like image, and a mask with both lesion classes."""
    rng = np.random.default_rng(seed)
    image = np.repeat(np.repeat(rng.integers(40, 200, (8, 8, 3), dtype=np.uint8), 6, 0), 6, 1)
    mask = np.zeros((SIZE, SIZE), np.uint8)
    mask[8:22, 10:24], mask[26:40, 22:38] = 1, 2
    return image, mask


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    pairs = [picture(i) for i in range(len(LABELS))]
    np.save(tmp_path / "images.npy", np.stack([image for image, _ in pairs]))
    np.save(tmp_path / "masks.npy", np.stack([mask for _, mask in pairs]))
    return Cache(tmp_path)


# Order


def test_classes_have_equal_shares_in_every_epoch():
    sampler = EpochSampler(LABELS, seed=42)
    totals: Counter = Counter()
    for epoch in range(30):
        shares = Counter(LABELS[i] for i in sampler.indices(epoch))
        assert sum(shares.values()) == len(sampler) == 21
        assert set(shares.values()) == {7}
        totals += shares
    uneven = EpochSampler(LABELS[:-1], seed=42)  # 20 draws, 3 classes
    for epoch in range(30):
        shares = Counter(LABELS[i] for i in uneven.indices(epoch))
        assert sum(shares.values()) == 20 and max(shares.values()) - min(shares.values()) <= 1


@pytest.mark.parametrize("labels", [LABELS, LABELS[:-1], LABELS[10:], ["benign"] * 4], ids=len)
def test_no_image_is_drawn_twice_before_all_of_its_class_were_drawn(labels):
    sampler = EpochSampler(labels, seed=1)
    drawn: Counter = Counter()
    for epoch in range(25):
        drawn.update(sampler.indices(epoch).tolist())
        for label in set(labels):
            counts = [drawn[i] for i in range(len(labels)) if labels[i] == label]
            assert max(counts) - min(counts) <= 1


def test_without_balance_every_epoch_holds_each_image_once():
    sampler = EpochSampler(LABELS, seed=42, balanced=False)
    orders = [sampler.indices(epoch).tolist() for epoch in range(5)]
    assert all(sorted(order) == list(range(21)) for order in orders)
    assert len({tuple(order) for order in orders}) == 5


@pytest.mark.parametrize("balanced", [True, False])
def test_the_order_is_a_function_of_seed_and_epoch(balanced):
    sampler = EpochSampler(LABELS, 42, balanced)
    sampler.set_epoch(3)
    third = list(sampler)
    sampler.set_epoch(4)
    fourth = list(sampler)
    resumed = EpochSampler(LABELS, 42, balanced)
    resumed.set_epoch(4)
    assert list(resumed) == fourth and third != fourth
    other = EpochSampler(LABELS, 43, balanced)
    other.set_epoch(4)
    assert list(other) != fourth


def test_a_draw_says_its_epoch_and_position():
    sampler = EpochSampler(LABELS, seed=0)
    sampler.set_epoch(6)
    assert [(d.epoch, d.position) for d in sampler] == [(6, i) for i in range(21)]


def test_classes_are_mixed_within_an_epoch():
    order = [LABELS[i] for i in EpochSampler(LABELS, seed=42).indices(0)]
    assert sum(a != b for a, b in zip(order, order[1:], strict=False)) > 6


def test_every_epoch_mixes_the_classes_again_and_every_cycle_its_images():
    labels = ["normal"] * 8 + ["benign"] * 2 + ["malignant"] * 2  # one epoch holds half of the normals
    epochs = [EpochSampler(labels, seed=42).indices(epoch).tolist() for epoch in range(0, 12, 2)]
    assert len({tuple(labels[i] for i in epoch) for epoch in epochs}) == len(epochs)
    assert len({frozenset(i for i in epoch if labels[i] == "normal") for epoch in epochs}) > 1


def test_a_class_that_is_absent_takes_no_share():
    drawn = EpochSampler(["benign", "normal", "benign"], seed=0).indices(0)
    assert len(drawn) == 3
    assert len(EpochSampler([], seed=0)) == 0 and list(EpochSampler([], seed=0)) == []


# Batches


def epoch_of(cache: Cache, workers: int, epochs: tuple[int, ...] = (0, 1), settings=STRONG) -> list[bytes]:
    sampler = EpochSampler(LABELS, seed=42)
    loader = make_loader(TrainingDataset(cache, LABELS, settings, seed=42), sampler, 4, workers, "cpu")
    out = []
    for epoch in epochs:
        sampler.set_epoch(epoch)
        for image, mask, _, index, _ in loader:
            assert image.shape == (4, SIZE, SIZE, 3) and mask.shape == (4, SIZE, SIZE)
            assert image.dtype == mask.dtype == torch.uint8 and index.dtype == torch.int64
            out.append(image.numpy().tobytes() + mask.numpy().tobytes() + index.numpy().tobytes())
    return out


def test_the_number_of_workers_changes_no_byte_and_epochs_need_no_history(cache):
    alone = epoch_of(cache, 0)
    assert len(alone) == len(set(alone)) == 10  # 21 images: 5 full batches in each epoch
    assert epoch_of(cache, 1) == alone
    assert epoch_of(cache, 2) == alone
    assert epoch_of(cache, 2, epochs=(1,)) == alone[5:]


def test_loading_does_not_change_the_global_random_state(cache):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    epoch_of(cache, 0)
    assert torch.equal(torch.get_rng_state(), before)


def test_an_item_is_what_the_cache_holds_when_nothing_is_augmented(cache):
    dataset = TrainingDataset(cache, LABELS, AugmentSettings(enabled=False), seed=0)
    image, mask, label, index, _ = dataset[Draw(0, 0, 5)]
    assert np.array_equal(image, cache.images[5]) and np.array_equal(mask, cache.masks[5]) and index == 5
    assert classes.LABELS[label] == LABELS[5]
    image.zero_()  # a copy: the cache stays as it is
    assert cache.images[5].any()


@pytest.mark.parametrize("settings", [STRONG, AugmentSettings(enabled=False)], ids=["augmented", "as it is"])
def test_a_batch_is_its_items_in_arrays_that_nobody_else_holds(cache, settings):
    dataset = TrainingDataset(cache, LABELS, settings, seed=0)
    draws = [Draw(2, position, index) for position, index in enumerate([5, 0, 5, 20])]
    batch = dataset.__getitems__(draws)
    for draw, *batched in zip(draws, *batch, strict=True):
        for one, of_batch in zip(dataset[draw], batched, strict=True):
            # no shape was asked for: NaN
            torch.testing.assert_close(one, of_batch, rtol=0, atol=0, equal_nan=True)
    images = batch.images
    kept = images.clone()
    dataset.__getitems__([Draw(3, 0, 1)] * 4)
    assert torch.equal(images, kept)


def test_the_same_image_is_changed_differently_at_another_position(cache):
    dataset = TrainingDataset(cache, LABELS, AugmentSettings(), seed=0)
    views = {
        dataset[Draw(epoch, position, 5)][0].numpy().tobytes() for epoch in (0, 1) for position in (0, 1)
    }
    assert len(views) == 4
    assert (
        TrainingDataset(cache, LABELS, AugmentSettings(), seed=1)[Draw(0, 0, 5)][0].numpy().tobytes()
        not in views
    )


def test_a_data_set_travels_to_a_worker_as_a_path_and_settings(cache):
    dataset = TrainingDataset(cache, LABELS, STRONG, seed=3)
    expected = dataset[Draw(1, 2, 3)]
    packed = pickle.dumps(dataset)  # after use, when the transforms have been made
    assert len(packed) < 2000
    image, mask, *_ = pickle.loads(packed)[Draw(1, 2, 3)]
    assert torch.equal(image, expected[0]) and torch.equal(mask, expected[1])


@pytest.mark.parametrize(("batch_size", "sizes"), [(4, [4] * 5), (20, [20]), (21, [21]), (64, [21])])
def test_no_batch_is_partly_filled_unless_it_is_the_only_one(cache, batch_size, sizes):
    sampler = EpochSampler(LABELS, seed=42)
    loader = make_loader(
        TrainingDataset(cache, LABELS, AugmentSettings(), seed=0), sampler, batch_size, 0, "cpu"
    )
    assert [len(batch.indices) for batch in loader] == sizes and len(loader) == len(sizes)


class DeadlyDataset(TrainingDataset):
    """Kills the worker that loads its sixth image, as the system does when memory ends."""

    def __getitems__(self, draws: list[Draw]):
        if any(draw.position == 5 for draw in draws):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitems__(draws)


def test_a_killed_worker_is_one_clear_error(cache):
    loader = make_loader(
        DeadlyDataset(cache, LABELS, AugmentSettings(), 0), EpochSampler(LABELS, 0), 4, 1, "cpu"
    )
    with pytest.raises(TrainingError, match="data-loading process died") as caught, explained_workers():
        list(loader)
    assert "runtime.workers=0" in caught.value.hint


def test_other_runtime_errors_pass_unchanged():
    with pytest.raises(RuntimeError, match="another thing"), explained_workers():
        raise RuntimeError("another thing")


def test_an_image_whose_lesion_is_no_longer_in_the_picture_is_normal(cache):
    dataset = TrainingDataset(cache, LABELS, AugmentSettings(lesion_free=1), seed=0)
    cache.masks = np.where(cache.masks == 2, 2, 0).astype(np.uint8)
    batch = dataset.__getitems__([Draw(0, position, 20) for position in range(30)])
    lesion = np.array([np.isin(mask, (1, 2)).any() for mask in batch.masks.numpy()])
    assert 0 < lesion.sum() < 30
    assert batch.labels.tolist() == np.where(lesion, 2, 0).tolist()


def test_sampling_by_source_and_label_gives_each_kind_its_share_and_is_plain_for_one_source():
    kinds = ["a normal"] * 9 + ["a benign"] * 4 + ["b benign"] * 7 + ["b malignant"]
    sampler = EpochSampler(kinds, seed=1)
    drawn = Counter(kinds[i] for epoch in range(20) for i in sampler.indices(epoch))
    assert max(drawn.values()) - min(drawn.values()) <= 1
    one = EpochSampler([f"a {label}" for label in LABELS], seed=42)
    plain = EpochSampler(LABELS, seed=42)
    assert all(np.array_equal(one.indices(epoch), plain.indices(epoch)) for epoch in range(3))
