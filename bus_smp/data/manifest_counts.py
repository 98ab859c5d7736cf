"""The counts of a manifest, read without pandas and without its checks, so that ``bus-smp info`` answers at once."""

import csv
import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

from bus_smp.errors import ManifestError
from bus_smp.system.files import open_regular


def count_manifest(path: Path) -> dict[str, Any]:
    """Counts of images, groups, labels by split and exclusions, and the sidecar (``about``); JSON values.

    Raises:
        ManifestError: if the file is missing or is not a manifest.
    """
    try:
        with io.TextIOWrapper(open_regular(path), encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
        sidecar = path.with_suffix(".json")
        about = json.loads(sidecar.read_text(encoding="utf-8")) if sidecar.is_file() else {}
        if not rows:
            raise ValueError("it has no rows")
        used = [row for row in rows if row["excluded"] == ""]
        splits = {
            split: dict(Counter(row["label"] for row in used if row["split"] == split))
            for split in ("train", "val", "test")
        }
        return {
            "images": len(rows),
            "used": len(used),
            "groups": len({row["group_id"] for row in used}),
            "patients_known": all(row["patient_known"].casefold() == "true" for row in used),
            "splits": splits,
            "excluded": dict(Counter(row["excluded"] for row in rows if row["excluded"])),
            "about": about,
        }
    except FileNotFoundError:
        raise ManifestError(f"{path}: no such file", hint="bus-smp make-manifest") from None
    except (KeyError, TypeError, ValueError, OSError, RecursionError, csv.Error) as error:
        raise ManifestError(
            f"{path}: is not a manifest of bus-smp ({error})", hint="bus-smp make-manifest"
        ) from None
