import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from bus_smp.data.images import read_mask
from bus_smp.errors import EvaluationError
from bus_smp.measures.overlap import confusion, image_row
from bus_smp.statistics.legacy import format_legacy, legacy_metrics

REAL = Path(os.environ.get("BUS_SMP_REAL_DATA") or Path(__file__).parents[2] / "shared" / "data")


def _table(pairs):
    return pd.DataFrame([image_row(confusion(truth, prediction)) for truth, prediction in pairs])


def _mask(value, pixels=4):
    mask = np.zeros((4, 4), np.uint8)
    mask.reshape(-1)[:pixels] = value
    return mask


def test_predicting_nothing_scores_half_plus_half_the_share_of_normal_images():
    truths = [_mask(0)] * 6 + [_mask(1)] * 3 + [_mask(2)]
    result = legacy_metrics(_table([(truth, _mask(0)) for truth in truths]))
    assert result["dice_benign"] == pytest.approx(7 / 10)
    assert result["dice_malignant"] == pytest.approx(9 / 10)
    assert result["dice_mean"] == pytest.approx((1 + 6 / 10) / 2)
    assert result["images"] == 10


def test_a_class_predicted_where_there_is_none_costs_its_free_point():
    result = legacy_metrics(_table([(_mask(1, 4), _mask(2, 4))]))
    assert result == {"dice_benign": 0, "dice_malignant": 0, "dice_mean": 0, "images": 1}


def test_overlap_counts_as_in_any_dice():
    result = legacy_metrics(_table([(_mask(1, 4), _mask(1, 12))]))
    assert result["dice_benign"] == pytest.approx(2 * 4 / (4 + 12))
    assert result["dice_malignant"] == 1


def test_a_table_without_rows_or_counts_is_refused():
    with pytest.raises(EvaluationError):
        legacy_metrics(_table([(_mask(0), _mask(0))]).iloc[:0])
    with pytest.raises(EvaluationError, match="pixels_background"):
        legacy_metrics(pd.DataFrame({"image_id": ["a"]}))


def test_the_printed_table_says_that_it_misleads():
    result = legacy_metrics(_table([(_mask(0), _mask(0)), (_mask(1), _mask(0))]))
    lines = format_legacy({"model": result, "all-background": result}).splitlines()
    assert "MISLEADING" in lines[0]
    assert lines[-1].split() == ["all-background", "0.500", "1.000", "0.750"]


@pytest.mark.real
def test_all_background_reproduces_the_807_of_the_notebooks_own_test_patients():
    masks = REAL / "BUS-UCLM" / "masks"
    if not masks.is_dir():
        pytest.skip(f"no real data at {REAL}")
    patients = ["CAWI", "CHSP", "CODE", "COST", "LOTI", "ORPE", "FUHI", "PAGY"]
    truths = [read_mask([path], "color", "") for p in patients for path in sorted(masks.glob(f"{p}_*.png"))]
    result = legacy_metrics(_table([(truth, np.zeros_like(truth)) for truth in truths]))
    assert result["images"] == 119
    assert round(result["dice_mean"], 3) == 0.807
