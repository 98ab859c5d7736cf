"""Two runs on the same images: paired intervals, p-values by swapping whole patients, and folders that do not fit."""

import itertools
import json
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from conftest import invoke
from tables import clustered_table, lesion, normal, random_table, table_row

from bus_smp.errors import EvaluationError
from bus_smp.runs.comparisons import read_comparison
from bus_smp.runs.experiment import Experiment, Member, begin_experiment
from bus_smp.statistics.compare import compare, holm
from bus_smp.statistics.compare_pairs import compare_pairs
from bus_smp.statistics.comparison_table import answer, format_comparison
from bus_smp.statistics.metrics import COMPARED
from bus_smp.statistics.summary import summarise


def _other_run(table, seed):
    """The same images as another network may have predicted them."""
    random = np.random.default_rng(seed)
    rows = []
    for row in table.to_dict("records"):
        label = row["label"]
        counts = (
            normal(int(random.integers(3))) if label == "normal" else lesion(label, int(random.integers(21)))
        )
        score = round(float(np.clip(row["malignant_score"] + random.normal(0, 0.2), 0, 1)), 1)
        rows.append(table_row(row["image_id"], row["group_id"], label, counts, score))
    return pd.DataFrame(rows)


def _value(table, name):
    summary = summarise(table, draws=0)
    return (summary["metrics"] | summary["rates"])[name]["mean"]


def test_each_run_has_its_own_numbers_and_the_difference_is_theirs():
    a = random_table(90, 30, 1)
    b = _other_run(a, 2)
    comparison = compare(a, b, draws=300, permutations=200)
    json.dumps(comparison, allow_nan=False)
    assert list(comparison["metrics"]) == list(COMPARED)
    assert comparison["primary"] == "dice_lesion"
    assert (comparison["images"], comparison["groups"]) == (90, 30)
    for name, one in comparison["metrics"].items():
        if name not in ("hd95_lesion",):  # defined where both predict something
            assert one["a"] == pytest.approx(_value(a, name))
            assert one["b"] == pytest.approx(_value(b, name))
            assert one["n_unpaired"] == 0
        assert one["difference"] == pytest.approx(one["a"] - one["b"])
        if one["low"] is not None:
            assert one["low"] < one["difference"] < one["high"]
        assert 0 < one["p"] <= one["p_holm"] <= 1


def test_the_other_way_round_only_the_sign_changes():
    a = random_table(60, 12, 3)
    b = _other_run(a, 4)
    there, back = compare(a, b, draws=200), compare(b, a, draws=200)
    for name in COMPARED:
        one, other = there["metrics"][name], back["metrics"][name]
        assert one["difference"] == -other["difference"]
        assert one["p"] == other["p"]
        assert (one["low"] is None) == (other["low"] is None)
        if one["low"] is not None:
            assert [one["low"], one["high"]] == pytest.approx([-other["high"], -other["low"]])


def test_p_of_an_auc_does_not_depend_on_the_scale_of_a_runs_scores():
    """Another temperature moves all scores of one run and no AUC."""
    a = random_table(90, 30, 11)
    b = _other_run(a, 12)
    cooler = b.assign(malignant_score=b["malignant_score"] ** 4 / 2)
    before, after = (compare(a, run, draws=0, permutations=300)["metrics"] for run in (b, cooler))
    assert before["auc_malignant"]["p"] == after["auc_malignant"]["p"]
    assert before["auc_malignant"]["difference"] == after["auc_malignant"]["difference"]
    assert before["image_brier"]["b"] != after["image_brier"]["b"]


def test_row_order_changes_nothing():
    a = random_table(60, 20, 5)
    b = _other_run(a, 6)
    mixed = compare(a.sample(frac=1, random_state=1), b.sample(frac=1, random_state=2), 100, 100)
    assert mixed == compare(a, b, 100, 100)
    assert mixed != compare(a, b, 100, 100, seed=7)


def test_the_p_value_is_that_of_a_loop_over_all_swaps_of_whole_groups():
    a = random_table(30, 6, 8)
    b = _other_run(a, 9)
    comparison = compare(a, b, draws=0)
    assert comparison["permutation"] == {"unit": "group", "number": 64, "exact": True, "seed": 42}
    names = ("dice_lesion", "miss_rate", "auc_malignant", "image_brier")

    def differences(swapped):
        moved = a["group_id"].isin(swapped)
        x = summarise(pd.concat([a[~moved], b[moved]]), draws=0)
        y = summarise(pd.concat([b[~moved], a[moved]]), draws=0)
        x, y = (summary["metrics"] | summary["rates"] for summary in (x, y))
        return [abs(x[name]["mean"] - y[name]["mean"]) for name in names]

    groups = sorted(a["group_id"].unique())
    ways = [list(itertools.compress(groups, swap)) for swap in itertools.product([0, 1], repeat=6)]
    further = np.array([differences(way) for way in ways]) >= np.array(differences([])) - 1e-12
    assert [comparison["metrics"][name]["p"] for name in names] == pytest.approx(
        further.mean(axis=0).tolist()
    )


def test_few_groups_swap_the_scores_themselves_so_that_the_p_of_an_auc_is_exact():
    """Swapped as ranks the p would be .031: a rank depends on the images that are not swapped."""
    a = random_table(7, 7, 1).assign(label=["malignant"] * 3 + ["benign"] * 4)
    b = a.assign(malignant_score=[0.86, 0.50, 0.89, 0.24, 0.08, 0.28, 0.55])
    a = a.assign(malignant_score=[0.41, 0.38, 0.35, 0.70, 0.02, 0.72, 0.83])
    assert compare(a, b, draws=0)["metrics"]["auc_malignant"]["p"] == 0.125


def test_random_swaps_come_near_the_exact_p_and_never_reach_zero(monkeypatch):
    a = random_table(80, 12, 10)
    b = _other_run(a, 11)
    exact = compare(a, b, draws=0)["metrics"]
    monkeypatch.setattr("bus_smp.statistics.compare._MOST_EXACT", 0)
    drawn = compare(a, b, draws=0, permutations=4000)
    assert not drawn["permutation"]["exact"]
    for name in COMPARED:
        assert drawn["metrics"][name]["p"] == pytest.approx(exact[name]["p"], abs=0.03)
    better = b.assign(dice_lesion=np.minimum(b["dice_lesion"] + 0.5, 1.0))
    worse = b.assign(dice_lesion=b["dice_lesion"] * 0.1)
    clear = compare(better, worse, draws=0, permutations=99)["metrics"]["dice_lesion"]
    assert clear["p"] == clear["p_least"] == 1 / 100


def test_a_run_is_as_good_as_itself():
    table = random_table(60, 20, 12)
    for one in compare(table, table, 200, 200)["metrics"].values():
        assert (one["difference"], one["p"], one["p_holm"]) == (0, 1, 1)
        assert one["low"] is None


def test_an_image_where_only_one_run_has_a_distance_is_left_out_of_both_and_counted():
    random = np.random.default_rng(0)
    a = random_table(60, 20, 13).assign(hd95_lesion=random.random(60))
    b = a.assign(hd95_lesion=random.random(60))
    shown = a.index[a["label"] != "normal"]
    a.loc[shown[0], "hd95_lesion"], b.loc[shown[0], "hd95_lesion"] = 1000.0, np.nan
    a.loc[shown[1], "hd95_lesion"], b.loc[shown[1], "hd95_lesion"] = np.nan, 100.0
    one = compare(a, b, 100, 100)["metrics"]["hd95_lesion"]
    assert (one["n"], one["n_unpaired"]) == (len(shown) - 2, 2)
    without = compare(a.drop(shown[:2]), b.drop(shown[:2]), 100, 100)["metrics"]["hd95_lesion"]
    for key in ("a", "b", "difference", "low", "high", "p"):
        assert one[key] == pytest.approx(without[key])


def test_with_few_patients_no_p_can_be_small_and_a_note_explains_it():
    a = clustered_table(4, 6, 0)
    b = a.assign(dice_lesion=a["dice_lesion"] - 0.3)
    comparison = compare(a, b, draws=100)
    dice = comparison["metrics"]["dice_lesion"]
    assert dice["p"] == dice["p_least"] == 2 / 2**4
    assert dice["no_interval"] == "no interval: the same in every image" or "4 groups" in dice["no_interval"]
    printed = format_comparison({**comparison, "pairs": 1}, ["a", "b"])
    assert "With 4 groups no p can be below 0.125" in printed
    assert "is better" not in answer(comparison, "AB")


def test_holm_is_that_of_the_textbook():
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005, "e": None}) == pytest.approx(
        {"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02, "e": None}
    )
    assert holm({"a": 0.9, "b": 0.8}) == {"a": 1.0, "b": 1.0}
    assert holm({}) == {}


def _null_tables(seed, groups=16):
    """Two runs that are equally good: how one differs from the other is the patient's, not the run's."""
    random = np.random.default_rng([seed, 5])
    table = NULL.iloc[: groups * 4]
    patient = np.repeat(random.normal(0, 0.1, groups), 4)
    lean = np.repeat(random.normal(0, 0.1, groups), 4)
    noise = random.normal(0, 0.03, (2, len(table)))
    return (
        table.assign(dice_lesion=0.5 + patient + sign * lean / 2 + e)
        for sign, e in zip((1, -1), noise, strict=True)
    )


NULL = clustered_table(16, 4, 0)


def test_where_neither_run_is_better_p_is_below_5_percent_in_5_percent_of_samples():
    by_patient, by_image = [], []
    for seed in range(200):
        a, b = _null_tables(seed)
        by_patient.append(_dice_p(a, b))
        if seed < 40:
            by_image.append(_dice_p(*(table.assign(group_id=table["image_id"]) for table in (a, b))))
    assert 0.02 <= np.mean(np.array(by_patient) < 0.05) <= 0.08
    assert 0.35 <= np.mean(np.array(by_patient) < 0.5) <= 0.65
    assert np.mean(np.array(by_image) < 0.05) > 0.2, "swapping single images would call chance a difference"


def _dice_p(a, b):
    return compare(a, b, draws=0, permutations=199)["metrics"]["dice_lesion"]["p"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.iloc[1:], "different images: 1 are in only one of them"),
        (lambda t: t.assign(group_id=[f"x{i}" for i in range(len(t))]), "group_id of images differ"),
        (lambda t: t.assign(label="benign"), "label of images differ"),
        (
            lambda t: t.assign(pixels_benign_as_benign=t["pixels_benign_as_benign"] + 1),
            "reference mask of images",
        ),
        (lambda t: t.drop(columns="hd95_lesion"), "lacks the columns hd95_lesion: it is of an older version"),
    ],
)
def test_tables_that_are_not_of_the_same_images_are_refused(change, said):
    table = random_table(30, 10, 14)
    with pytest.raises(EvaluationError, match=said):
        compare(table, change(table))


# The command


def _write_run(out, run, table, rows="r", **more):
    folder = out / run / "eval-busi-all"
    folder.mkdir(parents=True)
    table.to_csv(folder / "per_image.csv", index=False)
    about = {"summaries": {}, "patient_known": True, "rows_sha256": rows, **more}
    (folder / "summary.json").write_text(json.dumps(about), encoding="utf-8")
    return folder


@pytest.fixture
def runs(tmp_path):
    a = random_table(60, 20, 15)
    _write_run(tmp_path, "one", a)
    _write_run(tmp_path, "two", _other_run(a, 16))
    return tmp_path


def test_compare_prints_both_runs_their_difference_and_how_to_read_it(runs):
    result = invoke("compare", "one", "two", "--target", "busi", "--out", runs)
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0] == "busi, all: 60 images of 20 patients"
    assert lines[1].startswith("no clear difference in Dice lesion: ")
    assert lines[3:5] == ["A: one", "B: two"]
    assert sum(line.startswith("Dice malignant ") for line in lines) == 1
    assert "the primary metric" in result.stdout
    assert max(map(len, lines)) <= 80
    by_folder = invoke("compare", runs / "one", runs / "two", "--target", "busi", "--split", "all")
    assert by_folder.stdout == result.stdout


def test_compare_as_json_holds_everything(runs):
    result = invoke("compare", "one", "two", "--target", "busi", "--out", runs, "--json")
    document = json.loads(result.stdout)
    assert (document["a"], document["b"], document["target"], document["split"]) == (
        "one",
        "two",
        "busi",
        "all",
    )
    assert list(document["metrics"]) == list(COMPARED)


def test_compare_imports_no_torch(runs):
    code = (
        "import sys\nfrom bus_smp.cli import main\n"
        f"main(['compare', 'one', 'two', '--target', 'busi', '--out', {str(runs)!r}])\nprint('torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "False"


def test_what_cannot_be_compared_is_an_error_with_the_command_to_type(runs):
    table = random_table(60, 20, 15)
    crosseval = "bus-smp crosseval --run one --target busi"

    def refused(*arguments):
        result = invoke("compare", *arguments, "--out", runs)
        assert result.exit_code == 1, result.stdout
        place = f" --out {runs}"
        for line in result.stderr.splitlines():
            assert "--run" not in line or place in line, "the command works as typed"
        return result.stderr.replace(place, "")

    _write_run(runs, "elsewhere", table).rename(runs / "elsewhere" / "eval-udiat-all")
    assert "one has busi (all); elsewhere has udiat (all)" in refused("one", "elsewhere")
    _write_run(runs, "other-manifest", table, rows="q")
    assert crosseval in refused("one", "other-manifest", "--target", "busi")
    _write_run(runs, "fewer", table.iloc[1:])
    assert f"{crosseval} and bus-smp crosseval --run fewer" in refused("one", "fewer", "--target", "busi")
    shutil.rmtree(_write_run(runs, "unscored", table))
    _write_run(runs, "unscored2", table)
    (runs / "unscored" / "config.yaml").write_text("", encoding="utf-8")
    assert "bus-smp crosseval --run unscored --target busi" in refused("one", "unscored", "--target", "busi")
    evaluate = "bus-smp evaluate --run one"
    assert evaluate in refused("one", "two", "--target", "busi", "--split", "test")
    _write_run(runs, "old", table.drop(columns="hd95_lesion"))
    assert "bus-smp crosseval --run old --target busi" in refused("one", "old", "--target", "busi")
    _write_run(runs, "mean", table, members={}, runs=["mean-1", "mean-2"])
    assert "compare one of them: mean-1, mean-2" in refused("mean", "one", "--target", "busi")
    _write_run(runs, "retrained", table, checkpoint={"sha256": "0" * 64})
    (runs / "retrained" / "best.safetensors").write_bytes(b"other weights by now")
    assert "is of other weights than" in (said := refused("one", "retrained", "--target", "busi"))
    assert "bus-smp crosseval --run retrained --target busi" in said
    absent = invoke("compare", "one", "absent", "--target", "busi", "--out", runs)
    assert (absent.exit_code, "run absent; " in absent.stderr) == (1, True)


def test_where_patients_are_not_known_the_comparison_says_so(runs):
    _write_run(runs, "unknown", random_table(60, 20, 15), patient_known=False)
    assert "no patient ids" in invoke("compare", "one", "unknown", "--target", "busi", "--out", runs).stdout


# Experiments


def _pairs(seed, pairs=3, groups=16, difference=0.0, between=0.05):
    """Pairs of runs on the same images: patients differ, and each training is better or worse by chance."""
    random = np.random.default_rng([seed, 9])
    table = NULL.iloc[: groups * 4]
    patient = np.repeat(random.normal(0, 0.1, groups), 4)
    lean = np.repeat(random.normal(0, 0.05, groups), 4)
    found = []
    for luck in random.normal(0, between, (pairs, 2)):
        noise = random.normal(0, 0.03, (2, len(table)))
        found.append(
            tuple(
                table.assign(dice_lesion=0.5 + patient + sign * (difference + lean) / 2 + own + e)
                for sign, own, e in zip((1, -1), luck, noise, strict=True)
            )
        )
    return found


def test_the_difference_of_experiments_is_the_mean_over_pairs_and_a_single_pair_is_compared_as_two_runs():
    pairs = _pairs(1)
    one = compare_pairs(pairs, draws=200)["metrics"]["dice_lesion"]
    differences = [a["dice_lesion"].mean() - b["dice_lesion"].mean() for a, b in pairs]
    assert one["differences"] == pytest.approx(differences)
    assert one["difference"] == pytest.approx(np.mean(differences))
    assert one["low"] < one["difference"] < one["high"]
    single = compare_pairs(pairs[:1], draws=100, permutations=50)
    assert single == {**compare(*pairs[0], draws=100, permutations=50), "pairs": 1}
    back = compare_pairs([(b, a) for a, b in pairs], draws=200)["metrics"]["dice_lesion"]
    assert [back["low"], back["high"]] == pytest.approx([-one["high"], -one["low"]])
    assert back["p"] == pytest.approx(one["p"])


def test_the_interval_over_pairs_includes_the_chance_of_training():
    """Where no way of training is better, p is below .05 in about 5 % of experiments; over patients only, far more often."""
    with_seeds, patients_only = [], []
    for seed in range(60):
        pairs = _pairs(seed, groups=10)
        one = compare_pairs(pairs, draws=80)["metrics"]["dice_lesion"]
        assert (one["p"] < 0.05) == (not one["low"] <= 0 <= one["high"])
        with_seeds.append(one["p"] < 0.05)
        if seed < 30:
            mean = [
                pairs[0][0].assign(dice_lesion=sum(pair[side]["dice_lesion"] for pair in pairs) / 3)
                for side in (0, 1)
            ]
            patients_only.append(_dice_p(*mean) < 0.05)
    assert np.mean(with_seeds) <= 0.08
    assert np.mean(patients_only) > 0.2, "the pairs are few, and their chance does not cancel"
    found = [compare_pairs(_pairs(seed, difference=0.4), draws=80) for seed in range(10)]
    assert np.mean([answer(of, "AB").startswith("A is better") for of in found]) > 0.8


def test_two_pairs_of_runs_give_the_difference_without_interval_and_p():
    found = compare_pairs(_pairs(1, pairs=2), draws=100)
    one = found["metrics"]["dice_lesion"]
    assert one["difference"] is not None and one["low"] is one["high"] is one["p"] is None
    assert "only 2 pairs of runs" in one["no_interval"]
    assert "only 2 pairs of runs, 3 are needed" in format_comparison(found, ["a", "b"])


def _write_experiment(out, name, pairs, side, seeds):
    members = tuple(Member(f"{name}-seed{seed}", seed, None) for seed in seeds)
    begin_experiment(Experiment(out / name, members))
    (out / name / "eval-busi-all").mkdir()
    for member, pair in zip(members, pairs, strict=True):
        _write_run(out, member.run, pair[side])


def test_experiments_are_compared_by_seed_on_all_that_both_were_scored_on(tmp_path):
    pairs = _pairs(3)
    _write_experiment(tmp_path, "with", pairs, 0, (1, 2, 3))
    # in another order, and with a seed that the other lacks
    _write_experiment(tmp_path, "without", [pairs[2], pairs[0], pairs[1], pairs[0]], 1, (3, 1, 2, 4))
    result = invoke("compare", "with", "without", "--out", tmp_path)
    assert result.exit_code == 0, result.stderr
    assert "3 pairs of runs" in result.stdout.splitlines()[0]
    assert max(map(len, result.stdout.splitlines())) <= 80
    folder = tmp_path / "compare-with-without"
    (found,) = read_comparison(folder)["comparisons"]
    assert [(pair["seed"], pair["a"], pair["b"]) for pair in found["pairs_of_runs"]] == [
        (seed, f"with-seed{seed}", f"without-seed{seed}") for seed in (1, 2, 3)
    ]
    assert found["metrics"] == compare_pairs(pairs)["metrics"]
    table = pd.read_csv(folder / "table.csv").set_index("key")
    assert table.loc["dice_lesion", "low"] == pytest.approx(found["metrics"]["dice_lesion"]["low"])
    assert r"\toprule" in (folder / "table.tex").read_text()
    _write_experiment(tmp_path, "others", pairs[:2], 1, (5, 6))
    strangers = invoke("compare", "with", "others", "--out", tmp_path)
    assert (strangers.exit_code, "no seed and fold in common: seed 1" in strangers.stderr) == (1, True)


def test_a_comparison_replaces_only_a_comparison(runs):
    assert invoke("compare", "one", "two", "--out", runs).exit_code == 0
    assert invoke("compare", "one", "two", "--out", runs).exit_code == 0
    (runs / "compare-one-two" / "config.yaml").write_text("", encoding="utf-8")
    refused = invoke("compare", "one", "two", "--out", runs)
    assert (refused.exit_code, "something else" in refused.stderr) == (1, True)
    (runs / "compare-one-two" / "config.yaml").unlink()
    path = runs / "compare-one-two" / "comparison.json"
    path.write_text(path.read_text().replace('"a": "one"', '"a": "on"'))
    refused = invoke("compare", "one", "two", "--out", runs)
    assert (refused.exit_code, "comparison of on and two" in refused.stderr) == (1, True)
