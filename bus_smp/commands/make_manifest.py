"""bus-smp make-manifest."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

_NAMED_SPLITS = ("official", "test")


@click.command(
    "make-manifest",
    epilog="Prints the audit; the manifest's sidecar NAME.json names every image of every finding. "
    "The same input gives the same bytes. A manifest made again is replaced, and the change is printed.",
)
@click.option(
    "--dataset",
    "datasets",
    multiple=True,
    metavar="NAME",
    help="bus-uclm, busi, udiat, bus-bra or breast; repeatable.  [default: all that are found]",
)
@click.option(
    "--root",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="The data set's folder or any folder above it.  [default: data]",
)
@click.option(
    "--csv",
    "table",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="A table of your own instead: image, masks, label, patient_id, and if you like split, mask_format, "
    "dataset, image_id, flags. Paths start from --root or the table's folder; several masks are joined by |. "
    "No mask_format: color if a pixel is not grey, index if values are 0, 1 and 2, else binary (0 and 255, or 0 and 1).",
)
@click.option(
    "--folder",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Draft that table instead: NAME.csv in the current folder, from images and masks in any layout.",
)
@click.option(
    "--name", metavar="NAME", help="Data set name for --csv and --folder.  [default: the file's or folder's]"
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default="data_manifests",
    show_default=True,
    metavar="DIR",
    help="Where NAME.csv and NAME.json go.",
)
@click.option(
    "--columns",
    metavar="NAME=YOURS,...",
    default="",
    help="What --csv calls its columns, e.g. image=Bild,masks=Maske; nothing after = where it has none.",
)
@click.option(
    "--labels",
    metavar="YOURS=LABEL,...",
    multiple=True,
    help="What --csv, or the folders of --folder, call normal, benign and malignant, e.g. gutartig=benign; repeatable.",
)
@click.option(
    "--split",
    metavar="A/B/C|official|test",
    help="Percent of images in train/val/test over whole groups; or the test patients that the authors published; or "
    "all for testing. It replaces a split that the table or the folders give.  [default: theirs, else 70/15/15]",
)
@click.option(
    "--test-patients",
    metavar="A,B,...",
    default="",
    help="These patients (and who shares pictures with them) are the test split.",
)
@click.option(
    "--folds", type=click.IntRange(min=2), metavar="K", help="Also number K cross-validation folds."
)
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=42, show_default=True)
@click.option(
    "--on-mismatch",
    type=click.Choice(["exclude", "resize", "error"]),
    default="exclude",
    show_default=True,
    help="Mask of another size than its image: leave the image out, stretch the mask to it, or stop.",
)
@click.option(
    "--duplicates",
    type=click.Choice(["keep", "group", "drop"]),
    help="drop: use the first of each set of copies. group: use all, but none whose copies have other labels. "
    "keep: use even those. All three keep copies in one split.  "
    "[default: group where patients are known, else drop]",
)
@click.option(
    "--exclude",
    metavar="FLAG,...",
    default="",
    help="Leave out images with these flags, e.g. doppler,combined,marks,duplicate.",
)
@click.option(
    "--mask-values",
    metavar="WORD,...",
    default="",
    help="How to read masks that the audit doubts. any: all that is not 0 is the lesion of the label (lesion "
    "numbers, unlisted colours). half: from half brightness on (soft edges, JPEG). alpha: the opaque pixels. filled: outlines and what they enclose. swapped: "
    "benign and malignant exchanged.",
)
@click.option("--invert-masks", is_flag=True, help="Invert the masks that the audit finds inverted.")
@click.option(
    "--mask-orientation",
    type=click.Choice(["stored", "shown"]),
    help="Pictures that their EXIF turns: masks fit the pixels as stored and are turned too, or fit what viewers show.",
)
@click.option(
    "--accept",
    metavar="CODE,...",
    default="",
    help="Masks that the audit doubts are right: inverted-mask, outline-mask, large-lesion, both-classes, same-mask, misplaced-mask.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of the tables.")
def command(
    datasets: tuple[str, ...],
    root: Path | None,
    table: Path | None,
    folder: Path | None,
    name: str | None,
    out: Path,
    columns: str,
    labels: tuple[str, ...],
    split: str | None,
    test_patients: str,
    folds: int | None,
    seed: int,
    on_mismatch: str,
    duplicates: str | None,
    exclude: str,
    mask_values: str,
    invert_masks: bool,
    mask_orientation: str | None,
    accept: str,
    as_json: bool,
) -> None:
    """Turn data sets as downloaded into audited, patient-level CSV manifests.

    Looks at every image and mask, finds what is broken, contradictory or there twice, and divides
    the rest so that no patient (and no copied picture) is in two splits. No image is changed, and
    none is dropped silently: each keeps its row, with the reason if it is not used.
    """
    if sum((table is not None, folder is not None, bool(datasets))) > 1:
        raise click.UsageError("--csv, --folder and --dataset exclude each other")
    if name is not None and table is None and folder is None:
        raise click.UsageError("--name belongs to --csv or --folder")
    if (columns and table is None) or (labels and table is None and folder is None):
        raise click.UsageError("--columns and --labels belong to --csv (--labels to --folder, too)")
    fractions = _fractions(split or "70/15/15")
    _refuse_untypable(out)
    if split in _NAMED_SPLITS and test_patients:
        raise click.UsageError(f"--split {split} and --test-patients exclude each other")

    words = {theirs.casefold(): ours for theirs, ours in _pairs(",".join(labels), "--labels").items()}
    if folder is not None:
        _draft(folder, name, words)
        return

    import json

    from bus_smp.commands.quoting import command_line, setting
    from bus_smp.data.audit import audit_known
    from bus_smp.data.audit_report import audit_text
    from bus_smp.data.exclusions import ACCEPTABLE
    from bus_smp.data.make_manifests import SplitPlan
    from bus_smp.data.manifest_folder import create_manifests
    from bus_smp.data.mask_doubts import MASK_VALUES, MaskAnswers
    from bus_smp.data.own_table import OPTIONAL, REQUIRED, Words, audit_own_table
    from bus_smp.data.rows import Policy
    from bus_smp.system.console import note, with_progress

    answers = MaskAnswers(
        _choices(mask_values, MASK_VALUES, "--mask-values"),
        invert_masks,
        mask_orientation or "",
        _choices(accept, ACCEPTABLE, "--accept"),
    )
    if table is not None:
        own = Words(_pairs(columns, "--columns", (*REQUIRED, *OPTIONAL)), words)
        folders = audit_own_table(table, root, name, out, with_progress, note, own, answers)
    else:
        folders = audit_known(datasets, root or Path("data"), out, with_progress, note, answers)
    policy = Policy(on_mismatch, duplicates, tuple(_words(exclude)))
    plan = SplitPlan(
        fractions or (0.70, 0.15, 0.15), split == "official", tuple(_words(test_patients)), folds or 0, seed,
        only_test=split == "test", replace_given=bool(split or test_patients),
    )  # fmt: skip
    written = create_manifests(folders, out, policy, plan, table, with_progress)

    if as_json:
        documents = [
            {"dataset": one.path.stem, "path": str(one.path), "change": one.change,
             "sha256": one.manifest.sha256, **one.manifest.about}
            for one in written
        ]  # fmt: skip
        click.echo(json.dumps({"manifests": documents}, indent=2))
        return
    for one in written:
        title = one.manifest.about["source"].get("title", one.path.stem)
        click.echo(f"{title} -> {one.path} ({one.change})\n{audit_text(one.manifest.about)}\n")
    first = written[0].path.stem
    elsewhere = out != Path("data_manifests")
    if not len(written[0].manifest.used("train")):
        place = ["--manifests", out] if elsewhere else []
        click.echo(f"Next: {command_line('crosseval', '--target', first, *place)}")
        return
    options = ["--data", first] if elsewhere or first != "bus-uclm" else []
    options += ["--set", setting("data.manifests", str(out))] if elsewhere else []
    click.echo(f"Next: {command_line('train', *options)}")


def _draft(folder: Path, name: str | None, labels: dict[str, str]) -> None:
    """Draft a table of the images in ``folder``, and say what was understood and what to type next."""
    from bus_smp.commands.quoting import command_line
    from bus_smp.data.draft_table import write_draft
    from bus_smp.data.own_table import dataset_name

    path = Path(f"{dataset_name(name or folder.resolve().name)}.csv")
    draft = write_draft(folder, path, labels)
    click.echo(f"{folder} -> {path}")
    for line in draft.lines:
        click.echo(f"  {line}")
    first = f"fill in label in {path}" if draft.lacks_labels else f"check {path}"
    click.echo(f"\nNext: {first}, then {command_line('make-manifest', '--csv', path, '--root', folder)}")


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _pairs(text: str, option: str, known: tuple[str, ...] = ()) -> dict[str, str]:
    """``A=B,C=D`` as a dict; ``known``: what may stand before =."""
    pairs = dict(word.partition("=")[::2] for word in _words(text))
    wrong = [key for key in pairs if (known and key not in known) or f"{key}=" not in text]
    if wrong:
        expected = f"use {', '.join(known)}, each with = and your name" if known else "use YOURS=LABEL"
        raise click.BadParameter(f"{', '.join(wrong)}: {expected}", param_hint=option)
    return {key.strip(): value.strip() for key, value in pairs.items()}


def _choices(text: str, allowed: Sequence[str], option: str) -> tuple[str, ...]:
    words = _words(text)
    if unknown := [word for word in words if word not in allowed]:
        raise click.BadParameter(f"{unknown[0]!r} is none of {', '.join(allowed)}", param_hint=option)
    return tuple(words)


def _fractions(text: str) -> tuple[float, float, float] | None:
    """Shares of train, val, test summing to 1; None for one of ``_NAMED_SPLITS``."""
    if text in _NAMED_SPLITS:
        return None
    try:
        parts = [float(part) for part in text.split("/")]
    except ValueError:
        parts = []
    if len(parts) != 3 or not all(0 < part < 100 for part in parts):
        raise click.BadParameter(
            f"{text!r}; use three shares above 0 such as 70/15/15, or official, or test", param_hint="--split"
        )
    if abs(sum(parts) - 1) > 1e-6 and abs(sum(parts) - 100) > 1e-6:
        raise click.BadParameter(f"{text!r} sums to {sum(parts):g}, not to 100", param_hint="--split")
    train, val, test = (part / sum(parts) for part in parts)
    return train, val, test


def _refuse_untypable(out: Path) -> None:
    """Refuse a folder whose name is not UTF-8: a setting could not name it later."""
    from bus_smp.errors import ManifestError

    try:
        str(out).encode("utf-8")
    except UnicodeEncodeError:
        raise ManifestError(
            f"{out}: the folder's name is not UTF-8", hint="choose another folder with --out"
        ) from None
