"""The report shows every number and names what is missing; it loads nothing, and hostile names are harmless."""

import base64
import importlib.util
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import invoke
from PIL import Image

from bus_smp.config import differing_keys, load_settings
from bus_smp.data.manifest import read_manifest, write_manifest
from bus_smp.report.html import page_html
from bus_smp.report.markdown import code, escape, label, link, templates
from bus_smp.report.page import Report
from bus_smp.report.records import EvaluationRecord, RunRecord
from bus_smp.runs.comparisons import write_comparison
from bus_smp.runs.layout import comparison_folder
from bus_smp.statistics.compare import compare
from bus_smp.statistics.comparison_table import answer, comparison_rows
from bus_smp.statistics.score_table import format_estimate, table_rows
from bus_smp.statistics.summary import read_per_image

OWN, BUSI = "eval-bus-uclm-test", "eval-busi-all"
HOSTILE = (
    "<script>alert(1)<img src=x onerror=alert(2)>\"'&amp;`|*_x_*[a](javascript:x) $x_1$ \u8d85\u97f3\u6ce2"
)
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def _linked(run: Path, to: Path) -> Path:
    """A second folder of a run made of hard links; ``_rewrite`` changes only the copy."""
    shutil.copytree(
        run, to, ignore=shutil.ignore_patterns(".lock", "masks", "report.*"), copy_function=os.link
    )
    return to


def _rewrite(path: Path, text: str) -> None:
    path.unlink(missing_ok=True)
    path.write_text(text, encoding="utf-8")


def _change(path: Path, change) -> None:
    """Replace a JSON file by what ``change`` makes of it."""
    document = json.loads(path.read_text(encoding="utf-8"))
    change(document)
    _rewrite(path, json.dumps(document))


@pytest.fixture(scope="module")
def scored(manifests, trained, tmp_path_factory) -> Path:
    """A run folder, scored on its own test split and on the synthetic BUSI; do not change it."""
    out = tmp_path_factory.mktemp("report") / "outputs"
    shutil.copytree(trained, out / "first", ignore=shutil.ignore_patterns(".lock", "eval-*", "manifest.*"))
    write_manifest(read_manifest(trained / "manifest.csv"), out / "first" / "manifest.csv")
    common = ["--out", out, "--run", "first", "--legacy-metrics"]
    for arguments in (
        ["evaluate"],
        ["crosseval", "--manifests", manifests / "data_manifests", "--target", "busi"],
    ):
        result = invoke(*arguments, *common)
        assert result.exit_code == 0, result.stderr
    return out / "first"


def _report(run: Path, *arguments: object):
    """The page of a run, and what the command wrote to stderr."""
    result = invoke("report", run.name, "--out", run.parent, *arguments)
    assert result.exit_code == 0, result.stderr
    return Path(result.stdout.strip()).read_text(encoding="utf-8"), result.stderr


@pytest.fixture(scope="module")
def html(scored) -> str:
    """The page about that run."""
    return _report(scored)[0]


class _Page(HTMLParser):
    """A page as a browser takes it: its elements and its text."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def all(self, name: str) -> list[str | None]:
        """Every value of an attribute."""
        return [attributes[name] for _, attributes in self.elements if name in attributes]


def _assert_harmless(page: _Page) -> None:
    """Nothing runs, nothing is loaded, and links lead to the web or into the page."""
    assert not {"script", "iframe", "object", "embed", "link", "form", "base"} & {
        tag for tag, _ in page.elements
    }
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    assert all(re.match("data:image/(png|jpeg);base64,", source) for source in page.all("src"))
    assert all(re.match(r"#s[\d-]+$|https?://", target) for target in page.all("href"))
    assert not page.all("srcset")


# Content


def test_every_number_of_the_table_people_read_is_on_the_page_as_it_is_printed(html, scored):
    page = _Page(html)
    for name in (OWN, BUSI):
        summary = json.loads((scored / name / "summary.json").read_text(encoding="utf-8"))
        for heading, words, cells in table_rows(summary["summaries"]):
            assert heading in page.text
            assert " ".join([words, *cells]) in page.text
        for levels in summary["summaries"]["model"]["strata"].values():
            for level, of in levels.items():
                shown = f"{of['images']} ({of['groups']}) {format_estimate(of['dice_lesion'])}"
                assert re.search(
                    rf"{level}( \([\d.]+ to [\d.]+ % of the image\))? {re.escape(shown)}", page.text
                )
        for warning in summary["warnings"]:
            assert warning in page.text
        for of in summary["legacy"].values():
            assert f"{of['dice_benign']:.3f} {of['dice_malignant']:.3f} {of['dice_mean']:.3f}" in page.text


def test_every_figure_of_the_folders_is_in_the_page_with_a_description(html, scored):
    page = _Page(html)
    images = [attributes for tag, attributes in page.elements if tag == "img"]
    figures = [*scored.glob("eval-*/*.png"), *scored.glob("*.png")]
    assert len(images) == len(figures) == 24
    assert all(len(attributes["alt"]) > 20 for attributes in images)


def test_the_headings_make_an_outline_and_the_contents_lead_to_them(html):
    page = _Page(html)
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h[1-6]", tag)]
    assert levels.count(1) == 1
    assert all(deeper <= level + 1 for level, deeper in zip(levels, levels[1:], strict=False))
    ids = page.all("id")
    assert len(ids) == len(set(ids))
    links = [target[1:] for target in page.all("href") if target.startswith("#")]
    assert len(links) > 15
    assert set(links) <= set(ids)
    order = [
        "The short answer", "Warnings", "Results on bus-uclm", "Results on busi", "How it was made",
        "Course of the training", "Data card", "Model card: first", "CLAIM checklist: first",
    ]  # fmt: skip
    places = [re.search(rf'<h2 id="[^"]*">{re.escape(title)}', html).start() for title in order]
    assert places == sorted(places)


def test_the_checklist_has_its_44_items_in_order_each_with_a_state(html):
    page = _Page(html)
    start = page.texts.index("CLAIM 2024")
    cells = [text for text in page.texts[start:] if text.strip()]
    items = {
        int(text.split(".")[0]): after
        for text, after in zip(cells, cells[1:], strict=False)
        if re.match(r"\d+\. [A-Z]", text)
    }
    assert list(items) == list(range(1, 45))
    assert set(items.values()) == {"answered", "in part", "for the authors"}


def test_the_data_card_counts_the_images_of_the_manifest_and_names_source_and_licence(html, scored):
    page = _Page(html)
    manifest = read_manifest(scored / "manifest.csv", images=False)
    used = manifest.used()
    assert f"images {len(manifest.frame)}, of which {len(used)} are used" in page.text
    for split in ("train", "val", "test"):
        rows = used[used["split"] == split]
        counts = [(rows["label"] == label).sum() for label in ("normal", "benign", "malignant")]
        assert " ".join(map(str, [split, len(rows), *counts, rows["group_id"].nunique()])) in page.text
    for source in (
        manifest.about["source"],
        json.loads((scored / BUSI / "data.json").read_text())["about"]["source"],
    ):
        assert source["cite"] in page.text
        assert source["licence"] in page.text
    assert json.loads((scored / BUSI / "data.json").read_text())["sha256"] in page.text


def test_the_command_on_the_page_trains_the_same_run(html, scored):
    page = _Page(html)
    line = next(text for text in page.texts if "bus-smp train" in text and "--set" in text)
    words = shlex.split(next(one for one in line.splitlines() if one.startswith("bus-smp train")))
    overrides = [words[place + 1] for place, word in enumerate(words) if word == "--set"]
    shown, own = load_settings(None, overrides), load_settings(scored / "config.yaml")
    ((key, value, _),) = differing_keys(shown, own)
    # of an absolute path only the last part is shown
    assert (key, value) == ("data.manifests", "FOLDER/data_manifests")


def test_several_runs_get_one_page(scored):
    other = _linked(scored, scored.parent / "second")
    result = invoke("report", "first", "second", "first", "--out", scored.parent)
    assert result.exit_code == 0, result.stderr
    assert Path(result.stdout.strip()) == scored.parent / "report.html"
    page = _Page((scored.parent / "report.html").read_text(encoding="utf-8"))
    for title in ("first on busi", "second on busi", "Model card: first", "Model card: second"):
        assert title in page.text
    assert page.text.count("CLAIM checklist: ") == 2 * 2, "of each run once, in the contents and as heading"
    shutil.rmtree(other)


def test_the_same_folder_gives_the_same_page_and_no_path_of_this_machine_is_on_it(html, scored, tmp_path):
    assert _report(_linked(scored, tmp_path / "elsewhere" / "first"))[0] == html
    assert str(scored.parent.parent) not in html
    assert str(Path.home()) not in html


# The answer


def _estimate(mean, low=None, high=None, n=9, **more):
    text = "-" if mean is None else f"{mean:g}"
    return {"mean": mean, "low": low, "high": high, "n": n, "no_interval": "", "text": text, **more}


NOT_DEFINED = _estimate(None)


def _evaluation(dice, blob, external=True, **rates):
    def column(estimate, rates):
        known = dict.fromkeys(("miss_rate", "false_alarm_rate", "auc_malignant"), NOT_DEFINED) | rates
        calls = {f"image_{name}_malignant": NOT_DEFINED for name in ("sensitivity", "specificity")}
        counts = {"images": 9, "groups": 3, "by_label": {}}
        return {"metrics": {"dice_lesion": _estimate(*estimate)}, "rates": calls | known, "counts": counts}

    columns = {
        "model": column(dice, rates), "all-background": column((0.0, None, None), {}),
        "largest-dark-blob": column(blob, {}),
    }  # fmt: skip
    summary = {"dataset": "x", "split": "all", "external": external, "warnings": []}
    return EvaluationRecord(Path("x"), summary, columns, [], {}, None, None)


def _answer(evaluation):
    run = RunRecord("r", Path("r"), [], None, None, None, None, None, [evaluation], [])
    lines = Report([run]).markdown("summary", full_name="x").splitlines()
    return next(line for line in lines if line[0:2] == "- ")


@pytest.mark.parametrize(
    ("dice", "blob", "words"),
    [
        ((0.6, 0.5, 0.7), (0.2, 0.1, 0.3), "Outlines clearly better than marking the largest dark blob;"),
        ((0.6, 0.5, 0.7), (0.4, 0.3, 0.55), "better than marking the largest dark blob, but the intervals overlap;"),
        ((0.6, None, None), (0.2, 0.1, 0.3), "without an interval to exclude chance"),
        ((0.2, 0.1, 0.3), (0.2, 0.1, 0.3), "Outlines no better than marking the largest dark blob"),
        ((0.1, 0.0, 0.2), (None, None, None), "better than marking nothing, but the intervals overlap"),
        ((None, None, None), (None, None, None), "No image shows a lesion;"),
    ],
)  # fmt: skip
def test_the_short_answer_states_no_more_than_the_intervals_allow(dice, blob, words):
    answer = _answer(_evaluation(dice, blob))
    assert words in answer
    assert ("clearly" in answer) == ("clearly" in words)


@pytest.mark.parametrize(
    ("rates", "words", "never"),
    [
        ({"auc_malignant": _estimate(0.43, 0.3, 0.6)}, "malignancy below chance.", "better than chance"),
        ({"auc_malignant": _estimate(0.6, 0.45, 0.7)}, "malignancy: chance is not excluded.", "better than chance"),
        ({"auc_malignant": _estimate(0.8, sd=0.1)}, "malignancy above chance in the mean of the runs.", "better than chance"),
        ({"auc_malignant": _estimate(1.0)}, "malignancy without an interval to exclude chance.", "better than chance"),
        ({"auc_malignant": _estimate(0.8, 0.7, 0.9)}, "malignancy better than chance.", "below"),
        ({}, "malignancy not tested.", "chance"),
        (
            {"miss_rate": _estimate(0.0, n=40), "false_alarm_rate": _estimate(1.0, n=61)},
            "marks every normal image; malignancy not tested.** Lesion found in 40 of 40 images with a lesion (100 %). "
            "False alarm on 61 of 61 normal images (100 %).",
            "most",
        ),
        (
            {"miss_rate": _estimate(0.25, 0.1, 0.999, n=40), "false_alarm_rate": _estimate(40 / 61, 0.5, 0.75, n=61)},
            "marks most normal images; malignancy not tested.** Lesion found in 30 of 40 images with a lesion "
            "(75 %, <1 to 90 %). False alarm on 40 of 61 normal images (66 %, 50 to 75 %).",
            "every",
        ),
        ({"miss_rate": _estimate(0.25, n=3, sd=0.1)}, "found in 75 % of images with a lesion (mean of 3 runs).", " of 3 images"),
        ({}, "no normal image to test false alarms on", "False alarm on"),
        ({"miss_rate": _estimate(0.0, n=1)}, "Lesion found in 1 of 1 image with a lesion (100 %).", "1 images"),
    ],
)  # fmt: skip
def test_the_short_answer_gives_counts_first_and_calls_nothing_below_chance_better(rates, words, never):
    answer = _answer(_evaluation((0.6, 0.5, 0.7), (0.2, 0.1, 0.3), **rates)).replace("\\", "")
    assert words in answer
    assert never not in answer


def test_counts_of_the_short_answer_are_those_of_the_table(html, scored):
    page = _Page(html)
    for name in (OWN, BUSI):
        table = read_per_image(scored / name / "per_image.csv")
        lesions, normals = table[table["label"] != "normal"], table[table["label"] == "normal"]
        found, alarms = (lesions["dice_lesion"] > 0).sum(), (normals["predicted_label"] != "normal").sum()
        assert f"Lesion found in {found} of {len(lesions)} images with a lesion" in page.text
        assert f"False alarm on {alarms} of {len(normals)} normal images" in page.text


def test_the_answer_comes_before_everything_else_and_the_contents_are_folded_away(html):
    page = _Page(html)
    assert ("details", {}) in page.elements, "closed"
    tags = [tag for tag, _ in page.elements]
    assert tags.index("details") < tags.index("nav") < tags.index("h2") < tags.index("table")


# For a clinic


def test_the_pages_for_a_clinic_hold_verdicts_counts_and_one_figure_on_two_pages(scored, tmp_path):
    html, _ = _report(scored, "--for", "clinic")
    assert (scored / "report-clinic.html").is_file()
    page = _Page(html)
    _assert_harmless(page)
    assert [attributes["alt"][:4] for tag, attributes in page.elements if tag == "img"] == ["Best"]
    assert len(page.text) < 8000 and "bus-smp train" not in page.text
    table = read_per_image(scored / BUSI / "per_image.csv")
    lesions = table[table["label"] != "normal"]
    assert f"{(lesions['dice_lesion'] > 0).sum()} of {len(lesions)} (" in page.text
    called = lesions[lesions["label"] == "malignant"]["called_malignant"]
    if called.notna().any():
        assert f"{int(called.sum())} of {len(called)} (" in page.text
    if CHROMIUM:
        printed = tmp_path / "clinic.pdf"
        _chromium(tmp_path / "profile", scored / "report-clinic.html", f"--print-to-pdf={printed}")
        assert len(re.findall(rb"/Type\s*/Page[^s]", printed.read_bytes())) <= 2


def test_the_pages_for_a_clinic_are_not_for_a_repository(scored):
    result = invoke("report", "first", "--out", scored.parent, "--for", "clinic", "--markdown")
    assert result.exit_code == 2 and "patients" in result.stderr


# Two runs


def test_two_runs_are_compared_on_their_page_unless_the_comparison_is_older_than_they_are(scored, tmp_path):
    out = tmp_path / "outputs"
    runs = [_linked(scored, out / name) for name in ("first", "second")]
    # Without figures a page is made in a moment.
    for figure in out.rglob("*.png"):
        figure.unlink()
    assert "made by: bus-smp compare first second" in invoke("report", "first", "second", "--out", out).stderr
    table = read_per_image(scored / BUSI / "per_image.csv")
    worse = table.assign(dice_lesion=table["dice_lesion"] / 2)
    found = compare(worse, table, draws=200, permutations=200)
    one = {"target": "busi", "split": "all", "patient_known": False, "pairs": [], **found}
    folder = comparison_folder(out, "second", "first")
    folder.mkdir()
    write_comparison(folder, {"a": "second", "b": "first", "comparisons": [one]})

    page = _Page(_report_of_two(out))
    assert "second against first" in page.text
    sentence = answer(one, ["second", "first"])
    assert sentence in page.text
    for row in comparison_rows(one):
        assert " ".join(row) in page.text
    assert "no patient ids" in page.text

    summary = runs[0] / BUSI / "summary.json"
    _rewrite(summary, summary.read_text(encoding="utf-8"))
    os.utime(summary, (2**32, 2**32))
    result = invoke("report", "first", "second", "--out", out)
    assert "older than the evaluations; made by: bus-smp compare first second" in result.stderr
    assert "second against first" not in (out / "report.html").read_text(encoding="utf-8")


def _report_of_two(out):
    result = invoke("report", "first", "second", "--out", out)
    assert result.exit_code == 0, result.stderr
    assert "bus-smp compare" not in result.stderr
    return (out / "report.html").read_text(encoding="utf-8")


# Pictures


def test_pictures_of_tissue_become_jpeg_and_figures_of_lines_small_png(tmp_path):
    random = np.random.default_rng(0)
    tissue, lines = random.integers(0, 256, (1800, 2100, 3), np.uint8), np.full((900, 1050, 3), 255, np.uint8)
    lines[100:110] = 0, 114, 178
    for name, picture in (("tissue", tissue), ("lines", lines)):
        Image.fromarray(picture).save(tmp_path / f"{name}.png", dpi=(300, 300))
    text = "# x\n\n## y\n\n" + "\n\n".join(f"![a](images/{name}.png)\\\n*b*" for name in ("tissue", "lines"))
    html = page_html(text, "x", {f"{name}.png": tmp_path / f"{name}.png" for name in ("tissue", "lines")})
    kinds = re.findall(r"data:image/(\w+);base64,([^\"]+)\" style=\"width: (\d+)px", html)
    assert [(kind, width) for kind, _, width in kinds] == [("jpeg", "896"), ("png", "448")], (
        "as wide as on paper, and a third"
    )
    shown = [Image.open(io.BytesIO(base64.b64decode(data))) for _, data, _ in kinds]
    assert shown[0].width < 1000 and shown[0].width / shown[0].height == pytest.approx(2100 / 1800, rel=0.01)
    assert any(
        abs(np.array(pixel) - (0, 114, 178)).max() < 6 for _, pixel in shown[1].convert("RGB").getcolors()
    )


# Several runs of one experiment


def test_an_experiment_is_shown_with_mean_sd_and_each_run(scored, manifests):
    from bus_smp.evaluation.pooling import write_members

    out = scored.parent
    members = {f"twice-seed{seed}": _linked(scored, out / f"twice-seed{seed}") for seed in (1, 2)}
    summaries = {name: json.loads((run / BUSI / "summary.json").read_text()) for name, run in members.items()}
    summaries["twice-seed2"]["summaries"]["model"]["metrics"]["dice_lesion"]["mean"] = 0.75
    folder = out / "twice" / BUSI
    folder.mkdir(parents=True)
    about = {"run": "twice", "dataset": "busi", "split": "all", "external": True}
    written = write_members(
        folder, summaries, about, read_manifest(manifests / "data_manifests" / "busi.csv")
    )
    plan = {"members": [{"run": name, "seed": seed, "fold": None} for seed, name in enumerate(members, 1)]}
    _rewrite(out / "twice" / "experiment.json", json.dumps(plan))

    page = _Page(_report(out / "twice")[0])
    dice = written["members"]["metrics"]["dice_lesion"]
    assert "mean of 2 runs" in page.text
    assert f"{dice['mean']:.3f} [sd {dice['sd']:.3f}] n=2" in page.text
    for name, summary in summaries.items():
        model = summary["summaries"]["model"]
        shown = format_estimate(model["metrics"]["dice_lesion"])
        assert f"{name} {model['counts']['images']} {shown}" in page.text
    assert "--seeds 1,2" in page.text
    for run in (*members.values(), out / "twice"):
        shutil.rmtree(run)


# Hostile names


def _without_code(markdown: str) -> str:
    """Markdown without its code, in which no character has a meaning."""
    lines = [line for line in markdown.splitlines() if not line.startswith("    ")]
    return re.sub(r"(?<![\\`])(`+)(?!`).*?(?<!`)\1(?!`)", "", "\n".join(lines))


def test_hostile_names_of_runs_images_and_data_sets_are_shown_as_text(scored, tmp_path):
    name = HOSTILE.replace("/", "")
    run = _linked(scored, tmp_path / name)
    table = pd.read_csv(run / BUSI / "per_image.csv", dtype=str, keep_default_na=False)
    table["image_id"] = [f"{HOSTILE}{'w' * 300}{number}" for number in range(len(table))]
    table["flags"] = HOSTILE
    (run / BUSI / "per_image.csv").unlink()
    table.to_csv(run / BUSI / "per_image.csv", index=False)
    _change(run / BUSI / "summary.json", lambda of: of.update(dataset=HOSTILE, warnings=[HOSTILE]))
    about = {
        "cite": HOSTILE,
        "licence": HOSTILE,
        "url": "javascript:alert(1)",
        "name": HOSTILE,
        "title": HOSTILE,
    }
    _change(run / BUSI / "data.json", lambda of: of["about"].update(source=about))
    _change(run / "environment.json", lambda of: of.update(device=HOSTILE))

    html, _ = _report(run)
    page = _Page(html)
    _assert_harmless(page)
    assert page.text.count(HOSTILE) > 20
    assert f"{name} is one run" in page.text
    result = invoke("report", run.name, "--out", run.parent, "--markdown")
    assert result.exit_code == 0, result.stderr
    text = _without_code((run / "report.md").read_text(encoding="utf-8"))
    assert not re.search(r"(?<!\\)<", text)


PLACES = """\
# {{ text }}

{{ text }}

    {{ text|verbatim }}

> - {{ text }}

- {{ text }}

{{ text|code }} {{ text|link }}

**{{ text }}**

{{ [text, text]|head }}
{{ text|group(2) }}
{{ [text, 1]|row }}

## {{ text }}

![{{ text|label }}](images/x.png)\\
*{{ text }}*
"""


@pytest.mark.parametrize(
    "text",
    [
        HOSTILE,
        "# x",
        "- x",
        "1. x",
        "2.",
        "+",
        "-",
        "---",
        "=====",
        "x #",
        "a | b \\| c \\",
        "    x",
        "![a]",
        "[a]: b",
        "``` x",
    ],
)
def test_a_value_is_text_in_every_place(text, tmp_path):
    pixel = tmp_path / "x.png"
    Image.new("L", (1, 1)).save(pixel)
    page = _Page(page_html(templates({"text": text}).from_string(PLACES).render(), text, {"x.png": pixel}))
    _assert_harmless(page)
    shown = " ".join(text.split())
    assert page.text.count(shown) >= 14
    (alt,) = (attributes["alt"] for tag, attributes in page.elements if tag == "img")
    assert " ".join(alt.split()) == shown
    assert [tag for tag, _ in page.elements if tag in ("h1", "h2", "ul", "pre", "hr", "ol", "table", "td", "code", "img", "a")] == [
        "h1", "pre", "code", "ul", "ul", "code", "table", "td", "ol", "a", "h2", "img"
    ]  # fmt: skip


def test_control_characters_and_halves_of_characters_reach_no_page():
    for write in (escape, label, code):
        assert write("a\x00b\nc\u2028d\ud800e") in ("a b c d e", "`a b c d e`")
    assert "\x1b" not in link("https://x.org/\x1b")


# Missing pieces


FILES = {
    "config.yaml": "bus-smp train --run first",
    "manifest.csv": "bus-smp train --run first",
    "environment.json": "bus-smp train --run first",
    "metrics.csv": "bus-smp train --run first",
    "best.safetensors": "bus-smp train --run first",
    "dice_curve.png": "bus-smp train --run first",
    f"{OWN}/per_image.csv": "bus-smp evaluate --run first",
    f"{OWN}/calibration.png": "bus-smp evaluate --run first",
    f"{BUSI}/data.json": "bus-smp crosseval --run first --target busi",
}


@pytest.mark.parametrize("files", [FILES, {f"{BUSI}/summary.json": "bus-smp crosseval --run first"}])
@pytest.mark.parametrize("damaged", [False, True])
def test_what_is_missing_or_damaged_is_named_with_the_command_that_makes_it(files, damaged, scored, tmp_path):
    run = _linked(scored, tmp_path / "first")
    for name in files:
        (run / name).unlink()
        if damaged:
            _rewrite(run / name, "[\x00")
    html, stderr = _report(run)
    _assert_harmless(_Page(html))
    section = html.rpartition(">What is missing</h")[2].partition("<h2")[0]
    on_page = [_Page(item).text for item in section.split("<li>")[1:]]
    for sentences in (on_page, stderr.splitlines()):
        for name, command in files.items():
            part = name.removesuffix("/summary.json").rpartition("/")[2]
            assert any(part in sentence and command in sentence for sentence in sentences), name
        assert not any(str(tmp_path) in sentence for sentence in sentences if "Note: " not in sentence)
    for figure in ("data:image/jpeg", "data:image/png", "Dice lesion"):
        assert figure in html


def test_a_summary_of_another_version_is_reported_as_such(scored, tmp_path):
    run = _linked(scored, tmp_path / "first")
    _change(run / BUSI / "summary.json", lambda of: of["summaries"]["model"].pop("rates"))
    html, stderr = _report(run)
    assert f"{BUSI}/summary.json is damaged or of another version" in stderr
    assert "Results on busi" not in html


def test_a_run_without_an_evaluation_gets_the_command_that_makes_one(scored, tmp_path):
    run = _linked(scored, tmp_path / "first")
    for name in (OWN, BUSI):
        shutil.rmtree(run / name)
    result = invoke("report", "first", "--out", tmp_path)
    assert result.exit_code == 1
    assert "bus-smp evaluate --run first" in result.stderr
    assert "no trained run second" in invoke("report", "second", "--out", tmp_path).stderr
    assert "bus-smp train" in invoke("report", "--out", tmp_path / "empty").stderr


def test_without_a_name_the_newest_run_is_taken_and_named(scored, tmp_path):
    for name in ("new", "old"):
        _linked(scored, tmp_path / name)
        best = tmp_path / name / "best.safetensors"
        best.unlink()
        shutil.copyfile(scored / "best.safetensors", best)
    os.utime(tmp_path / "old" / "best.safetensors", (1, 1))
    result = invoke("report", "--out", tmp_path)
    assert result.exit_code == 0, result.stderr
    assert Path(result.stdout.strip()) == tmp_path / "new" / "report.html"
    assert "the newest" in result.stderr


# Markdown


def test_markdown_is_a_page_of_headlines_and_one_of_everything_but_pictures_of_patients(scored, tmp_path):
    page, full = tmp_path / "docs" / "results.md", tmp_path / "docs" / "results-full.md"
    _report(scored, "--markdown", "--to", page)
    headlines, text = page.read_text(encoding="utf-8"), full.read_text(encoding="utf-8")
    assert len(headlines.splitlines()) <= 120
    for title in (
        "## The short answer",
        "## Warnings",
        "## What this does not show",
        "## How it was made",
        "](results-full.md)",
    ):
        assert title in headlines
    for name in (OWN, BUSI):
        summary = json.loads((scored / name / "summary.json").read_text(encoding="utf-8"))
        for _, words, cells in table_rows(summary["summaries"]):
            assert f"| {' | '.join([words, *cells])} |" in text.replace("\\", "")
    shown = re.findall(r"\]\(images/([^)]+)\)", text)
    assert sorted(shown) == sorted(path.name for path in (page.parent / "images").iterdir())
    assert "first-busi-all-roc_curves.png" in shown
    assert not any("qualitative" in name or "failures" in name for name in shown)
    assert str(scored.parent.parent) not in text + headlines

    again = tmp_path / "again" / "results.md"
    _report(scored, "--markdown", "--to", again)
    assert again.read_bytes() == page.read_bytes()
    assert (again.parent / full.name).read_bytes() == full.read_bytes()


# Start-up, PDF, browser


def test_a_report_loads_no_torch(scored):
    code = (
        "import sys\nfrom bus_smp.cli import main\n"
        "main(sys.argv[1:])\nassert not {'torch', 'matplotlib.pyplot'} & set(sys.modules)"
    )
    arguments = ["report", "first", "--out", str(scored.parent)]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_markdown_and_pdf_are_one_or_the_other(scored):
    assert invoke("report", "first", "--out", scored.parent, "--markdown", "--pdf").exit_code == 2


def test_a_pdf_is_written_or_the_error_names_what_to_install(scored, tmp_path):
    result = invoke("report", "first", "--out", scored.parent, "--pdf", "--to", tmp_path / "r.pdf")
    if importlib.util.find_spec("weasyprint") is None:
        assert result.exit_code == 1
        assert "pip install 'bus_smp[pdf]'" in result.stderr
    elif result.exit_code == 0:
        assert (tmp_path / "r.pdf").read_bytes().startswith(b"%PDF-")
        again = invoke("report", "first", "--out", scored.parent, "--pdf", "--to", tmp_path / "r.pdf")
        assert again.exit_code == 0, again.stderr
    else:
        assert "Pango" in result.stderr


def _chromium(profile: Path, page: Path, *options: str) -> subprocess.CompletedProcess:
    plain = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    profile.mkdir(exist_ok=True)
    return subprocess.run(
        [CHROMIUM, *plain, f"--user-data-dir={profile}", *options, page.as_uri()],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "HOME": str(profile)},
    )


_MEASURED = """<!doctype html><meta charset="utf-8"><body style="margin:0">
<iframe src="{page}" style="width:360px;height:700px;border:0"></iframe><p id="found"></p>
<script>
document.querySelector("iframe").onload = event => {{
  const page = event.target.contentDocument, root = page.documentElement;
  const images = [...page.images];
  document.getElementById("found").textContent = JSON.stringify({{
    room: event.target.clientWidth, width: Math.max(root.scrollWidth, page.body.scrollWidth),
    images: images.length, broken: images.filter(one => !one.complete || !one.naturalWidth).length,
  }});
}};
</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine (Debian: apt install chromium)")
def test_in_a_browser_nothing_fails_and_a_phone_need_not_scroll_sideways(scored, tmp_path):
    run = _linked(scored, tmp_path / "first")
    long_names = pd.read_csv(run / BUSI / "per_image.csv", dtype=str, keep_default_na=False)
    long_names["image_id"] = [f"{'w' * 300}{number}" for number in range(len(long_names))]
    (run / BUSI / "per_image.csv").unlink()
    long_names.to_csv(run / BUSI / "per_image.csv", index=False)
    _report(run)
    page = run / "report.html"

    opened = _chromium(tmp_path / "profile", page, "--enable-logging=stderr", "--dump-dom")
    assert opened.returncode == 0, opened.stderr
    assert "CLAIM checklist: first" in opened.stdout
    assert "CONSOLE" not in opened.stderr

    frame = tmp_path / "frame.html"
    frame.write_text(_MEASURED.format(page=page.as_uri()), encoding="utf-8")
    measured = _chromium(
        tmp_path / "profile",
        frame,
        "--allow-file-access-from-files",
        "--virtual-time-budget=20000",
        "--dump-dom",
    )
    found = json.loads(re.search(r'id="found">(\{.*?\})', measured.stdout).group(1))
    assert found["width"] <= found["room"] == 360
    assert found["images"] == 24
    assert found["broken"] == 0


# What is replaced


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"my notes\n", []),
        (b"<!doctype html><p>mine", []),
        (b"# Mine\n", ["--markdown"]),
        (b"%PDF-1.7\n%%EOF\n", ["--pdf"]),
        ("best.safetensors", ["--pdf"]),
        (None, []),
    ],
    ids=["notes", "another page", "another Markdown", "another PDF", "weights", "a pipe"],
)
def test_a_report_replaces_nothing_but_a_report(scored, tmp_path, kind, content):
    target = tmp_path / "target"
    if content is None:
        os.mkfifo(target)
    else:
        content = (scored / content).read_bytes() if isinstance(content, str) else content
        target.write_bytes(content)
    result = invoke("report", "first", "--out", scored.parent, "--to", target, *kind)
    assert result.exit_code == 1 and "another file with --to" in result.stderr
    assert target.is_fifo() if content is None else target.read_bytes() == content
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("kind", [[], ["--markdown"]], ids=["html", "markdown"])
def test_a_report_replaces_an_earlier_one_or_an_empty_file(scored, tmp_path, kind):
    target = tmp_path / "target"
    target.touch()  # as mktemp makes it
    _report(scored, "--to", target, *kind)
    first = target.read_bytes()
    _report(scored, "--to", target, *kind)
    assert target.read_bytes() == first


def test_a_page_in_markdown_replaces_no_image_and_no_second_page_of_the_user(scored, tmp_path):
    page, images = tmp_path / "docs" / "page.md", tmp_path / "docs" / "images"
    _report(scored, "--to", page, "--markdown")
    own = sorted(images.iterdir())[-1]
    shutil.rmtree(page.parent)
    images.mkdir(parents=True)
    own.write_bytes(b"mine")
    full = page.with_name("page-full.md")
    full.write_bytes(b"mine")
    for other in (full, own):
        result = invoke("report", "first", "--out", scored.parent, "--to", page, "--markdown")
        assert result.exit_code == 1 and f"{other}: " in result.stderr
        assert other.read_bytes() == b"mine" and not page.exists()
        full.unlink(missing_ok=True)
    assert list(images.iterdir()) == [own]
