"""The figures of an evaluation and of the matrix, read back as pixels."""

import math

import matplotlib
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from bus_smp.data.images import read_image
from bus_smp.figures.agreement import write_agreement
from bus_smp.figures.calibration import _short, write_calibration
from bus_smp.figures.coverage import risk_coverage, write_coverage, write_uncertainty
from bus_smp.figures.froc import write_froc
from bus_smp.figures.matrix import write_matrix
from bus_smp.figures.roc import write_roc_curves
from bus_smp.figures.style import BLUE, COLUMN, DPI, GREEN, PAGE, VERMILLION
from bus_smp.figures.subgroups import write_subgroups
from bus_smp.statistics.bootstrap import bootstrap
from bus_smp.statistics.bootstrap import estimate as estimate_of
from bus_smp.statistics.metrics import estimators
from bus_smp.statistics.roc import roc_band, roc_of_images
from bus_smp.statistics.summary import sorted_by_group

LONG = "a_very_long_name_without_spaces_" * 6 + " $x_1$ <b>&amp; \u8d85\u97f3\u6ce2"
MEASURES = ("dice_lesion", "miss_rate", "false_alarm_rate", "auc_malignant")
PANELS = [(measure, f"{measure} of the test", measure.endswith("_rate")) for measure in MEASURES]


def reliability(stages=("before", "after")):
    rows = []
    for stage in stages:
        for number in range(15):
            low, middle, pixels = number / 15, (number + 0.5) / 15, 10**6 >> number
            rows.append((stage, number, low, low + 1 / 15, pixels, middle * pixels, middle**2 * pixels))
    return pd.DataFrame(
        rows, columns=["stage", "bin", "low", "high", "pixels", "sum_probability", "positives"]
    )


def per_image(n=60, seed=0):
    random = np.random.default_rng(seed)
    label = np.array(["normal", "benign", "malignant"])[np.arange(n) % 3]
    score = random.uniform(0.01, 0.99, n)
    table = pd.DataFrame(
        {
            "label": label, "malignant_score": score, "malignant_score_raw": score**2,
            "dice_lesion": np.where(label == "normal", np.nan, 0.8),
            "called_malignant": (score > 0.5).astype(float), "call_confidence": abs(score - 0.5),
        }
    )  # fmt: skip
    for quantity in ("area", "depth_to_width", "circularity", "solidity"):
        size = random.uniform(0.2, 1, n) * (20_000 if quantity == "area" else 1)
        table[f"{quantity}_truth"] = np.where(label == "normal", np.nan, size)
        table[f"{quantity}_predicted"] = table[f"{quantity}_truth"] * random.uniform(0.8, 1.1, n)
    return table


def agreement(value=0.1, n=40):
    of = {
        "n": n,
        "n_undefined": 0,
        "bias": value,
        "sd": value,
        "loa_low": -value,
        "loa_high": value,
        "r": value,
    }
    return dict.fromkeys(("area", "depth_to_width", "circularity", "solidity"), of)


def estimate(mean, n=50, width=0.05):
    low, high = (
        (None, None) if mean is None or width is None else (max(0, mean - width), min(1, mean + width))
    )
    return {"mean": mean, "low": low, "high": high, "n": n}


def subgroups(level="small", dice=0.5, width=0.05):
    of = {"dice_lesion": estimate(dice, width=width), "miss_rate": estimate(dice, width=width)}
    return {"size": {level: of, "large": of}, "flags": {LONG: of}}


def cells(runs=2, targets=2, name=""):
    rows = []
    for run in range(runs):
        for target in range(targets):
            kind = "in-domain" if run == target else "external"
            row = {"run": f"{name}run{run}", "trained_on": f"{name}set{run}", "target": f"{name}set{target}"}
            row |= {"kind": kind, "images": 9, "reason": ""}
            for measure in MEASURES:
                row |= {measure: 0.5, f"{measure}_low": 0.4, f"{measure}_high": 0.6}
            rows.append(row)
    return pd.DataFrame(rows)


def color_count(picture, color):
    rgb = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
    return int((picture == np.array(rgb)).all(axis=2).sum())


def colour_of(value):
    return matplotlib.colors.to_hex(matplotlib.colormaps["cividis"](float(value)))


def assert_fits(path, width=PAGE):
    picture = read_image(path)
    assert picture.shape[1] == width * DPI
    for edge in (picture[:2], picture[-2:], picture[:, :2], picture[:, -2:]):
        assert (edge == 255).all(), "something is cut off"
    return picture


# Risk and coverage


@settings(max_examples=60, deadline=None)
@given(
    arrays.arrays(float, st.integers(1, 30), elements=st.sampled_from([0.0, 0.5, 1.0, 2.0, math.inf])),
    st.randoms(use_true_random=False),
)
def test_risk_is_the_mean_error_over_all_orders_of_equally_sure_images(confidence, random):
    """Against the definition: the error of the k surest, equal ones in random order, on average."""
    wrong = np.array([random.random() < 0.4 for _ in confidence])
    coverage, risk, area = risk_coverage(confidence, wrong)
    order = np.argsort(-confidence, kind="stable")
    for k in range(1, len(order) + 1):
        least = confidence[order[k - 1]]
        surer, tied = confidence > least, confidence == least
        errors = wrong[surer].sum() + wrong[tied].mean() * (k - surer.sum())
        assert risk[k - 1] == pytest.approx(errors / k)
    assert coverage[-1] == 1
    assert risk[-1] == pytest.approx(wrong.mean())
    assert area == pytest.approx(risk.mean())


def test_the_order_of_the_images_does_not_matter_and_no_image_has_no_risk():
    confidence, wrong = np.array([3.0, 1, 1, 2]), np.array([False, True, False, True])
    places = np.array([2, 0, 3, 1])
    assert np.allclose(
        risk_coverage(confidence, wrong)[1], risk_coverage(confidence[places], wrong[places])[1]
    )
    assert math.isnan(risk_coverage(np.array([]), np.array([]))[2])


# Calibration


def test_each_stage_of_the_reliability_is_drawn_and_one_that_was_not_recorded_is_not(tmp_path):
    table = per_image()
    write_calibration(reliability(), table, tmp_path / "both.png", "title")
    write_calibration(
        reliability(["before"]), table.drop(columns="malignant_score_raw"), tmp_path / "one.png", "title"
    )
    both, one = assert_fits(tmp_path / "both.png"), assert_fits(tmp_path / "one.png")
    plots = slice(0, int(3.2 * DPI))  # above the legends
    left, middle = slice(0, int(PAGE / 2 * DPI)), slice(int(PAGE / 2 * DPI), None)
    assert color_count(both[plots, left], BLUE) > 300
    assert color_count(one[plots, left], BLUE) == 0
    assert color_count(both[plots, middle], VERMILLION) > 100
    assert color_count(one[plots, middle], VERMILLION) == 0


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (950, "950"), (999.4, "999"), (999.6, "1.0k"), (12_345, "12k"), (382_000, "382k"), (999_600, "1.0M"), (5.38e6, "5.4M")],
)  # fmt: skip
def test_a_count_next_to_an_axis_has_no_exponent(number, text):
    assert _short(number) == text


def test_without_a_threshold_there_is_no_risk_curve(tmp_path):
    table = per_image()
    write_coverage(table, tmp_path / "with.png", LONG, "")
    table[["called_malignant", "call_confidence"]] = np.nan
    write_coverage(table, tmp_path / "without.png", LONG, "no threshold: " + LONG)
    assert color_count(assert_fits(tmp_path / "with.png", COLUMN), GREEN) > 200
    assert color_count(assert_fits(tmp_path / "without.png", COLUMN), GREEN) == 0


@pytest.mark.parametrize("n", [0, 1])
def test_calibration_of_no_image_and_of_one_is_drawn(n, tmp_path):
    write_calibration(reliability()[: 30 * n], per_image(n), tmp_path / "c.png", LONG)
    write_coverage(per_image(n), tmp_path / "r.png", LONG, "no threshold")
    assert_fits(tmp_path / "c.png")
    assert_fits(tmp_path / "r.png", COLUMN)


def test_a_bad_mask_that_is_unsure_is_dropped_first(tmp_path):
    table = per_image().assign(disagreement_networks=np.nan, disagreement_views=np.nan, lesion_entropy=0.5)
    table = table.assign(ood_score=0.5)
    write_uncertainty(table, tmp_path / "one.png", LONG)
    assert color_count(assert_fits(tmp_path / "one.png", COLUMN), GREEN) == 0, "there is only one network"
    write_uncertainty(table.assign(disagreement_networks=0.1), tmp_path / "two.png", LONG)
    assert color_count(assert_fits(tmp_path / "two.png", COLUMN), GREEN) > 200
    write_uncertainty(table[table["label"] == "normal"], tmp_path / "none.png", LONG)
    assert_fits(tmp_path / "none.png", COLUMN)
    _, risk, area = risk_coverage(np.array([-0.1, -0.9, -0.4]), np.array([0.1, 0.8, 0.3]))
    assert risk == pytest.approx([0.1, 0.2, 0.4]) and area == pytest.approx(0.7 / 3)


# FROC


def test_a_froc_curve_without_true_lesions_is_named_and_not_drawn(tmp_path):
    false = np.linspace(0, 2, 20)
    curves = {"IoU >= 0.1": (false, np.full(20, np.nan), false), "IoU >= 0.5": (false, false / 4, false)}
    write_froc(curves, tmp_path / "froc.png", "title")
    picture = assert_fits(tmp_path / "froc.png", COLUMN)
    axes = picture[: -int(1.2 * DPI)]
    assert color_count(axes, BLUE) == 0
    assert color_count(axes, VERMILLION) > 200
    assert color_count(picture, BLUE) > 20, "it is named in the legend"


@pytest.mark.parametrize("curves", [{}, {"a": ([], [])}, {LONG: ([0.0], [1.0])}])
def test_froc_of_nothing_and_of_one_point_is_drawn(curves, tmp_path):
    write_froc(curves, tmp_path / "froc.png", LONG)
    assert_fits(tmp_path / "froc.png", COLUMN)


@pytest.mark.parametrize(("rates", "steps"), [([0.25, 1, 4], [1, 3, 5]), ([0.01, 0.02, 20], [0, 0, 6])])
def test_the_marker_of_a_froc_curve_stands_at_its_rate_on_an_axis_from_an_eighth_to_eight(
    rates, steps, tmp_path
):
    """Each doubling is a sixth of the axis; a rate outside it stands at its edge."""
    columns = []
    for rate in rates:
        write_froc({"a": ([0.0, 0.0, rate], [0.0, 0.5, 0.5])}, tmp_path / "froc.png", "title")
        # the lower half of the marker, below the curve at half of the height
        middle = int((0.12 + 0.17 + (COLUMN - 0.75) / 2 + 0.02) * DPI)
        blue = (read_image(tmp_path / "froc.png")[middle : middle + int(0.06 * DPI)] == (0, 0x72, 0xB2)).all(
            axis=2
        )
        columns.append(np.nonzero(blue)[1].mean())
    left, side = 0.55 * DPI, (COLUMN - 0.75) * DPI
    assert columns == pytest.approx([left + step / 6 * side for step in steps], abs=6)


# ROC


def scored(n=90, seed=1):
    """A per-image table of which ``Images`` reads labels and scores; every image is a group."""
    random = np.random.default_rng(seed)
    label = np.array(["normal", "benign", "malignant"])[np.arange(n) % 3]
    score = np.clip(random.normal(0.4 + 0.2 * (label == "malignant"), 0.2), 0, 1)
    names = [f"i{number:04}" for number in range(n)]
    table = {"dataset": "d", "image_id": names, "group_id": names, "label": label, "predicted_label": label}
    return pd.DataFrame(table | {"malignant_score": score})


def test_the_band_of_the_roc_is_the_interval_that_the_summary_gives():
    table = scored()
    rates, low, high = roc_band(table, 500, 7, 0.95)
    ordered, group, stratum, _ = sorted_by_group(table)
    keys = ["sensitivity_at_90_specificity", "sensitivity_at_95_specificity"]
    of = estimators(ordered, keys)
    for key, rate in zip(keys, (0.1, 0.05), strict=True):
        found = estimate_of(
            bootstrap(of, group, stratum, 500, 7)[key], of[key].kinds, group, stratum, 0.95, len(table)
        )
        place = np.flatnonzero(np.isclose(rates, rate))[0]
        assert (low[place], high[place]) == (found["low"], found["high"])
    false, true = roc_of_images(table)
    reached = true[np.searchsorted(false, rates + 1e-9, side="right") - 1]
    known = ~np.isnan(low)
    assert known.sum() > 10 and (low <= reached)[known].all() and (reached <= high)[known].all()


def test_without_malignant_images_or_draws_there_is_no_curve_or_no_band(tmp_path):
    table = scored()
    assert roc_band(table, 0, 7, 0.95) is None
    one_class = table[table["label"] != "malignant"]
    assert roc_band(one_class, 100, 7, 0.95) is None
    assert not any(len(rate) for rate in roc_of_images(one_class))
    unscored = table.assign(malignant_score=np.nan)
    assert roc_band(unscored, 100, 7, 0.95) is None and not len(roc_of_images(unscored)[0])


def test_an_operating_point_stands_at_its_rates_with_its_intervals(tmp_path):
    there = (0.5, 0.4, 0.6)
    curves = {"malignant images": (np.array([0.0, 1]), np.array([1.0, 1]))}
    for name, points in (("none", None), ("one", {"threshold": (there, there)})):
        write_roc_curves(curves, tmp_path / f"{name}.png", "title", points=points)
    none, one = (read_image(tmp_path / f"{name}.png") for name in ("none", "one"))
    assert one.shape[0] > none.shape[0], "it has a line in the legend"
    axes = slice(int(0.5 * DPI), int((COLUMN - 0.75) * DPI))
    centre = round((0.55 + (COLUMN - 0.75) / 2) * DPI)
    bar = np.ptp(np.flatnonzero((one[axes, centre - 2 : centre + 3] < 60).all(axis=2).any(axis=1)))
    assert bar == pytest.approx(0.2 * (COLUMN - 0.75) * DPI, abs=4), "from 0.4 to 0.6"


# Subgroups


def test_a_dot_stands_at_its_value_and_is_hollow_without_an_interval(tmp_path):
    def dots(dice, width):
        write_subgroups(subgroups(dice=dice, width=width), tmp_path / "d.png", "title")
        blue = (read_image(tmp_path / "d.png") == (0, 0x72, 0xB2)).all(axis=2)
        return blue.sum(), np.nonzero(blue)[1].mean()

    (low_count, low), (_, high) = dots(0.25, 0.05), dots(0.75, 0.05)
    panel = (PAGE - 2.35 - 0.1 - 0.4) / 2 * DPI
    assert high - low == pytest.approx(panel / 2, abs=3)
    assert dots(0.25, None)[0] < low_count / 2


def test_a_subgroup_in_which_nothing_is_defined_has_no_row_and_the_only_data_set_neither(tmp_path):
    nothing = {"dice_lesion": estimate(None), "miss_rate": estimate(None)}
    some = {"dice_lesion": estimate(0.5), "miss_rate": estimate(None)}
    shown = {"class": {"benign": some}}
    for name, more in (
        ("bare", {}),
        (
            "padded",
            {
                "class": {"normal": nothing} | shown["class"],
                "flags": {"x": nothing},
                "dataset": {"busi": some},
            },
        ),
        ("several", {"dataset": {"busi": some, "udiat": some}}),
    ):
        write_subgroups(shown | more, tmp_path / f"{name}.png", "title")
    bare, padded, several = (
        (tmp_path / f"{name}.png").read_bytes() for name in ("bare", "padded", "several")
    )
    assert padded == bare != several
    picture = assert_fits(tmp_path / "bare.png")
    assert color_count(picture, BLUE) and not color_count(picture, VERMILLION), "not defined, in words"


def test_long_names_of_subgroups_fit_and_no_subgroups_are_drawn(tmp_path):
    write_subgroups(subgroups(LONG), tmp_path / "long.png", LONG)
    write_subgroups({}, tmp_path / "none.png", "title")
    assert_fits(tmp_path / "long.png")
    assert_fits(tmp_path / "none.png")


# Agreement


def test_only_images_with_a_lesion_in_truth_and_prediction_are_drawn(tmp_path):
    table = per_image()
    write_agreement(table, agreement(), tmp_path / "all.png", "title")
    table["circularity_predicted"] = np.nan
    write_agreement(table, agreement(), tmp_path / "none.png", "title")
    every, none = assert_fits(tmp_path / "all.png"), assert_fits(tmp_path / "none.png")
    lower_left = slice(int(3.6 * DPI), None), slice(0, int(3.4 * DPI))
    # blue, however pale
    drawn, left = ((one[..., 2].astype(int) - one[..., 0] > 60)[lower_left].sum() for one in (every, none))
    assert drawn > 200
    assert left == 0


@pytest.mark.parametrize("n", [0, 1])
@pytest.mark.parametrize("value", [None, math.nan, -0.2])
def test_agreement_of_few_images_and_undefined_limits_is_drawn(n, value, tmp_path):
    of = {name: {key: value if key != "n" else n for key in one} for name, one in agreement().items()}
    write_agreement(per_image(3 * n)[n:], of, tmp_path / "a.png", LONG)
    assert_fits(tmp_path / "a.png")
    write_agreement(per_image(0), {}, tmp_path / "b.png", "title")
    assert_fits(tmp_path / "b.png")


# Matrix


@pytest.mark.parametrize(("runs", "targets", "name"), [(2, 2, LONG[-60:]), (6, 8, ""), (2, 8, LONG[-60:])])
def test_a_matrix_of_any_size_fits_the_page(runs, targets, name, tmp_path):
    write_matrix(cells(runs, targets, name), tmp_path / "m.png", PANELS)
    picture = assert_fits(tmp_path / "m.png")
    grey = colour_of(0.5)
    assert color_count(picture, grey) > 4 * runs * targets * 1000, "every cell of every panel is there"


def test_bright_is_good_in_every_panel(tmp_path):
    good = {"dice_lesion": 1.0, "miss_rate": 0.0, "false_alarm_rate": 0.0, "auc_malignant": 1.0}
    for values, color in ((good, colour_of(1)), ({key: 1 - of for key, of in good.items()}, colour_of(0))):
        write_matrix(cells(1, 1).assign(**values), tmp_path / "m.png", PANELS)
        cell = 1.0 * 0.58 * DPI * DPI
        assert color_count(read_image(tmp_path / "m.png"), color) > 4 * 0.5 * cell


def test_in_domain_cells_are_framed_and_refused_ones_are_hatched_without_a_colour(tmp_path):
    def drawn(kind):
        table = cells(1, 1).assign(kind=kind)
        if kind == "refused":
            table[[c for c in table if c.startswith(MEASURES)]] = np.nan
        write_matrix(table, tmp_path / "m.png", PANELS)
        picture = read_image(tmp_path / "m.png")[: -int(0.62 * DPI)]  # without the legend
        return [color_count(picture, color) for color in (VERMILLION, colour_of(0.5), "#F2F2F2")]

    framed, coloured, hatched = drawn("external")
    assert framed == 0
    assert hatched < 1000
    assert coloured > 10_000
    framed, coloured, hatched = drawn("in-domain")
    assert framed > 4 * 400
    assert coloured > 10_000
    framed, coloured, hatched = drawn("refused")
    assert (framed, coloured) == (0, 0)
    assert hatched > 10_000


def test_an_undefined_value_has_no_colour_and_a_missing_pair_is_blank(tmp_path):
    table = cells(1, 1).assign(miss_rate=np.nan)
    write_matrix(table, tmp_path / "m.png", PANELS)
    one = color_count(read_image(tmp_path / "m.png"), colour_of(0.5))
    write_matrix(cells(1, 1), tmp_path / "m.png", PANELS)
    assert one == pytest.approx(0.75 * color_count(read_image(tmp_path / "m.png"), colour_of(0.5)), rel=0.05)
    write_matrix(cells(2, 2).drop(index=1), tmp_path / "m.png", PANELS)
    three = color_count(assert_fits(tmp_path / "m.png"), colour_of(0.5))
    write_matrix(cells(2, 2), tmp_path / "m.png", PANELS)
    assert three == pytest.approx(
        0.75 * color_count(read_image(tmp_path / "m.png"), colour_of(0.5)), rel=0.05
    )
    write_matrix(cells(1, 1)[:0], tmp_path / "m.png", PANELS)
    assert_fits(tmp_path / "m.png")


def test_a_mean_over_runs_is_drawn_with_its_sd(tmp_path):
    table = cells(1, 1)
    for measure in MEASURES:
        table[[f"{measure}_low", f"{measure}_high"]] = np.nan
    write_matrix(table, tmp_path / "none.png", PANELS)
    write_matrix(table.assign(**{f"{measure}_sd": 0.02 for measure in MEASURES}), tmp_path / "sd.png", PANELS)
    assert (tmp_path / "none.png").read_bytes() != (tmp_path / "sd.png").read_bytes()


# All of them


def test_the_same_tables_give_the_same_bytes_whatever_the_user_set_in_matplotlib(tmp_path):
    def write_all(folder):
        write_calibration(reliability(), per_image(), folder / "c.png", "title")
        write_froc({"a": (np.arange(3), np.arange(3) / 3)}, folder / "f.png", "title")
        write_subgroups(subgroups(), folder / "d.png", "title")
        write_agreement(per_image(), agreement(), folder / "a.png", "title")
        write_matrix(cells(), folder / "m.png", PANELS)
        write_coverage(per_image(), folder / "r.png", "title", "")
        return {path.name: path.read_bytes() for path in folder.iterdir()}

    first = write_all(tmp_path / "a")
    with matplotlib.rc_context({"font.size": 20, "axes.facecolor": "red", "savefig.bbox": "tight"}):
        assert write_all(tmp_path / "b") == first
    assert len(first) == 2 * 6, "PNG and PDF; no temporary file is left"
