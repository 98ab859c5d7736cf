"""Rows of small manifests, valid as they are."""

import pandas as pd

from bus_smp.data.manifest import COLUMNS


def row(image_id, patient, split, *, dataset="demo", **cells):
    """One valid row; ``cells`` breaks or changes it."""
    valid = {
        "dataset": dataset, "image_id": image_id, "patient_id": patient, "patient_known": True,
        "group_id": f"{dataset}:{patient}", "label": "benign", "split": split, "fold": "",
        "image": f"images/{image_id}.png", "masks": f"masks/{image_id}.png", "mask_format": "binary",
        "width": 40, "height": 30, "sha256": "", "phash": "", "flags": "", "excluded": "",
    }  # fmt: skip
    return valid | cells


def rows():
    return [
        row("a1", "007", "train"),
        row("a2", "007", "train", flags="doppler|marks"),
        row("b1", "NA", "val", label="normal", masks="", mask_format=""),
        row("c1", "1e5", "test", label="malignant", masks="masks/c1.png|masks/c1_1.png"),
        row(
            "d1",
            "null",
            "",
            excluded="unreadable: d1.png",
            width="",
            height="",
            label="",
            masks="",
            mask_format="",
        ),
    ]


def frame(changed=None, **cells):
    """The valid table, with the cells of row number ``changed`` replaced."""
    table = rows()
    if changed is not None:
        table[changed] = table[changed] | cells
    return pd.DataFrame(table, columns=list(COLUMNS))
