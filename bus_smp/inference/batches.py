"""The order of the work around a network: reading, predicting, measuring and writing, at the speed of the network."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np

from bus_smp.inference.predictor import Prediction, Predictor, Prepared
from bus_smp.system.threads import count_cores

Item = TypeVar("Item")
More = TypeVar("More")
Result = TypeVar("Result")


def predict_batches(
    predictor: Predictor,
    items: Sequence[Item],
    load: Callable[[Item], tuple[np.ndarray | Prepared | None, More]],
    finish: Callable[[Item, Any, More, Any], Result],
) -> Iterator[Result]:
    """Yield ``finish(item, image, more, prediction)`` for each item, in order; two batches are in memory at most.

    On a CPU the network uses every core, and a thread that takes one core makes all the others wait. So nothing runs
    next to the network: between two batches all cores finish the last one and load the next. A GPU leaves the cores
    idle: while it computes, the next batch is loaded and the last one finished.

    Args:
        load: called in threads; returns the image, uint8 RGB (H, W, 3), and what ``finish`` needs of it. Of an image
            that is too large to keep, what ``predictor.prepare`` made of it; None: there is nothing to predict.
        finish: called in threads with the item, its image (None where ``load`` did not return it) and ``more`` of
            ``load``, and its ``Prediction`` (None where there is nothing to predict).

    Raises:
        EvaluationError: if the network returns NaN or infinity. Exceptions of ``load`` and ``finish`` pass.
    """
    size = predictor.batch_size
    batches = [items[start : start + size] for start in range(0, len(items), size)]
    overlaps = predictor.computed_in["device"] != "cpu"

    def load_prepared(item: Item) -> tuple[np.ndarray | None, Prepared | None, More]:
        loaded, more = load(item)
        if loaded is None or isinstance(loaded, Prepared):
            return None, loaded, more
        return loaded, predictor.prepare(loaded), more

    def finish_one(item: Item, image: np.ndarray | None, more: More, found: Prediction | None) -> Result:
        return finish(item, image, more, None if found is None else replace(found, image=image))

    with ThreadPoolExecutor(count_cores()) as pool:
        loading: list[Future] = []
        finishing: list[Future] = []
        try:
            loading = [pool.submit(load_prepared, item) for item in (batches[0] if batches else ())]
            for batch, following in zip(batches, [*batches[1:], ()], strict=True):
                loaded = [future.result() for future in loading]
                loading = [pool.submit(load_prepared, item) for item in following] if overlaps else []
                predicted = _predict(predictor, [prepared for _, prepared, _ in loaded])
                for future in finishing:
                    yield future.result()
                finishing = [
                    pool.submit(finish_one, item, image, more, prediction)
                    for item, (image, _, more), prediction in zip(batch, loaded, predicted, strict=True)
                ]
                if not overlaps:
                    loading = [pool.submit(load_prepared, item) for item in following]
                    for future in finishing:
                        yield future.result()
                    finishing = []
            for future in finishing:
                yield future.result()
        finally:
            for future in (*loading, *finishing):
                future.cancel()


def _predict(predictor: Predictor, images: Sequence[Prepared | None]) -> list[Prediction | None]:
    """Return the prediction of each image; None where there is none."""
    found = iter(predictor.predict_prepared([image for image in images if image is not None]))
    return [None if image is None else next(found) for image in images]
