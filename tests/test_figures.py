"""Figures are read back as pixels, and tested for what a reader sees in them."""

import contextlib
import math
import os
import re
import subprocess
import sys
import zlib

import cv2
import matplotlib
import numpy as np
import pandas as pd
import pytest

from bus_smp.classes import BENIGN, MALIGNANT
from bus_smp.data.images import read_image
from bus_smp.figures.confusion_matrix import write_confusion_matrix
from bus_smp.figures.overlay import overlay
from bus_smp.figures.qualitative import Case, write_qualitative
from bus_smp.figures.roc import write_roc_curves
from bus_smp.figures.style import COLUMN, DPI, GREEN, PAGE, SKY, VERMILLION
from bus_smp.figures.training_curves import write_dice_curve, write_loss_curves

LONG = (
    "a_very_long_run_name_without_spaces_2031-01-01T00-00-00_" * 4
    + " WWWWWW" * 12
    + " $x_1$ \u8d85\u97f3\u6ce2"
)


def disc(index, shape=(120, 160), centre=(80, 60), radius=35):
    return cv2.circle(np.zeros(shape, np.uint8), centre, radius, index, -1)


def grey(shape=(120, 160), value=90):
    return np.full((*shape, 3), value, np.uint8)


def metrics(epochs=6, heads=True):
    falling = np.exp(-np.arange(epochs) / 4)
    table = {"epoch": np.arange(1, epochs + 1), "lr": 1e-4 * falling, "train_loss": 0.2 + falling}
    if heads:
        names = ("main", "aux_2", "aux_4", "aux_8")
        table |= {f"train_loss_{name}": 0.2 + 0.1 * i + falling for i, name in enumerate(names)}
    rising = [("lesion", 0.7), ("benign", 0.5), ("malignant", 0.6)]
    return pd.DataFrame(table | {f"val_dice_{name}": top * (1 - falling) for name, top in rising})


def roc(auc=0.8):
    rate = np.linspace(0, 1, 50)
    return rate, rate ** (1 / auc - 1)


def cases(n=1, name="scan"):
    truth = disc(BENIGN.index)
    return [Case(name, "benign", grey(), truth, np.roll(truth, 9, 1), 0.8, "best")] * n


def color_count(picture, color):
    rgb = [int(color[i : i + 2], 16) for i in (1, 3, 5)] if isinstance(color, str) else color
    return int((picture == np.array(rgb)).all(axis=2).sum())


def plot_area(picture):
    """The part of a curve figure left of its legend."""
    return picture[:, : int(picture.shape[1] * 0.715)]


def assert_nothing_is_cut_off(picture):
    edges = picture[:2], picture[-2:], picture[:, :2], picture[:, -2:]
    assert all((edge == 255).all() for edge in edges)


# Overlay


@pytest.mark.parametrize("lesion", [BENIGN, MALIGNANT])
def test_overlay_colours_the_mask_in_its_class_colour_and_touches_nothing_else(lesion):
    image, mask = grey(), disc(lesion.index)
    picture = overlay(image, mask)
    assert picture.dtype == np.uint8
    assert (picture[mask == 0] == 90).all()
    assert (picture[mask > 0] != 90).any(axis=1).all()
    channel = lesion.rgb.index(255)
    others = [c for c in range(3) if c != channel]
    assert (picture[mask > 0][:, [channel]] > picture[mask > 0][:, others]).all()
    assert (image == 90).all(), "the input was changed"


def test_overlay_distinguishes_benign_from_malignant_without_colour():
    inside = disc(1, radius=28) > 0  # without the outline
    fills = [len(np.unique(overlay(grey(), disc(c.index))[inside], axis=0)) for c in (BENIGN, MALIGNANT)]
    assert fills == [1, 2], "benign is even, malignant is hatched"


def test_overlay_draws_the_truth_as_a_broken_white_line_on_its_own_border():
    blank = np.zeros((120, 160), np.uint8)
    shares = []
    for lesion in (BENIGN, MALIGNANT):
        truth = disc(lesion.index)
        white = (overlay(grey(), blank, truth) == 255).all(axis=2)
        border = cv2.morphologyEx(truth, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 0
        assert white.any()
        assert not (white & ~cv2.dilate(border.astype(np.uint8), np.ones((5, 5))).astype(bool)).any()
        points = cv2.findContours(truth, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)[0][0].reshape(-1, 2)
        on = white[points[:, 1], points[:, 0]]
        shares.append(np.count_nonzero(on != np.roll(on, 1)) // 2)
    dashes, dots = shares
    assert dashes >= 4
    assert dots >= 2 * dashes, "there are more dots than dashes"


def test_overlay_shows_a_lesion_of_one_pixel_and_one_that_fills_the_image():
    one = np.zeros((50, 60), np.uint8)
    one[20, 30] = MALIGNANT.index
    assert tuple(overlay(grey((50, 60)), one)[20, 30]) == MALIGNANT.rgb
    assert (overlay(grey((50, 60)), one * 0, one)[20, 30] == 255).all()
    full = np.ones((50, 60), np.uint8)
    assert (overlay(grey((50, 60)), full, full) != 90).any(axis=2).all()


def test_overlay_refuses_a_mask_of_another_size_and_what_is_not_rgb():
    with pytest.raises(ValueError, match="image is"):
        overlay(grey(), np.zeros((10, 10), np.uint8))
    with pytest.raises(ValueError, match="image is"):
        overlay(grey(), disc(1), np.zeros((160, 120), np.uint8))
    for image in (grey()[..., 0], grey() / 255):
        with pytest.raises(ValueError, match="not uint8 RGB"):
            overlay(image, disc(1))


# Curves


@pytest.mark.parametrize("epochs", [1, 2, 300])
@pytest.mark.parametrize("write", [write_loss_curves, write_dice_curve])
def test_curves_of_any_number_of_epochs_fit_their_figure(write, epochs, tmp_path):
    write(metrics(epochs), tmp_path / "curve.png")
    picture = read_image(tmp_path / "curve.png")
    assert picture.shape[1] == PAGE * DPI
    assert_nothing_is_cut_off(picture)
    assert color_count(plot_area(picture), VERMILLION) > 10, "the curve, or its only point, is drawn"


def test_an_undefined_dice_is_a_gap_and_not_a_zero(tmp_path):
    table = metrics(60)
    table["val_dice_benign"] = np.nan
    write_dice_curve(table, tmp_path / "none.png")
    assert color_count(plot_area(read_image(tmp_path / "none.png")), GREEN) == 0
    table.loc[31, "val_dice_benign"] = 0.4  # between undefined ones
    write_dice_curve(table, tmp_path / "one.png")
    assert 5 < color_count(plot_area(read_image(tmp_path / "one.png")), GREEN) < 450


def test_curves_survive_a_table_that_never_had_a_lesion_dice_or_a_finite_loss(tmp_path):
    table = metrics(3).assign(val_dice_lesion=np.nan, train_loss=[math.inf, math.nan, 0.0], lr=0.0)
    write_loss_curves(table, tmp_path / "loss.png")
    write_dice_curve(table, tmp_path / "dice.png")
    assert_nothing_is_cut_off(read_image(tmp_path / "loss.png"))


def test_the_best_epoch_is_marked_at_the_first_highest_lesion_dice(tmp_path):
    def marked_column(dice):
        write_dice_curve(metrics(5).assign(val_dice_lesion=dice), tmp_path / "dice.png")
        top = plot_area(read_image(tmp_path / "dice.png"))[
            int(0.4 * DPI) : int(0.65 * DPI), int(0.75 * DPI) :
        ]  # above every curve
        return int(np.argmax((top < 200).all(axis=2).sum(axis=0)))

    columns = [marked_column(np.where(np.arange(5) == best, 0.5, 0.1)) for best in (0, 2, 4)]
    steps = np.diff(columns)
    assert (steps > 100).all()
    assert np.ptp(steps) <= 2
    assert marked_column([0.1, 0.5, 0.2, 0.5, 0.5]) == pytest.approx(sum(columns[:2]) / 2, abs=2)


def test_a_model_without_deep_supervision_has_one_loss_curve(tmp_path):
    write_loss_curves(metrics(heads=False), tmp_path / "loss.png")
    assert color_count(read_image(tmp_path / "loss.png"), VERMILLION) == 0


# Evaluation


def test_an_undefined_roc_curve_is_named_but_not_drawn(tmp_path):
    nothing = np.array([]), np.array([])
    curves = {"lesion": roc(), "benign": roc(0.7), "malignant": nothing}
    write_roc_curves(curves, tmp_path / "roc.png", "title")
    picture = read_image(tmp_path / "roc.png")
    axes, legend = picture[: -int(DPI * 1.0)], picture[-int(DPI * 1.0) :]
    assert color_count(axes, VERMILLION) == 0
    assert color_count(legend, VERMILLION) > 50
    assert color_count(axes, GREEN) > 200


def test_a_confusion_matrix_without_any_lesion_pixel_is_drawn(tmp_path):
    images, pixels = np.zeros((3, 3), int), np.zeros((3, 3), int)
    write_confusion_matrix(images, pixels, tmp_path / "empty.png", "nothing")
    picture = read_image(tmp_path / "empty.png")
    empty_row = color_count(picture, (0xEE,) * 3) / 6
    assert empty_row > 10_000
    pixels[0, 0] = 10**10
    images[0] = 999_999, 1, 0
    write_confusion_matrix(images, pixels, tmp_path / "rows.png", "normal images only")
    picture = read_image(tmp_path / "rows.png")
    assert color_count(picture, (0xEE,) * 3) == pytest.approx(4 * empty_row, rel=0.02)
    assert_nothing_is_cut_off(picture)


def test_the_colour_of_a_cell_is_its_share_of_the_row(tmp_path):
    """1 of 1 and 1000 of 1000 look the same; the scale bar is left out by looking at the cells' height."""
    pictures = []
    for n in (1, 1000):
        write_confusion_matrix(np.eye(3, dtype=int) * n, np.eye(3, dtype=int), tmp_path / "cm.png", "t")
        pictures.append(read_image(tmp_path / "cm.png"))
    yellow = tuple(round(255 * v) for v in matplotlib.colormaps["cividis"](1.0)[:3])
    counts = [color_count(picture, yellow) for picture in pictures]
    assert counts[0] > 100_000
    assert counts[0] == pytest.approx(counts[1], rel=0.02)


def test_long_titles_and_names_are_wrapped_and_never_cut_off(tmp_path):
    write_roc_curves({LONG: roc(), "b": roc(0.7)}, tmp_path / "roc.png", LONG)
    write_confusion_matrix(np.eye(3, dtype=int), np.eye(3, dtype=int), tmp_path / "cm.png", LONG)
    write_qualitative(cases(2, LONG), tmp_path / "qual.png", LONG)
    for path, width in (("roc", COLUMN), ("cm", PAGE), ("qual", PAGE)):
        picture = read_image(tmp_path / f"{path}.png")
        assert picture.shape[1] == width * DPI
        assert_nothing_is_cut_off(picture)


def test_qualitative_keeps_each_image_at_its_own_aspect_ratio(tmp_path):
    tall = np.zeros((200, 100), np.uint8)
    case = Case("tall", "normal", np.full((200, 100, 3), (12, 34, 56), np.uint8), tall, tall, math.nan)
    write_qualitative([case], tmp_path / "qual.png", "title")
    picture = read_image(tmp_path / "qual.png")
    rows, columns = np.nonzero((picture == (12, 34, 56)).all(axis=2))
    height = rows.max() - rows.min() + 1
    width = np.count_nonzero(np.bincount(columns)) / 2  # the image, and the image with outlines
    assert height / width == pytest.approx(2, rel=0.02)


def drawn(truth, prediction, path):
    """The two panels of a case as they are drawn: the plain image, and the image with outlines."""
    write_qualitative([Case("x", "benign", grey(), truth, prediction, 0.1, "worst")], path, "title")
    picture = read_image(path)[: -int(0.35 * DPI)]  # without the legend
    panels = np.flatnonzero(
        np.bincount(np.nonzero((picture == 90).all(axis=2))[1], minlength=picture.shape[1]) > 50
    )
    left, right = np.split(panels, [np.argmax(np.diff(panels)) + 1])
    return picture[:, left[0] : left[-1] + 1], picture[:, right[0] : right[-1] + 1]


def test_qualitative_draws_outlines_only_and_the_plain_image_next_to_them(tmp_path):
    truth = disc(BENIGN.index)
    plain, outlined = drawn(truth, np.roll(truth, 30, 1), tmp_path / "qual.png")
    assert color_count(plain, (90, 90, 90)) > 0.9 * plain.shape[0] * plain.shape[1] * 0.8
    assert color_count(plain, SKY) == 0
    assert color_count(outlined, SKY) > 200
    lines = color_count(plain, (90, 90, 90)) - color_count(outlined, (90, 90, 90))
    assert 0 < lines < 0.1 * color_count(plain, (90, 90, 90)), "the tissue inside the outlines is as it was"


def test_truth_benign_and_malignant_are_distinguished_without_colour(tmp_path):
    """By the share of the outline that is drawn and how often it is broken: solid, dotted, dashed."""
    blank, pieces = np.zeros((120, 160), np.uint8), []
    for number, (truth, prediction) in enumerate(
        ((blank, disc(BENIGN.index)), (disc(BENIGN.index), blank), (blank, disc(MALIGNANT.index)))
    ):
        _, outlined = drawn(truth, prediction, tmp_path / f"{number}.png")
        bright = (outlined.max(axis=2) > 170).astype(np.uint8)
        rows = np.flatnonzero((outlined == 90).all(axis=2).sum(axis=1) > 50)
        pieces.append(cv2.connectedComponents(bright[rows[0] : rows[-1] + 1])[0] - 1)
    solid, dashed, dotted = pieces
    assert solid == 1 and dashed > 10 and dotted > 2 * dashed


def test_outlines_lie_on_the_page_of_the_pdf_too(tmp_path):
    write_qualitative(cases(), tmp_path / "qual.png", "title")
    streams = re.findall(rb"stream\r?\n(.*?)\r?\nendstream", (tmp_path / "qual.pdf").read_bytes(), re.DOTALL)
    texts = []
    for stream in streams:
        with contextlib.suppress(zlib.error):
            texts.append(zlib.decompress(stream))
    points = re.findall(
        rb"^([\d.]+) ([\d.]+) l$", max(texts, key=lambda text: text.count(b" l\n")), re.MULTILINE
    )
    assert len(points) > 100
    assert max(float(x) for x, _ in points) <= 72 * PAGE


def test_a_lesion_of_one_pixel_has_an_outline(tmp_path):
    one = np.zeros((120, 160), np.uint8)
    one[20, 30] = BENIGN.index
    assert color_count(drawn(one * 0, one, tmp_path / "one.png")[1], SKY) > 20


def test_no_cases_still_make_a_picture(tmp_path):
    write_qualitative([], tmp_path / "qual.png", "title")
    assert read_image(tmp_path / "qual.png").size


# All of them


def test_the_same_figure_has_the_same_bytes_whatever_the_user_set_in_matplotlib(tmp_path):
    def write_all(folder):
        write_loss_curves(metrics(), folder / "loss.png")
        write_dice_curve(metrics(), folder / "dice.png")
        write_roc_curves({"lesion": roc()}, folder / "roc.png", "title")
        write_confusion_matrix(np.eye(3), np.eye(3), folder / "cm.png", "title")
        write_qualitative(cases(), folder / "qual.png", "title")
        return {path.name: path.read_bytes() for path in folder.iterdir()}

    first = write_all(tmp_path / "a")
    with matplotlib.rc_context({"font.size": 20, "axes.facecolor": "red", "savefig.bbox": "tight"}):
        assert write_all(tmp_path / "b") == first
    assert len(first) == 5 + 3, "the curves of a training have no PDF; no temporary file is left"


def test_figures_need_no_torch_no_pyplot_no_display_and_no_home():
    code = (
        "import sys; from bus_smp.figures import overlay; assert 'matplotlib' not in sys.modules;"
        "from bus_smp.figures import training_curves, qualitative;"
        "bad = {'torch', 'matplotlib.pyplot'} & set(sys.modules); assert not bad, bad"
    )
    kept = {k: v for k, v in os.environ.items() if k not in ("DISPLAY", "MPLBACKEND", "MPLCONFIGDIR")}
    env = {k: v for k, v in kept.items() if not k.startswith("XDG_")} | {"HOME": os.devnull}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
