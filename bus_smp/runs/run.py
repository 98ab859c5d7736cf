"""One run on disk: what it is, how far it has come, and a lock for the process that writes it."""

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bus_smp.errors import CheckpointError, TrainingError
from bus_smp.model.checkpoint import check_trained_on, read_header
from bus_smp.runs import layout
from bus_smp.system.files import explained, file_sha256, remove_leftovers, replacing, write_text
from bus_smp.system.locks import hold_lock
from bus_smp.text import counted

if TYPE_CHECKING:
    import pandas as pd

    from bus_smp.config import Settings
    from bus_smp.data.manifest import Manifest


class Run:
    """The files of one run folder. Each file is complete at any moment.

    Creating a ``Run`` reads nothing, and the folder need not exist. pandas and the settings' parser are imported
    by the methods that need them, so that ``bus-smp info`` answers at once.
    """

    def __init__(self, folder: Path, weights: str = layout.BEST) -> None:
        self.folder = Path(folder)
        self._weights = weights

    @property
    def name(self) -> str:
        """Name of the run: its folder's name."""
        return self.folder.name

    @property
    def best_path(self) -> Path:
        """Weights of the best epoch so far, with everything needed to use them in the header."""
        return self.folder / self._weights

    @property
    def state_path(self) -> Path:
        """Everything needed to continue after the last finished epoch."""
        return self.folder / layout.STATE

    @property
    def settings_path(self) -> Path:
        """The settings the run was started with, as YAML."""
        return self.folder / layout.SETTINGS

    @property
    def manifest_path(self) -> Path:
        """The manifest the run was started with; its sidecar is next to it."""
        return self.folder / layout.MANIFEST

    @property
    def environment_path(self) -> Path:
        """Versions, hardware and precision of the last start, as JSON."""
        return self.folder / layout.ENVIRONMENT

    @property
    def metrics_path(self) -> Path:
        """One row per finished epoch."""
        return self.folder / layout.METRICS

    @property
    def loss_curves_path(self) -> Path:
        """Figure of the losses by epoch."""
        return self.folder / layout.LOSS_CURVES

    @property
    def dice_curve_path(self) -> Path:
        """Figure of the validation Dice by epoch."""
        return self.folder / layout.DICE_CURVE

    @property
    def exports_path(self) -> Path:
        """Folder of the run's network in other formats; each file has a record ``<stem>.json`` next to it."""
        return self.folder / layout.EXPORTS

    def exists(self) -> bool:
        """True once the folder holds a run, started or finished."""
        return self.settings_path.is_file()

    def has_weights(self) -> bool:
        """True once an epoch is finished."""
        return self.best_path.is_file()

    def is_finished(self) -> bool:
        """True once the last epoch is done and the best weights are calibrated.

        Raises:
            CheckpointError: if the weights are damaged.
        """
        return self.has_weights() and bool(self.header().get("calibration"))

    def describe_unfinished(self) -> str:
        """``unfinished, epoch 3 of 50`` of a run with weights; "" for a finished one.

        Raises:
            CheckpointError: if the weights are damaged.
        """
        header = self.header()
        if header.get("calibration"):
            return ""
        with contextlib.suppress(OSError, ValueError):
            done = len(self.metrics_path.read_text(encoding="utf-8").splitlines()) - 1
            return f"unfinished, epoch {done} of {header['settings']['train']['epochs']}"
        return f"unfinished, after epoch {header['epoch']}"

    def header(self) -> dict[str, Any]:
        """Header of the best weights; errors as ``read_header``."""
        return read_header(self.best_path)

    def settings(self) -> "Settings":
        """The settings the run was started with.

        Raises:
            ConfigError: if the file is missing or damaged.
        """
        from bus_smp.config import load_settings

        return load_settings(self.settings_path)

    def manifest(self, root: Path | Mapping[str, Path] | None = None, *, images: bool = False) -> "Manifest":
        """The manifest the run was started with. Arguments and errors as for ``read_manifest``.

        Raises:
            CheckpointError: if the weights next to it were trained on another one.
        """
        from bus_smp.data.manifest import read_manifest

        manifest = read_manifest(self.manifest_path, root, images=images)
        self.check_weights(manifest)
        return manifest

    def manifests(self, root: Path | Mapping[str, Path] | None = None) -> "list[Manifest]":
        """Everything that the weights have learnt from: the run's own manifest, then those of the runs it was started from.

        Raises:
            CheckpointError: as ``manifest``, or if the manifest of such a run is missing.
        """
        from bus_smp.data.manifest import read_manifest

        found = [self.manifest(root)]
        names = {one["manifest_sha256"]: one["run"] for one in reversed(self.ancestors())}
        for digest, name in names.items():
            if digest == found[0].sha256:
                continue
            path = self.folder / layout.ancestor_manifest(digest)
            if not path.is_file():
                raise CheckpointError(
                    f"{path}: is missing; it lists what {name} was trained on, which {self.name} was started from",
                    hint="copy the whole run folder, its files ancestor-*.csv and .json included",
                )
            found.append(read_manifest(path, root, images=False))
            if found[-1].sha256 != digest:
                raise CheckpointError(
                    f"{path}: {name} was not trained on these rows; the file was replaced",
                    hint="restore the file that belongs here",
                )
        return found

    def ancestors(self) -> list[dict[str, Any]]:
        """The runs it was started from, nearest first: entries of ``runs.ancestry.Ancestry``.

        Raises:
            CheckpointError: if the weights, or before the first epoch the list, are damaged.
        """
        if self.has_weights():
            return self.header().get("ancestors", [])
        path = self.folder / layout.ANCESTORS
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return []
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"{path}: cannot be read ({error})",
                hint="delete the run folder to start again, or use --run NAME",
            ) from None

    def metrics(self) -> "pd.DataFrame":
        """One row per finished epoch.

        Raises:
            FileNotFoundError: before the first.
            ValueError: if the file is damaged.
        """
        import pandas as pd

        table = pd.read_csv(self.metrics_path)
        if "epoch" not in table:
            raise ValueError("no column epoch")
        return table

    def evaluations(self) -> list[Path]:
        """The folders of the run's evaluations, sorted by name."""
        return layout.list_evaluations(self.folder)

    def check_weights(self, manifest: "Manifest") -> None:
        """Refuse weights that were trained on another manifest than the run's.

        Raises:
            CheckpointError: if so, or if the weights are damaged.
        """
        if self.has_weights():
            check_trained_on(self.best_path, self.header(), manifest)

    def check_unused(self) -> None:
        """Refuse a folder that holds something other than a run.

        Raises:
            TrainingError: naming what is in it.
        """
        found = [path.name for path in self.folder.glob("*") if not path.name.startswith(".")]
        # a start that was killed before it wrote the settings leaves these
        if {*found} - {path.name for path in self._start_paths()}:
            raise TrainingError(
                f"{self.folder} is not empty and not a run (it holds {', '.join(sorted(found)[:3])})",
                hint="choose another name with --run NAME",
            )

    def begin(self, settings: "Settings", manifest: "Manifest") -> None:
        """Write what the run is. The settings are written last, because they make the folder a run.

        Args:
            manifest: as read or combined, hence checked; or ``fold_manifest`` of such a one.
        """
        from bus_smp.data.manifest import write_manifest

        write_manifest(manifest, self.manifest_path)
        write_text(self.settings_path, settings.to_yaml())

    def check_same(self, settings: "Settings", manifest: "Manifest") -> "Manifest":
        """Refuse to continue this run with other settings or other data.

        Folds may have been numbered since, or images described in other words: only what a training or its splits
        depend on must be the same.

        Returns:
            The manifest to continue with: the run's own, with the images where ``manifest`` has them.

        Raises:
            TrainingError: showing every key that differs, or that the manifest changed.
            CheckpointError: if the weights are of another manifest.
        """
        from bus_smp.config import differing_keys

        changed = differing_keys(self.settings(), settings)
        if changed:
            lines = "".join(f"\n  {key}: {old!r} in the run, {new!r} now" for key, old, new in changed)
            raise TrainingError(
                f"{self.folder} was started with other settings:{lines}",
                hint="start another run with --run NAME, or continue this one with its own settings",
            )
        own = manifest
        # the same bytes were checked when ``manifest`` was read
        if not self.manifest_path.is_file() or file_sha256(self.manifest_path) != manifest.sha256:
            own = self.manifest()
            if changes := _find_changes(own, manifest):
                raise TrainingError(
                    f"the manifests of {', '.join(manifest.datasets)} changed since {self.folder} was started: {changes}",
                    hint="start another run with --run NAME",
                )
            own = own.at(manifest.roots)
        self.check_weights(own)
        return own

    def write_metrics(self, rows: list[dict[str, float]]) -> "pd.DataFrame":
        """Replace ``metrics.csv`` by one row per finished epoch; return it as a table."""
        import pandas as pd

        table = pd.DataFrame(rows)
        with replacing(self.metrics_path) as temporary:
            table.to_csv(temporary, index=False, lineterminator="\n", float_format="%.6g")
        return table

    def discard_start(self) -> None:
        """Remove what a start that failed has written; the folder holds no run then."""
        if not self.exists():
            for path in self._start_paths():
                path.unlink(missing_ok=True)

    def _start_paths(self) -> list[Path]:
        """What a start writes before the settings, which make the folder a run."""
        names = (layout.MANIFEST, layout.MANIFEST_SIDECAR, layout.ANCESTORS)
        return [*map(self.folder.joinpath, names), *self.folder.glob("ancestor-*")]

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for this process. The operating system releases the lock, also after a kill.

        Raises:
            TrainingError: if another process is training in the folder.
        """

        def refuse() -> None:
            raise TrainingError(
                f"another process is training in {self.folder}",
                hint="wait for it, stop it, or use --run NAME",
            )

        with contextlib.ExitStack() as stack:
            with explained(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
                stack.enter_context(hold_lock(self.folder / layout.LOCK, refuse))
            remove_leftovers(self.folder)
            yield


# Of each used image, what a training, its splits, and the search for what it has seen depend on.
_DECISIVE = ("patient_id", "group_id", "label", "split", "image", "masks", "mask_format", "sha256")


def _find_changes(before: "Manifest", now: "Manifest") -> str:
    """In what the used images of two manifests differ, for people; "" if in nothing that matters."""
    keys = ["dataset", "image_id"]
    old, new = (of.used().set_index(keys).sort_index() for of in (before, now))
    both = old.index.intersection(new.index)
    parts = [
        f"{counted(len(index), 'image')} {'is' if len(index) == 1 else 'are'} {word}"
        for index, word in ((new.index.difference(both), "new"), (old.index.difference(both), "gone"))
        if len(index)
    ]
    for column in _DECISIVE:
        if count := int((old.loc[both, column] != new.loc[both, column]).sum()):
            parts.append(f"{counted(count, 'image')} {'has' if count == 1 else 'have'} another {column}")
    return ", ".join(parts)
