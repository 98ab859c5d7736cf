"""bus-smp make-manifest."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from bus_smp.data.audit import Survey
    from bus_smp.data.manifest import Manifest


@click.command(
    "make-manifest",
    epilog="Prints the audit; the manifest's sidecar NAME.json names every image of every finding. "
    "The same input gives the same bytes. A manifest made again is replaced, and what changed is said.",
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
    "No mask_format: color if a pixel is not grey, else binary if values are 0 and 255 (or 0 and 1), else index.",
)
@click.option("--name", metavar="NAME", help="Data set name for --csv.  [default: the table's file name]")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default="data_manifests",
    show_default=True,
    metavar="DIR",
    help="Where NAME.csv and NAME.json go.",
)
@click.option(
    "--split",
    metavar="A/B/C|official",
    default="70/15/15",
    show_default=True,
    help="Percent of images in train/val/test over whole groups, or the test patients that the authors published.",
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
    "keep: use even those. Copies are never torn apart by a split, under any of the three.  "
    "[default: group where patients are known, else drop]",
)
@click.option(
    "--exclude",
    metavar="FLAG,...",
    default="",
    help="Leave out images with these flags, e.g. doppler,combined,marks,duplicate.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of the tables.")
def command(
    datasets: tuple[str, ...],
    root: Path | None,
    table: Path | None,
    name: str | None,
    out: Path,
    split: str,
    test_patients: str,
    folds: int | None,
    seed: int,
    on_mismatch: str,
    duplicates: str | None,
    exclude: str,
    as_json: bool,
) -> None:
    """Turn data sets as downloaded into audited, patient-level CSV manifests.

    Looks at every image and mask, finds what is broken, contradictory or there twice, and divides
    the rest so that no patient (and no copied picture) is in two splits. No image is changed, and
    none is dropped silently: each keeps its row, with the reason if it is not used.
    """
    if table is not None and datasets:
        raise click.UsageError("--csv and --dataset exclude each other")
    if name is not None and table is None:
        raise click.UsageError("--name belongs to --csv")
    fractions = _fractions(split)
    _refuse_untypable(out)
    if fractions is None and test_patients:
        raise click.UsageError("--split official and --test-patients exclude each other")

    import json

    from bus_smp.commands.quoting import setting, typed
    from bus_smp.data.audit_table import audit_text
    from bus_smp.data.exclusions import Policy
    from bus_smp.data.make_manifests import SplitPlan, known_images, make_manifests

    policy = Policy(on_mismatch, duplicates, tuple(_words(exclude)))
    plan = SplitPlan(
        fractions or (0.70, 0.15, 0.15), fractions is None, tuple(_words(test_patients)), folds or 0, seed
    )
    surveys = (
        _survey_table(table, root, name, out) if table is not None else _survey_known(datasets, root, out)
    )
    given = [survey.dataset for survey in surveys if survey.split_given]
    if given and (split != "70/15/15" or test_patients):
        raise click.UsageError(f"{table} has a split column: leave out --split and --test-patients")
    paths = {survey.dataset: out / f"{survey.dataset}.csv" for survey in surveys}
    for path in paths.values():
        _refuse_overwriting(path, table)

    known, notes = known_images(out, list(paths), _progress)
    manifests = make_manifests(surveys, policy, plan, known, notes, _progress)
    documents = []
    for manifest in manifests:
        dataset = manifest.datasets[0]
        path = paths[dataset]
        change = _write(manifest, path)
        if as_json:
            documents.append(
                {"dataset": dataset, "path": str(path), "change": change,
                 "sha256": manifest.sha256, **manifest.about}
            )  # fmt: skip
        else:
            title = manifest.about["source"].get("title", dataset)
            click.echo(f"{title} -> {path} ({change})\n{audit_text(manifest.about)}\n")
    if as_json:
        click.echo(json.dumps({"manifests": documents}, indent=2, ensure_ascii=False))
    else:
        first = manifests[0].datasets[0]
        usual = first == "bus-uclm" and out == Path("data_manifests")
        settings = [] if usual else [setting("data.train", [first])]
        settings += [] if out == Path("data_manifests") else [setting("data.manifests", str(out))]
        click.echo(f"Next: bus-smp train{''.join(f' --set {typed(one)}' for one in settings)}")


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _fractions(text: str) -> tuple[float, float, float] | None:
    """Shares of train, val, test summing to 1; None for ``official``."""
    if text == "official":
        return None
    try:
        parts = [float(part) for part in text.split("/")]
    except ValueError:
        parts = []
    if len(parts) != 3 or not all(0 < part < 100 for part in parts):
        raise click.BadParameter(
            f"{text!r}; use three shares above 0 such as 70/15/15, or official", param_hint="--split"
        )
    if abs(sum(parts) - 1) > 1e-6 and abs(sum(parts) - 100) > 1e-6:
        raise click.BadParameter(f"{text!r} sums to {sum(parts):g}, not to 100", param_hint="--split")
    return tuple(part / sum(parts) for part in parts)


def _progress(items, total: int, text: str):
    from tqdm import tqdm

    return tqdm(
        items, total=total, desc=text, unit="", disable=None, leave=False
    )  # None: off when no terminal


def _survey_known(datasets: tuple[str, ...], root: Path | None, out: Path) -> list[Survey]:
    from bus_smp.data.audit import survey
    from bus_smp.data.manifest import recorded_root
    from bus_smp.data.sources import find_known, find_root, load_source, packed, source_names
    from bus_smp.errors import DataError

    folder = root if root is not None else Path("data")
    if datasets:
        modules = {module.NAME: module for module in map(load_source, datasets)}
        found = [(module, find_root(module, folder)) for module in modules.values()]
    else:
        found = find_known(folder)
        if not found:
            unpack = packed(folder)
            raise DataError(
                f"{folder}: no known data set in it or below it ({', '.join(source_names())})",
                hint=f"unpack {unpack[0]}, then run the same command again"
                if unpack
                else "name the folder with --root DIR, or describe your own images in a table: --csv FILE",
            )
    for _, place in found:
        recorded_root(place, out)  # told now, not after all images were looked at
    surveys = []
    for module, place in found:
        twice = [str(other) for other_module, other in found if other_module is module]
        if len(twice) > 1:
            raise DataError(
                f"{folder}: {module.TITLE} is there {len(twice)} times: {', '.join(twice)}",
                hint=f'name the one to use: bus-smp make-manifest --dataset {module.NAME} --root "{twice[0]}"',
            )
        click.echo(f"{module.TITLE}: {place}", err=True)
        about = {
            "name": module.NAME, "title": module.TITLE, "cite": module.CITE,
            "licence": module.LICENCE, "url": module.URL,
        }  # fmt: skip
        surveys.append(survey(module.NAME, module.records(place), place, _progress, about=about))
    return surveys


def _survey_table(table: Path, root: Path | None, name: str | None, out: Path) -> list[Survey]:
    from bus_smp.data.audit import survey
    from bus_smp.data.manifest import recorded_root
    from bus_smp.data.own_table import read_handwritten

    owns = read_handwritten(table, root, name)
    recorded_root(owns[0].root, out)  # told now, not after all images were looked at
    return [
        survey(
            own.dataset, own.records, own.root, _progress,
            split_given=own.split_given, about={"name": own.dataset, "title": own.dataset},
        )
        for own in owns
    ]  # fmt: skip


def _cells(path: Path) -> dict[tuple, tuple]:
    """Rows of an existing manifest by (dataset, image id); {} where there is no file."""
    import csv

    if not path.is_file():
        return {}
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        return {
            (row.get("dataset"), row.get("image_id")): tuple(row.values()) for row in csv.DictReader(file)
        }


def _refuse_untypable(out: Path) -> None:
    """A setting is text: a training could not be told of this folder."""
    from bus_smp.errors import ManifestError

    try:
        str(out).encode("utf-8")
    except UnicodeEncodeError:
        raise ManifestError(
            f"{out}: the folder's name is not UTF-8", hint="choose another folder with --out"
        ) from None


def _refuse_overwriting(path: Path, table: Path | None) -> None:
    """A file of the manifest's or its sidecar's name that is neither is somebody's work."""
    from bus_smp.data.manifest import looks_like_manifest, looks_like_sidecar
    from bus_smp.errors import ManifestError

    hint = "choose another folder with --out, or another name with --name"
    if table is not None and path.resolve() == table.resolve():
        raise ManifestError(f"{path}: is your own table and would be overwritten", hint=hint)
    sidecar = path.with_suffix(".json")
    for file, known, kind in (
        (path, looks_like_manifest, "manifest"),
        (sidecar, looks_like_sidecar, "manifest's sidecar"),
    ):
        if os.path.lexists(file) and not known(file):
            raise ManifestError(
                f"{file}: is there and is no {kind}; it would be overwritten",
                hint=f"move it elsewhere, or {hint}"
                if table is not None
                else "move it elsewhere, or choose another folder with --out",
            )


def _write(manifest: Manifest, path: Path) -> str:
    """Write, and say in words how the file changed."""
    from bus_smp.data.manifest import write_manifest

    before = _cells(path)
    write_manifest(manifest, path)
    after = _cells(path)
    if not before:
        return "new"
    differing = sum(before.get(key) != after.get(key) for key in {**before, **after})
    return f"replaced: {differing} rows differ" if differing else "unchanged"
