import json

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import brier_score_loss, roc_auc_score
from tables import clustered_table, lesion, normal, random_table, table_row

from bus_smp.errors import EvaluationError
from bus_smp.measures.overlap import METRIC_COLUMNS, TARGETS
from bus_smp.measures.shape import SHAPES
from bus_smp.measures.surfaces import SURFACE_COLUMNS
from bus_smp.statistics.latex import latex
from bus_smp.statistics.score_table import format_estimate, format_table, table_rows, verdict
from bus_smp.statistics.summary import read_per_image, summarise, warnings_of


def _small():
    elsewhere = lesion("benign", 0)
    elsewhere[0, :2] = 75, 5
    return pd.DataFrame(
        [
            table_row("1", "a", "benign", lesion("benign", 20), 0.1),
            table_row("2", "a", "benign", elsewhere, 0.6),
            table_row("3", "b", "malignant", lesion("malignant", 10), 0.9),
            table_row("4", "b", "malignant", lesion("malignant", 0), 0.6),
            table_row("5", "c", "malignant", lesion("malignant", 20, "benign"), 0.2),
            table_row("6", "c", "normal", normal(), 0.0),
            table_row("7", "d", "normal", normal(4), 0.1),
        ]
    )


def test_a_small_table_by_hand():
    summary = summarise(_small(), draws=200)
    assert summary["counts"] == {
        "images": 7,
        "groups": 4,
        "by_label": {"normal": 2, "benign": 2, "malignant": 3},
        "groups_by_label": {"normal": 2, "benign": 1, "malignant": 2},
        "with_reference": {"lesion": 5, "benign": 2, "malignant": 3},
        "lesions_true": 5,
    }
    metrics, rates = summary["metrics"], summary["rates"]
    assert metrics["dice_lesion"]["mean"] == pytest.approx((1 + 0 + 2 / 3 + 0 + 1) / 5)
    assert (metrics["dice_lesion"]["n"], metrics["dice_lesion"]["n_undefined"]) == (5, 2)
    assert metrics["dice_malignant"]["mean"] == pytest.approx((2 / 3 + 0 + 0) / 3)
    assert metrics["precision_malignant"]["mean"] == 1
    assert metrics["precision_malignant"]["n"] == 1
    assert rates["miss_rate"]["mean"] == pytest.approx(2 / 5)
    assert rates["false_alarm_rate"]["mean"] == pytest.approx(1 / 2)
    assert rates["false_alarm_area"]["mean"] == pytest.approx(0.04 / 2)
    assert rates["image_sensitivity_malignant"]["mean"] == pytest.approx(1 / 3)
    assert rates["image_specificity_malignant"]["mean"] == 1
    assert summary["image_confusion"] == [[1, 1, 0], [0, 2, 0], [1, 1, 1]]
    assert summary["pixel_confusion"] == [[591, 9, 0], [20, 20, 0], [30, 20, 10]]
    assert summary["never_predicted"] == []


def test_every_metric_column_is_averaged_over_the_images_whose_reference_shows_the_target():
    table = _small()
    summary = summarise(table, draws=0)
    assert set(summary["metrics"]) == {*METRIC_COLUMNS, *SURFACE_COLUMNS, "dice_lesion_at_point"}
    for column in summary["metrics"]:
        target = column.removesuffix("_at_point").split("_")[-1]
        shows = table[f"sensitivity_{target}"].notna()
        estimate = summary["metrics"][column]
        assert estimate["mean"] == pytest.approx(table.loc[shows, column].mean())
        assert estimate["n"] == table.loc[shows, column].notna().sum()
        assert estimate["n"] + estimate["n_undefined"] == len(table)


def test_normal_images_never_change_a_dice():
    lesions = _small().iloc[:5]
    normals = pd.DataFrame([table_row(f"n{i}", f"n{i}", "normal", normal(i % 3)) for i in range(50)])
    alone, among = summarise(lesions, draws=0), summarise(pd.concat([lesions, normals]), draws=0)
    for column in METRIC_COLUMNS:
        assert alone["metrics"][column]["mean"] == pytest.approx(among["metrics"][column]["mean"])


def test_image_auc_agrees_with_scikit_learn_ties_included():
    table = random_table(150, 50, 3)
    rates = summarise(table, draws=300)["rates"]
    malignant = table["label"] == "malignant"
    assert rates["auc_malignant"]["mean"] == pytest.approx(
        roc_auc_score(malignant, table["malignant_score"]), abs=1e-12
    )
    lesions = table["label"] != "normal"
    among = rates["auc_malignant_among_lesions"]
    assert among["mean"] == pytest.approx(
        roc_auc_score(malignant[lesions], table.loc[lesions, "malignant_score"]), abs=1e-12
    )
    assert among["n"] == lesions.sum()
    assert among["low"] < among["mean"] < among["high"]


def test_the_size_of_its_blocks_does_not_change_the_bootstrap(monkeypatch):
    table = random_table(60, 15, 0)
    whole = summarise(table, draws=300)
    monkeypatch.setattr("bus_smp.statistics.bootstrap.BLOCK_CELLS", 60 * 64)
    assert summarise(table, draws=300) == whole


def test_the_summary_does_not_depend_on_row_order_or_on_the_index():
    table = clustered_table(6, 70, 1)
    table["dice_lesion"] **= 9  # of many magnitudes, so that another order of adding shows in the last digit
    shuffled = table.sample(frac=1, random_state=5)
    assert summarise(table, draws=200) == summarise(shuffled, draws=200)
    assert summarise(table, draws=200) != summarise(table, draws=200, seed=43)


def test_whole_patients_give_a_wider_interval_than_single_images():
    table = clustered_table(15, 10, 2)
    single = table.assign(group_id=table["image_id"])
    by_group = summarise(table, draws=1000)["metrics"]["dice_lesion"]
    by_image = summarise(single, draws=1000)["metrics"]["dice_lesion"]
    assert by_group["mean"] == pytest.approx(by_image["mean"])
    assert by_group["high"] - by_group["low"] > 2 * (by_image["high"] - by_image["low"])


def test_the_same_group_name_in_two_data_sets_is_two_groups():
    table = pd.concat([_small(), _small().assign(dataset="other")])
    assert summarise(table, draws=0)["counts"]["groups"] == 8


def test_where_there_is_no_interval_there_is_a_reason():
    one = summarise(_small().query("group_id == 'a'"), draws=100)
    assert one["metrics"]["dice_lesion"]["low"] is None
    assert one["metrics"]["dice_lesion"]["no_interval"] == "no interval: only 1 group"
    assert one["metrics"]["dice_malignant"]["mean"] is None
    assert one["metrics"]["dice_malignant"]["no_interval"] == "undefined: no such image"
    small = summarise(_small(), draws=400)
    assert small["metrics"]["dice_lesion"]["no_interval"] == "no interval: only 3 groups"
    many = summarise(random_table(60, 20, 1).assign(false_alarm_area=0.0), draws=100)
    assert many["rates"]["false_alarm_area"]["no_interval"] == "no interval: the same in every image"
    assert many["rates"]["image_ece"]["no_interval"] == "no interval: biased upwards"
    assert many["rates"]["image_brier"]["low"] < many["rates"]["image_brier"]["high"]


def test_the_summary_is_json_without_nan():
    for table in (_small(), _small().iloc[:1], _small().iloc[5:], _small().assign(malignant_score=np.nan)):
        json.dumps(summarise(table, draws=50), allow_nan=False)


def test_a_class_that_is_never_predicted_is_named():
    table = pd.DataFrame([table_row("1", "a", "malignant", lesion("malignant", 9, "benign"))])
    summary = summarise(table, draws=0)
    assert summary["never_predicted"] == ["malignant"]
    assert any("malignant is never predicted" in text for text in warnings_of(summary))


def test_lesions_are_counted_one_by_one_and_class_accuracy_only_where_one_was_found():
    table = _small().assign(
        lesions_true=[3, 1, 1, 1, 2, 0, 0], hits_iou10=[2, 0, 1, 0, 2, 0, 0], hits_iou50=[1, 0, 0, 0, 1, 0, 0],
        right_class_iou10=[2, 0, 1, 0, 0, 0, 0], false_lesions_iou10=[0, 1, 0, 0, 0, 0, 6], false_lesions_iou50=[1, 1, 1, 0, 1, 0, 6],
    )  # fmt: skip
    summary = summarise(table, draws=0)
    rates = summary["rates"]
    assert summary["counts"]["lesions_true"] == 8
    assert rates["lesion_sensitivity_iou10"]["mean"] == pytest.approx(5 / 8)
    assert rates["lesion_sensitivity_iou50"]["mean"] == pytest.approx(2 / 8)
    assert (rates["lesion_sensitivity_iou10"]["n"], rates["lesion_sensitivity_iou10"]["n_undefined"]) == (
        5,
        2,
    )
    assert rates["false_lesions_per_image_iou10"]["mean"] == pytest.approx(7 / 7)
    assert rates["false_lesions_per_image_iou50"]["mean"] == pytest.approx(10 / 7)
    assert rates["class_accuracy_given_detection"]["mean"] == pytest.approx(3 / 5)
    assert rates["class_accuracy_given_detection"]["n"] == 3
    nothing = summarise(table.assign(hits_iou10=0, right_class_iou10=0), draws=0)["rates"]
    assert nothing["class_accuracy_given_detection"]["mean"] is None


def test_a_distance_is_undefined_where_nothing_is_predicted_and_is_counted_not_filled_in():
    table = _small()
    table["hd95_lesion"] = [1.0, 9.0, 2.0, np.nan, 4.0, 7.0, np.nan]  # image 6 is normal
    hd95 = summarise(table, draws=0)["metrics"]["hd95_lesion"]
    assert hd95["mean"] == pytest.approx((1 + 9 + 2 + 4) / 4)
    assert (hd95["n"], hd95["n_undefined"]) == (4, 3)
    assert "hd95_lesion_mm" not in summarise(table, draws=0)["metrics"]
    table["pixel_mm"] = [0.1, np.nan, 0.2, 0.1, 0.1, 0.1, 0.1]
    metrics = summarise(table, draws=0)["metrics"]
    assert metrics["hd95_lesion_mm"]["mean"] == pytest.approx((0.1 + 0.4 + 0.4) / 3)
    assert (metrics["hd95_lesion_mm"]["n"], metrics["asd_lesion_mm"]["n"]) == (3, 3)


def test_brier_and_ece_of_images_are_those_of_their_definitions():
    table = random_table(200, 50, 4).assign(malignant_score_raw=np.random.default_rng(0).random(200))
    malignant = (table["label"] == "malignant").to_numpy()
    rates = summarise(table, draws=0)["rates"]
    for ending in ("", "_raw"):
        score = table[f"malignant_score{ending}"].to_numpy()
        assert rates[f"image_brier{ending}"]["mean"] == pytest.approx(brier_score_loss(malignant, score))
        bins = np.minimum(score // 0.1000000001, 9)
        gaps = [
            abs(malignant[bins == b].mean() - score[bins == b].mean()) * (bins == b).mean() for b in set(bins)
        ]
        if ending:  # the rounded scores lie on the borders of bins
            assert rates["image_ece_raw"]["mean"] == pytest.approx(sum(gaps))
    sure = table.assign(malignant_score=malignant.astype(float))
    assert summarise(sure, draws=0)["rates"]["image_ece"]["mean"] == 0
    wrong = summarise(table.assign(malignant_score=1.0 - malignant), draws=0)["rates"]
    assert wrong["image_ece"]["mean"] == wrong["image_brier"]["mean"] == 1
    unscored = summarise(table.assign(malignant_score=np.nan), draws=0)["rates"]
    assert unscored["image_ece"]["mean"] is unscored["image_brier"]["mean"] is None


def test_calls_are_those_of_the_stored_thresholds_and_undefined_without_one():
    table = _small().assign(called_malignant=[1, 0, 1, 1, 0, 0, 0], called_malignant_95=np.nan)
    rates = summarise(table, draws=0)["rates"]
    assert rates["called_sensitivity"]["mean"] == pytest.approx(2 / 3)
    assert rates["called_specificity"]["mean"] == pytest.approx(3 / 4)
    assert rates["called_sensitivity_95"]["mean"] is rates["called_specificity_95"]["mean"] is None
    assert rates["called_specificity_90"]["mean"] == pytest.approx(3 / 4)  # the benign score of .6


def test_strata_hold_the_numbers_of_only_their_images():
    table = random_table(120, 30, 6)
    table["flags"] = ["marks|duplicate:x" if index % 3 == 0 else "" for index in range(120)]
    table.loc[table.index % 2 == 0, "dataset"] = "other"
    strata = summarise(table, draws=200)["strata"]
    assert list(strata) == ["size", "class", "flags", "dataset"]
    assert list(strata["flags"]) == ["with marks", "without marks"]
    parts = {
        ("class", "benign"): table[table["label"] == "benign"],
        ("flags", "with marks"): table[table.index % 3 == 0],
        ("dataset", "other"): table[table["dataset"] == "other"],
    }
    for (by, level), part in parts.items():
        alone, found = summarise(part, draws=0), strata[by][level]
        assert (found["images"], found["groups"]) == (len(part), alone["counts"]["groups"])
        for name in ("dice_lesion", "miss_rate", "false_alarm_rate", "auc_malignant"):
            expected = (alone["metrics"] | alone["rates"])[name]
            assert found[name]["mean"] == (expected["mean"] and pytest.approx(expected["mean"]))
            assert (found[name]["n"], found[name]["n_undefined"]) == (expected["n"], expected["n_undefined"])
    assert strata["class"]["benign"]["dice_lesion"]["low"] is not None
    assert strata["class"]["benign"]["auc_malignant"]["no_interval"] == "undefined: no such image"


def test_sizes_are_terciles_of_the_lesions_share_of_the_image_with_their_bounds():
    sizes = [5, 10, 15, 20, 25, 30]
    rows = [table_row(str(size), f"p{size}", "benign", lesion("benign", 5, size=size)) for size in sizes]
    rows.append(table_row("n", "n", "normal", normal()))
    found = summarise(pd.DataFrame(rows), draws=50)["strata"]["size"]
    assert {name: (level["images"], level["bounds"]) for name, level in found.items()} == {
        "small": (2, [0.05, 0.1]),
        "medium": (2, [0.15, 0.2]),
        "large": (2, [0.25, 0.3]),
    }
    assert found["small"]["dice_lesion"]["n"] == 2
    assert found["small"]["dice_lesion"]["no_interval"] == "no interval: only 2 groups"
    assert "size" not in summarise(pd.DataFrame(rows[-1:]), draws=0)["strata"]


def test_shapes_are_compared_where_the_lesion_was_found_and_what_is_undefined_is_null():
    table = _small().assign(area_truth=20.0, area_predicted=[20.0, 5, 10, np.nan, 26, np.nan, 4])
    area = summarise(table, draws=0)["agreement"]["area"]
    assert area["n"] == 3, "neither the miss that marks something elsewhere nor the false alarm"
    assert area["bias"] == pytest.approx((0 - 10 + 6) / 3)
    assert area["r"] is None, "the truth is always the same"
    assert list(summarise(table.iloc[5:], draws=0)["agreement"]) == list(SHAPES)


def test_a_rare_label_gets_its_share_of_every_draw_and_the_summary_names_it():
    table = random_table(90, 30, 8)
    table["label"] = ["malignant" if int(group[1:]) < 6 else "benign" for group in table["group_id"]]
    summary = summarise(table, draws=300)
    assert summary["bootstrap"]["stratified_by"] == ["malignant"]
    assert summary["rates"]["image_sensitivity_malignant"]["undefined_draws"] == 0
    assert summarise(random_table(90, 30, 8), draws=0)["bootstrap"]["stratified_by"] == []


def test_what_few_patients_cannot_tell_is_a_warning():
    assert any("only 4 groups" in text for text in warnings_of(summarise(_small(), draws=0)))
    table = clustered_table(20, 2, 0)
    table.loc[:3, "label"] = "malignant"
    assert warnings_of(summarise(table, draws=0))[-1].startswith("malignant images come from only 2 groups")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda t: t.drop(columns="dice_lesion"), "dice_lesion"),
        (lambda t: t.drop(columns="hd95_lesion"), "hd95_lesion(.|\n)*evaluate again"),
        (lambda t: t.iloc[:0], "no rows"),
        (lambda t: pd.concat([t, t.iloc[:1]]), "scored twice"),
        (lambda t: t.assign(label="cyst"), "cyst"),
        (lambda t: t.assign(group_id=np.nan), "group_id"),
    ],
)
def test_a_table_that_would_be_summarised_wrongly_is_refused(change, named):
    with pytest.raises(EvaluationError, match=named):
        summarise(change(_small()))


def test_a_stored_table_gives_the_same_summary_and_names_stay_text(tmp_path):
    table = _small().assign(group_id=["007", "007", "NA", "NA", "1e3", "1e3", "nan"])
    table.to_csv(tmp_path / "per_image.csv", index=False)
    stored = read_per_image(tmp_path / "per_image.csv")
    assert stored["group_id"].tolist() == table["group_id"].tolist()
    assert summarise(stored, draws=100) == summarise(table, draws=100)
    with pytest.raises(EvaluationError, match="no such file"):
        read_per_image(tmp_path / "absent.csv")
    for text in ("a,b\n1,x\n", "a,b\n1,2\n", ""):
        (tmp_path / "bad.csv").write_text(text, encoding="utf-8")
        with pytest.raises(EvaluationError, match="bad.csv"):
            read_per_image(tmp_path / "bad.csv")


def test_the_table_shows_every_system_in_aligned_columns():
    summary = summarise(_small(), draws=200)
    nothing = _small().assign(**{f"dice_{target}": np.nan for target in (*TARGETS, "lesion_at_point")})
    text = format_table({"model": summary, "all-background": summarise(nothing, draws=0)})
    lines = text.splitlines()
    assert lines[0] == "7 images of 4 groups: 2 normal, 2 benign, 3 malignant"
    second = lines[2].index("all-")
    assert lines[3].index("background") == second
    for line in lines:
        assert len(line) <= 80
        if line.startswith("  Dice"):
            assert line[second - 1] == " " and line[second:] == "-"
    assert "0.533 [1]" in text
    assert any(line.startswith("[1]: no interval: only ") for line in lines)
    rows = [words for _, words, _ in table_rows({"model": summary})]
    assert [words for words in rows if not any(line.startswith(f"  {words}  ") for line in lines)] == []


@pytest.mark.parametrize(
    ("column", "values", "said"),
    [
        ("malignant_score", [0.9, 0.9, 0.9, 0.9, 0.1, 0.1, 0.1], "AUC below chance: 0.000"),
        ("predicted_label", ["benign"] * 7, "false alarms on all 2 normal images"),
        ("dice_lesion", [np.nan] * 2 + [0.0] * 4 + [0.5], "lesion missed in 4 of 5 images with a lesion"),
    ],
)
def test_what_makes_a_model_useless_is_a_warning(column, values, said):
    table = _small().sort_values(
        "label", key=lambda of: of.map(["normal", "benign", "malignant"].index), ignore_index=True
    )
    assert any(
        text.startswith(said) for text in warnings_of(summarise(table.assign(**{column: values}), draws=0))
    )


@pytest.mark.parametrize(
    ("dice", "said"),
    [
        ((0.6, 0.5, 0.7), "Dice clearly above trivial blob (0.300)"),
        ((0.4, 0.3, 0.5), "Dice above trivial blob (0.300), intervals overlap"),
        ((0.4, None, None), "Dice above trivial blob (0.300), no interval"),
        ((0.2, 0.1, 0.3), "Dice no better than trivial blob (0.300)"),
        ((None, None, None), "none: no image shows a lesion"),
    ],
)
def test_the_verdict_is_against_the_better_baseline(dice, said):
    def summary(*values):
        return {"metrics": {"dice_lesion": dict(zip(("mean", "low", "high"), values, strict=True))}}

    baselines = {"nothing": summary(0.0, None, None), "blob": summary(0.3, 0.2, 0.4)}
    assert verdict({"model": summary(*dice), **baselines}) == said


def test_latex_prints_what_was_written_and_runs_nothing():
    assert latex(r"a_b & 5 % of $x^2 \input{y} #1 ~ IoU >= .5") == (
        r"a\_b \& 5 \% of \$x\textasciicircum{}2 \textbackslash{}input\{y\} \#1 \textasciitilde{} IoU $\geq$ .5"
    )
    assert latex("two\nlines") == r"two\textbackslash{}nlines"


def test_an_estimate_reads_as_value_interval_and_number_of_images():
    estimate = {"mean": 0.6123, "low": 0.55, "high": 0.6706, "n": 63, "no_interval": ""}
    assert format_estimate(estimate) == "0.612 [0.550, 0.671] n=63"
    without = estimate | {"low": None, "high": None, "no_interval": "no interval: one patient"}
    assert format_estimate(without) == "0.612 [one patient] n=63"
    assert format_estimate(without | {"no_interval": "no interval: the same in every image"}) == "0.612 n=63"
    assert format_estimate(estimate | {"mean": None}) == "-"
