"""The run folder: what a run is, how far it has come, and that one process alone writes it."""

import contextlib
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from bus_smp.config import Settings, differing_keys, load_settings
from bus_smp.data.manifest import Manifest, read_manifest, write_manifest
from bus_smp.errors import CheckpointError, TrainingError
from bus_smp.model.checkpoint import check_trained_on, read_header
from bus_smp.model.tensor_files import load_tensors
from bus_smp.runs.find import BEST, EXPERIMENT, find_folder
from bus_smp.system.engine import Engine
from bus_smp.system.environment import describe_environment
from bus_smp.system.files import explained, remove_leftovers, replacing, write_text

STATE_FORMAT = 2  # 2: says which run it is of


class Run:
    """Reads and writes the files of one run folder. Each file is whole at any moment."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)

    @property
    def best_path(self) -> Path:
        """Weights of the best epoch so far, with everything needed to use them in the header."""
        return self.folder / BEST

    @property
    def state_path(self) -> Path:
        """Everything needed to go on after the last finished epoch."""
        return self.folder / "last.ckpt"

    def exists(self) -> bool:
        """True once the folder holds a run, started or finished."""
        return (self.folder / "config.yaml").is_file()

    def is_finished(self) -> bool:
        """True once the last epoch is done; the best weights are calibrated after it."""
        return self.best_path.is_file() and bool(read_header(self.best_path).get("calibration"))

    def check_unused(self) -> None:
        """Refuse a folder that holds something, and no run.

        Raises:
            TrainingError: naming what is in it.
        """
        found = [path.name for path in self.folder.glob("*") if not path.name.startswith(".")]
        leftovers = {"manifest.csv", "manifest.json"}  # of a start that was killed before config.yaml
        if set(found) - leftovers:
            raise TrainingError(
                f"{self.folder} is not empty and not a run (it holds {', '.join(sorted(found)[:3])})",
                hint="choose another name with --run NAME",
            )

    def begin(self, settings: Settings, manifest: Manifest) -> None:
        """Write what the run is; ``config.yaml`` last, since it alone makes the folder a run."""
        write_manifest(manifest, self.folder / "manifest.csv")
        write_text(self.folder / "config.yaml", settings.to_yaml())

    def check_same(self, settings: Settings, manifest: Manifest) -> None:
        """Refuse to continue this run with other settings or other data.

        Raises:
            TrainingError: showing every key that differs, or that the manifest changed.
        """
        changed = differing_keys(self.settings(), settings)
        if changed:
            lines = "".join(f"\n  {key}: {old!r} in the run, {new!r} now" for key, old, new in changed)
            raise TrainingError(
                f"{self.folder} was started with other settings:{lines}",
                hint="start another run with --run NAME, or continue this one with its own settings",
            )
        if self.manifest().sha256 != manifest.sha256:
            raise TrainingError(
                f"the manifests of {', '.join(manifest.datasets)} changed since {self.folder} was started",
                hint="start another run with --run NAME",
            )

    def settings(self) -> Settings:
        """The settings the run was started with."""
        return load_settings(self.folder / "config.yaml")

    def manifest(self, root: Path | Mapping[str, Path] | None = None, *, images: bool = False) -> Manifest:
        """The manifest the run was started with; its groups are checked again. Arguments as of ``read_manifest``.

        Raises:
            CheckpointError: if the weights beside it were trained on another one.
        """
        manifest = read_manifest(self.folder / "manifest.csv", root, images=images)
        if self.best_path.is_file():
            check_trained_on(self.best_path, read_header(self.best_path), manifest)
        return manifest

    def write_environment(self, engine: Engine) -> None:
        """Record what the run was made with, which is what someone needs to repeat it."""
        write_text(
            self.folder / "environment.json", json.dumps(describe_environment(engine), indent=2) + "\n"
        )

    def write_state(self, state: dict[str, Any]) -> None:
        """Replace ``last.ckpt``. ``state`` holds tensors, numbers, texts, lists and dicts alone."""
        # through memory: torch's own file writer hides a full disk behind an unspecific error
        buffer = io.BytesIO()
        torch.save({"format": STATE_FORMAT, **state}, buffer)
        with replacing(self.state_path) as temporary:
            temporary.write_bytes(buffer.getbuffer())

    def read_state(self, engine: Engine) -> dict[str, Any] | None:
        """The state after the last finished epoch, or None if none has finished.

        Raises:
            CheckpointError: if the file is damaged. Nothing in it is ever executed.
        """
        if not self.state_path.exists():
            return None
        try:
            state = load_tensors(self.state_path, engine.device)
        except CheckpointError as error:
            raise CheckpointError(
                error.what, hint="delete the run folder to start again, or use --run NAME"
            ) from None
        if not isinstance(state, dict) or state.get("format") != STATE_FORMAT:
            raise CheckpointError(f"{self.state_path} was written by another version of bus-smp")
        return state

    def write_metrics(self, rows: list[dict[str, float]]) -> pd.DataFrame:
        """Replace ``metrics.csv`` by one row per finished epoch; return it as a table."""
        table = pd.DataFrame(rows)
        with replacing(self.folder / "metrics.csv") as temporary:
            table.to_csv(temporary, index=False, lineterminator="\n", float_format="%.6g")
        return table

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for this process; released by the system even after a kill.

        Raises:
            TrainingError: if another process is training in it.
        """
        try:
            import fcntl
        except ImportError:  # not on Windows, where nothing comparable survives a kill as cleanly
            yield
            return
        with explained(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            handle = (self.folder / ".lock").open("a")
        with handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise TrainingError(
                    f"another process is training in {self.folder}",
                    hint="wait for it, stop it, or use --run NAME",
                ) from None
            remove_leftovers(self.folder)
            yield


def find_run(run: str | None, out: Path) -> Run:
    """The run named ``run`` (a name below ``out``, or a folder), or the newest; it has weights.

    Raises:
        CheckpointError: if there is none, or it is an experiment; lists the runs that there are.
    """
    folder = find_folder(run, out)
    if (folder / BEST).is_file():
        return Run(folder)
    names = ", ".join(sorted(path.parent.name for path in Path(out).glob(f"*/{BEST}"))) or "none"
    if (folder / EXPERIMENT).is_file():
        raise CheckpointError(f"{folder} is an experiment of several runs", hint=f"name one of them: {names}")
    raise CheckpointError(f"no trained run {run}; {out} has: {names}", hint="bus-smp train --run NAME")
