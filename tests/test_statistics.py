import json

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from bus_smp.classes import LABELS
from bus_smp.errors import EvaluationError
from bus_smp.evaluation.metrics import METRIC_COLUMNS, TARGETS, image_row
from bus_smp.evaluation.score_table import format_estimate, format_table, table_rows
from bus_smp.evaluation.statistics import read_per_image, summarise, warnings_of


def _row(image_id, group, label, counts, score=0.0):
    return {
        "dataset": "made", "image_id": image_id, "patient_id": group, "group_id": group, "label": label,
        "width": 10, "height": 10, "flags": "", "malignant_score": score,
    } | image_row(np.array(counts))  # fmt: skip


def _lesion(label, found, predicted_as=None, size=20):
    """Counts of an image with one lesion of ``size`` pixels, of which ``found`` are predicted."""
    counts = np.zeros((3, 3), int)
    true = LABELS.index(label)
    counts[0, 0] = 100 - size
    counts[true, LABELS.index(predicted_as or label)] = found
    counts[true, 0] += size - found
    return counts


def _normal(false_alarm=0, predicted_as="benign"):
    counts = np.zeros((3, 3), int)
    counts[0, 0] = 100 - false_alarm
    counts[0, LABELS.index(predicted_as)] += false_alarm
    return counts


def _small():
    elsewhere = _lesion("benign", 0)
    elsewhere[0, :2] = 75, 5
    return pd.DataFrame(
        [
            _row("1", "a", "benign", _lesion("benign", 20), 0.1),
            _row("2", "a", "benign", elsewhere, 0.6),
            _row("3", "b", "malignant", _lesion("malignant", 10), 0.9),
            _row("4", "b", "malignant", _lesion("malignant", 0), 0.6),
            _row("5", "c", "malignant", _lesion("malignant", 20, "benign"), 0.2),
            _row("6", "c", "normal", _normal(), 0.0),
            _row("7", "d", "normal", _normal(4), 0.1),
        ]
    )


def _clustered(groups, per_group, seed, between=0.2, within=0.02):
    """A table in which images of one patient resemble each other; only lesion Dice matters."""
    random = np.random.default_rng(seed)
    level = np.repeat(0.5 + between * random.uniform(-1, 1, groups), per_group)
    dice = level + within * random.uniform(-1, 1, groups * per_group)
    row = _row("0", "p0", "benign", _lesion("benign", 10))
    return pd.DataFrame([row] * len(dice)).assign(
        image_id=[str(index) for index in range(len(dice))],
        group_id=[f"p{index // per_group}" for index in range(len(dice))],
        dice_lesion=dice,
    )


def test_a_small_table_by_hand():
    summary = summarise(_small(), draws=200)
    assert summary["counts"] == {
        "images": 7,
        "groups": 4,
        "by_label": {"normal": 2, "benign": 2, "malignant": 3},
        "with_reference": {"lesion": 5, "benign": 2, "malignant": 3},
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
    assert list(summary["metrics"]) == list(METRIC_COLUMNS)
    for column in METRIC_COLUMNS:
        shows = table[f"sensitivity_{column.split('_')[1]}"].notna()
        estimate = summary["metrics"][column]
        assert estimate["mean"] == pytest.approx(table.loc[shows, column].mean())
        assert estimate["n"] == table.loc[shows, column].notna().sum()
        assert estimate["n"] + estimate["n_undefined"] == len(table)


def test_normal_images_never_change_a_dice():
    lesions = _small().iloc[:5]
    normals = pd.DataFrame([_row(f"n{i}", f"n{i}", "normal", _normal(i % 3)) for i in range(50)])
    alone, among = summarise(lesions, draws=0), summarise(pd.concat([lesions, normals]), draws=0)
    for column in METRIC_COLUMNS:
        assert alone["metrics"][column]["mean"] == pytest.approx(among["metrics"][column]["mean"])


def test_image_auc_agrees_with_scikit_learn_ties_included():
    random = np.random.default_rng(3)
    rows = []
    for index in range(150):
        label = LABELS[random.integers(3)]
        score = round(random.uniform() * 0.6 + 0.2 * LABELS.index(label), 1)
        counts = _normal() if label == "normal" else _lesion(label, 5)
        rows.append(_row(str(index), f"p{index // 3}", label, counts, score))
    table = pd.DataFrame(rows)
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


def test_the_interval_is_that_of_drawing_whole_groups_in_a_loop():
    table = _small()
    draws = 150
    ours = summarise(table, draws=draws, seed=7)
    random = np.random.default_rng(7)
    members = [np.flatnonzero(table["group_id"] == name) for name in sorted(table["group_id"].unique())]
    malignant = (table["label"] == "malignant").to_numpy()
    dice, auc = [], []
    for pick in random.integers(0, len(members), (draws, len(members))):
        drawn = np.concatenate([members[i] for i in pick])
        dice.append(table["dice_lesion"].iloc[drawn].mean())
        both = len(set(malignant[drawn])) == 2
        auc.append(roc_auc_score(malignant[drawn], table["malignant_score"].iloc[drawn]) if both else np.nan)
    estimate = ours["metrics"]["dice_lesion"]
    assert estimate["undefined_draws"] == np.isnan(dice).sum()
    assert [estimate["low"], estimate["high"]] == pytest.approx(np.nanquantile(dice, [0.025, 0.975]))
    assert ours["rates"]["auc_malignant"]["undefined_draws"] == np.isnan(auc).sum() > 0


def test_the_bootstrap_gives_the_same_whatever_the_size_of_its_blocks(monkeypatch):
    table = _clustered(8, 3, 0)
    whole = summarise(table, draws=300)
    monkeypatch.setattr("bus_smp.evaluation.bootstrap._BLOCK_CELLS", 24 * 64)
    assert summarise(table, draws=300) == whole


def test_the_summary_does_not_depend_on_row_order_or_on_the_index():
    table = _clustered(61, 7, 1)
    table["dice_lesion"] **= 9  # of many magnitudes, so that another order of adding shows in the last digit
    shuffled = table.sample(frac=1, random_state=5)
    assert summarise(table, draws=200) == summarise(shuffled, draws=200)
    assert summarise(table, draws=200) != summarise(table, draws=200, seed=43)


def test_whole_patients_give_a_wider_interval_than_single_images():
    table = _clustered(15, 10, 2)
    single = table.assign(group_id=table["image_id"])
    by_group = summarise(table, draws=1000)["metrics"]["dice_lesion"]
    by_image = summarise(single, draws=1000)["metrics"]["dice_lesion"]
    assert by_group["mean"] == pytest.approx(by_image["mean"])
    assert by_group["high"] - by_group["low"] > 2 * (by_image["high"] - by_image["low"])


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    covered = 0
    for seed in range(120):
        estimate = summarise(_clustered(25, 2, seed), draws=300)["metrics"]["dice_lesion"]
        covered += estimate["low"] <= 0.5 <= estimate["high"]
    assert 0.87 <= covered / 120 <= 0.99


def test_the_same_group_name_in_two_data_sets_is_two_groups():
    table = pd.concat([_small(), _small().assign(dataset="other")])
    assert summarise(table, draws=0)["counts"]["groups"] == 8


def test_where_there_is_no_interval_the_reason_is_said():
    one = summarise(_small().query("group_id == 'a'"), draws=100)
    assert one["metrics"]["dice_lesion"]["low"] is None
    assert one["metrics"]["dice_lesion"]["no_interval"] == "no interval: one patient"
    assert one["metrics"]["dice_malignant"]["mean"] is None
    assert one["metrics"]["dice_malignant"]["no_interval"] == "undefined: no such image"
    small = summarise(_small(), draws=400)
    # Benign images are all of patient a, so every draw that has them has the same mean.
    assert small["metrics"]["dice_benign"]["no_interval"] == "no interval: one patient"
    assert (
        small["rates"]["image_specificity_malignant"]["no_interval"] == "no interval: the same in every image"
    )
    two = _small().iloc[[0, 2, 5, 6]].assign(group_id=["a", "b", "c", "d"])
    rare = pd.concat([two, *(two.iloc[:1].assign(image_id=f"x{i}", group_id=f"x{i}") for i in range(20))])
    estimate = summarise(rare, draws=400)["rates"]["false_alarm_rate"]
    assert estimate["undefined_draws"] > 20
    assert estimate["low"] is None and "of the draws" in estimate["no_interval"]
    assert estimate["mean"] == 0.5


def test_the_summary_is_json_without_nan():
    for table in (_small(), _small().iloc[:1], _small().iloc[5:], _small().assign(malignant_score=np.nan)):
        json.dumps(summarise(table, draws=50), allow_nan=False)


def test_a_class_that_is_never_predicted_is_named():
    table = pd.DataFrame([_row("1", "a", "malignant", _lesion("malignant", 9, "benign"))])
    summary = summarise(table, draws=0)
    assert summary["never_predicted"] == ["malignant"]
    assert any("malignant is never predicted" in text for text in warnings_of(summary))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda t: t.drop(columns="dice_lesion"), "dice_lesion"),
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
    nothing = _small().assign(**{f"dice_{target}": np.nan for target in TARGETS})
    text = format_table({"model": summary, "all-background": summarise(nothing, draws=0)})
    lines = text.splitlines()
    assert lines[0] == "7 images of 4 groups: 2 normal, 2 benign, 3 malignant"
    second = lines[2].index("all-background")
    for line in lines:
        if line.startswith("  Dice"):
            assert line[second - 1] == " " and line[second:] == "-"
    assert "0.533 [" in text
    assert len(table_rows({"model": summary})) == sum(
        line.startswith("  ") and "---" not in line for line in lines[3:]
    )


def test_an_estimate_reads_as_value_interval_and_number_of_images():
    estimate = {"mean": 0.6123, "low": 0.55, "high": 0.6706, "n": 63, "no_interval": ""}
    assert format_estimate(estimate) == "0.612 [0.550, 0.671] n=63"
    without = estimate | {"low": None, "high": None, "no_interval": "no interval: one patient"}
    assert format_estimate(without) == "0.612 [one patient] n=63"
    assert format_estimate(without | {"no_interval": "no interval: the same in every image"}) == "0.612 n=63"
    assert format_estimate(estimate | {"mean": None}) == "-"
