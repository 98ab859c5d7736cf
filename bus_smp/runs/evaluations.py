"""The files of an evaluation folder. Its tables and masks are all that was measured; everything else is made from them."""

import functools
import json
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd

from bus_smp import __version__
from bus_smp.errors import EvaluationError
from bus_smp.measures.baselines import BASELINES
from bus_smp.measures.lesions import COMPONENT_COLUMNS
from bus_smp.measures.pixel_roc import PixelHistograms
from bus_smp.measures.reliability import Reliability
from bus_smp.runs import layout
from bus_smp.statistics.score_table import table_frame, table_latex
from bus_smp.statistics.summary import NEEDED, TEXT_COLUMNS, read_per_image
from bus_smp.system.files import replacing, short_name, write_text
from bus_smp.text import harmless_table, restored_table

# Key of the model in a summary's ``summaries``; it is the first, before the baselines.
MODEL = "model"
COMPONENT_KEYS = ("dataset", "image_id", "group_id")

# Bytes of a mask's name; file systems take 255.
_LONGEST_NAME = 150


@dataclass(frozen=True)
class Tables:
    """What was measured on a set of images.

    Attributes:
        model: one row per image (``per_image.csv``).
        baselines: the same of each baseline, by its name (``baselines.csv``).
        components: one row per lesion that the model predicts (``components.csv``).
        pixel_roc: all pixels by probability and true class (``pixel_roc.csv``).
        reliability: all pixels of the network's grid by probability (``reliability.csv``).
    """

    model: pd.DataFrame
    baselines: dict[str, pd.DataFrame]
    components: pd.DataFrame
    pixel_roc: PixelHistograms
    reliability: Reliability

    @classmethod
    def joined(cls, parts: Sequence["Tables"]) -> "Tables":
        """The tables of several sets of images as those of one set. The caller checks that no image is in two of them.

        Raises:
            EvaluationError: if they do not hold the same baselines.
        """
        first, *rest = parts
        if any(list(part.baselines) != list(first.baselines) for part in rest):
            raise EvaluationError(
                "the evaluations hold different baselines",
                hint="evaluate again: bus-smp evaluate, or bus-smp crosseval --target NAME",
            )
        return cls(
            pd.concat([part.model for part in parts], ignore_index=True),
            {
                name: pd.concat([part.baselines[name] for part in parts], ignore_index=True)
                for name in first.baselines
            },
            pd.concat([part.components for part in parts], ignore_index=True),
            functools.reduce(operator.add, (part.pixel_roc for part in parts)),
            functools.reduce(operator.add, (part.reliability for part in parts)),
        )

    def write(self, folder: Path) -> None:
        """Write the five files; each replaces the one that is there only when it is complete."""
        write_table(self.model, folder / layout.PER_IMAGE)
        named = [table.assign(baseline=name) for name, table in self.baselines.items()]
        write_table(pd.concat(named, ignore_index=True), folder / layout.BASELINE_ROWS)
        write_table(self.components, folder / layout.COMPONENTS)
        write_table(self.pixel_roc.to_frame(), folder / layout.PIXEL_ROC)
        write_table(self.reliability.to_frame(), folder / layout.RELIABILITY)


def read_tables(folder: Path) -> Tables:
    """Read what ``Tables.write`` wrote.

    Raises:
        EvaluationError: if a table is missing or damaged, or the tables are not of the same images.
    """
    folder = Path(folder)
    model = read_per_image(folder / layout.PER_IMAGE)
    both = _read(folder / layout.BASELINE_ROWS, ("baseline", *NEEDED))
    # a baseline has no heads for the whole image
    columns = [column for column in model.columns if column in both]
    baselines = {
        name: both.loc[both["baseline"] == name, columns].reset_index(drop=True) for name in BASELINES
    }
    components = _read(folder / layout.COMPONENTS, (*COMPONENT_KEYS, *COMPONENT_COLUMNS))
    keys = ["dataset", "image_id"]
    images = pd.MultiIndex.from_frame(model[keys])
    for name, table in baselines.items():
        if not pd.MultiIndex.from_frame(table[keys]).equals(images):
            raise _of_other_images(folder, f"{layout.BASELINE_ROWS} ({name})")
    if not pd.MultiIndex.from_frame(components[keys]).isin(images).all():
        raise _of_other_images(folder, layout.COMPONENTS)
    return Tables(
        model,
        baselines,
        components,
        PixelHistograms.from_frame(_read(folder / layout.PIXEL_ROC)),
        Reliability.from_frame(_read(folder / layout.RELIABILITY)),
    )


def _of_other_images(folder: Path, name: str) -> EvaluationError:
    return EvaluationError(
        f"{folder}: {name} and {layout.PER_IMAGE} are not of the same images",
        hint="evaluate again: bus-smp evaluate, or bus-smp crosseval --target NAME",
    )


def _read(path: Path, columns: Sequence[str] = ()) -> pd.DataFrame:
    """A table whose names such as "007" or "NA" stay text, and whose empty numbers are NaN."""
    again = "evaluate again: bus-smp evaluate, or bus-smp crosseval --target NAME"
    try:
        table = pd.read_csv(
            path, dtype=dict.fromkeys((*TEXT_COLUMNS, "baseline"), str), na_values=[""], keep_default_na=False
        )
    except FileNotFoundError:
        raise EvaluationError(f"{path}: no such file", hint=again) from None
    except ValueError as error:
        raise EvaluationError(f"{path}: cannot be read as a table ({error})", hint=again) from None
    missing = [column for column in columns if column not in table]
    if missing:
        raise EvaluationError(f"{path}: lacks the columns {', '.join(missing)}", hint=again)
    text = table.columns.intersection(TEXT_COLUMNS)
    return restored_table(table.assign(**{column: table[column].fillna("") for column in text}))


def write_table(table: pd.DataFrame, path: Path) -> None:
    """Write a table as CSV, UTF-8 with LF, all or nothing. NaN becomes an empty cell; a spreadsheet runs no text as a formula."""
    with replacing(path) as temporary:
        harmless_table(table).to_csv(temporary, index=False, lineterminator="\n")


def write_paper_tables(
    folder: Path, columns: Mapping[str, Mapping[str, Any]], about: Mapping[str, Any]
) -> None:
    """Write ``table.csv`` (all numbers) and ``table.tex`` (booktabs) of an evaluation.

    Args:
        columns: name -> summary; the model first, then the baselines.
        about: ``run``, ``dataset`` and ``split``.
    """
    title = f"{about['run']} on {about['dataset']}, {about['split']}; bus_smp {__version__}"
    write_table(table_frame(columns), Path(folder) / layout.TABLE_CSV)
    write_text(Path(folder) / layout.TABLE_TEX, table_latex(columns, title))


def mask_path(folder: Path, row: Mapping[str, Any]) -> Path:
    """Path of the predicted mask of a row; any id becomes a file name that stays in the folder."""
    name = short_name(quote(row["image_id"], safe=" ()"), _LONGEST_NAME)
    return Path(folder) / layout.MASKS / row["dataset"] / f"{name}.png"


def read_summary(folder: Path) -> dict[str, Any]:
    """The summary of a finished evaluation.

    Raises:
        EvaluationError: if it is missing (the evaluation did not end) or damaged.
    """
    path = Path(folder) / layout.SUMMARY
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(summary, dict) or "summaries" not in summary:
            raise ValueError("no summaries")
    except FileNotFoundError:
        raise EvaluationError(
            f"{folder}: holds no finished evaluation",
            hint="bus-smp evaluate, or bus-smp crosseval --target NAME",
        ) from None
    except (OSError, ValueError) as error:
        raise EvaluationError(
            f"{path}: cannot be read as a summary ({error})",
            hint="evaluate again: bus-smp evaluate, or bus-smp crosseval --target NAME",
        ) from None
    return summary


def remove_summary(folder: Path) -> None:
    """Mark an evaluation as unfinished, before its tables are replaced: an old summary must not describe new tables."""
    (Path(folder) / layout.SUMMARY).unlink(missing_ok=True)


def write_summary(folder: Path, summary: Mapping[str, Any]) -> None:
    """Write ``summary.json``; the last file of an evaluation, because it means that the folder is complete."""
    write_text(Path(folder) / layout.SUMMARY, json.dumps(summary, indent=2, allow_nan=False) + "\n")


def write_data(folder: Path, about: Mapping[str, Any]) -> None:
    """Write ``data.json``, the description of the scored data."""
    write_text(Path(folder) / layout.DATA, json.dumps(about, indent=2, ensure_ascii=False) + "\n")
