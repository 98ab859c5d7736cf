"""The runs that a run was started from (``model.init``), so that what they were trained on is never taken for unseen.

The header of the weights lists the ancestors, nearest first; the manifests of those that were trained on other rows lie
in the run folder. So an ancestor may be deleted, and its own ancestors count as well.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bus_smp.classes import CLASSES
from bus_smp.errors import CheckpointError, TrainingError
from bus_smp.model.checkpoint import weights_sha256
from bus_smp.runs import layout
from bus_smp.runs.find import find_run
from bus_smp.runs.run import Run
from bus_smp.system.files import write_text
from bus_smp.text import counted

if TYPE_CHECKING:
    from bus_smp.config import Settings
    from bus_smp.data.manifest import Manifest

# Without these weights do not fit.
_NETWORK = ("encoder_name", "deep_supervision", "attention", "bottleneck", "decoder_norm")


@dataclass(frozen=True)
class Ancestry:
    """What a run starts from.

    Attributes:
        entries: for each ancestor ``run``, ``epoch``, ``weights_sha256``, ``datasets``, ``manifest_sha256``.
        manifests: what they were trained on, as far as it is not the run's own manifest.
        weights: the file to start from; None where the run has a state of its own, or starts without ancestors.
    """

    entries: Sequence[Mapping[str, Any]] = ()
    manifests: Sequence["Manifest"] = field(default=(), repr=False)
    weights: Path | None = None

    def write(self, folder: Path) -> None:
        """Record the ancestors in a new run folder."""
        from bus_smp.data.manifest import write_manifest

        if not self.entries:
            return
        for manifest in self.manifests:
            write_manifest(manifest, folder / layout.ancestor_manifest(manifest.sha256))
        write_text(folder / layout.ANCESTORS, json.dumps(list(self.entries), indent=2) + "\n")


def trace_ancestry(run: Run, settings: "Settings", manifest: "Manifest") -> Ancestry:
    """What ``run`` starts from, for a new run and for one that is continued.

    Args:
        manifest: that the run is trained on.

    Raises:
        CheckpointError: if there is no run ``model.init``, its network is another one, or it has changed since the
            start.
        TrainingError: if an image of the test or validation split was used to train an ancestor.
    """
    if settings.model.init is None:
        return Ancestry()
    recorded = run.ancestors()
    # a finished run needs no state
    if run.state_path.is_file() or run.is_finished():
        return Ancestry(recorded)
    parent = find_run(settings.model.init, run.folder.parent)
    header = parent.header()
    _check_network(parent, header, settings)
    entries = [_entry(parent, header), *header.get("ancestors", [])]
    if recorded and recorded != entries:
        raise CheckpointError(
            f"{parent.best_path} has changed since {run.folder} was started from it",
            hint="start another run from the weights of now: --run NAME",
        )
    manifests = parent.manifests()
    _refuse_seen(parent, manifests, manifest)
    others = [one for one in manifests if one.sha256 != manifest.sha256]
    return Ancestry(entries, others, parent.best_path)


def _entry(run: Run, header: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "run": run.name,
        "epoch": header["epoch"],
        "weights_sha256": weights_sha256(run.best_path),
        "datasets": header["datasets"],
        "manifest_sha256": header["manifest_sha256"],
    }


def _check_network(parent: Run, header: Mapping[str, Any], settings: "Settings") -> None:
    theirs, ours = header["model"], settings.model.model_dump()
    classes = theirs.get("num_classes", len(CLASSES))
    if classes != len(CLASSES):
        raise CheckpointError(
            f"{parent.folder} has {classes} classes, a training has {len(CLASSES)}: its weights cannot be the start",
            hint="start from another run, or without --start-from",
        )
    differing = [key for key in _NETWORK if theirs.get(key) != ours[key]]
    if differing:
        listed = ", ".join(f"model.{key} {theirs.get(key)}, here {ours[key]}" for key in differing)
        same = " ".join(f"--set model.{key}={_as_yaml(theirs.get(key))}" for key in differing)
        raise CheckpointError(
            f"{parent.folder} is another network ({listed})", hint=f"train the same one: {same}"
        )


def _as_yaml(value: object) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _refuse_seen(parent: Run, ancestors: Sequence["Manifest"], manifest: "Manifest") -> None:
    """An image that chose the weights or the epoch of an ancestor cannot test this run, nor choose its epoch."""
    for split in ("test", "val"):
        rows = manifest.used(split)
        for ancestor in ancestors:
            seen = ancestor.find_learnt(rows, split)
            if seen.any():
                count = int(seen.sum())
                raise TrainingError(
                    f"{counted(count, 'image')} of the {split} split {'was' if count == 1 else 'were'} used to train "
                    f"{parent.name} or a run it was started from "
                    f"({rows.loc[seen, 'dataset'].iloc[0]} {rows.loc[seen, 'image_id'].iloc[0]}): results would be too good",
                    hint="train on the manifest with the same splits, or on images that it has not seen",
                )
