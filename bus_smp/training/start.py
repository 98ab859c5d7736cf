"""Starting or continuing a run: what can be refused is refused before PyTorch is loaded, and a failed start leaves nothing."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from bus_smp.config import Settings
from bus_smp.data.manifest import Manifest
from bus_smp.runs.ancestry import trace_ancestry
from bus_smp.runs.run import Run
from bus_smp.system import ranks
from bus_smp.system.console import note
from bus_smp.training.preflight import check_disk, check_files, check_heads, check_processes, check_trainable
from bus_smp.training.progress import Outcome, finished_outcome


def train(
    settings: Settings,
    manifest: Manifest,
    folder: Path,
    *,
    begin: Callable[[], None] = lambda: None,
    say: Callable[[str], None] = note,
    bar: bool = False,
) -> Outcome:
    """Train in ``folder``, or continue after the last saved epoch. A finished run is not changed, and its images are not looked for.

    Args:
        settings: all settings; only ``runtime`` and ``train.save_every`` may differ from those the run was started with.
        manifest: the combined manifest of ``settings.data.train``.
        folder: the run folder; it is created if it is missing.
        begin: called when the run has begun, before its first epoch.
        say: receives one line per event.
        bar: show progress on stderr.

    Raises:
        TrainingError: if the data cannot be trained on, the folder's run has other settings or data, a loss is not
            finite, or memory or disk is too small.
        ManifestError, ConfigError: if a file is missing, or settings do not fit each other.
    """
    run = Run(folder)
    if not ranks.is_first():
        say, bar = (lambda text: None), False
    with _leaving_nothing(run, Path(settings.runtime.cache)), contextlib.ExitStack() as stack:

        def lock() -> None:
            stack.enter_context(run.locked())

        def check() -> tuple[Manifest | None, Outcome | None]:
            if not run.exists():
                run.check_unused()
                check_disk(run.folder)
                return None, None
            return run.check_same(settings, manifest), finished_outcome(run)

        ranks.on_first(lock)
        own, outcome = ranks.on_first(check)
        if outcome is not None:
            # left by a kill, or by a version that kept it
            ranks.on_first(lambda: run.state_path.unlink(missing_ok=True))
            begin()
            return outcome
        for warning in (*check_trainable(manifest), *check_heads(settings, manifest)):
            say(f"Warning: {warning}")
        ancestry = trace_ancestry(run, settings, own or manifest)
        check_files(settings, manifest)
        check_processes(settings, len(manifest.used("train")))
        if "torch" not in sys.modules:
            say("Loading PyTorch")
        from bus_smp.training.loop import run_training

        return run_training(settings, own or manifest, run, ancestry, begin, say, bar)


@contextlib.contextmanager
def _leaving_nothing(run: Run, cache: Path) -> Iterator[None]:
    """If the block fails before the folder holds a run, remove what it has made."""
    made = _missing(run.folder) + _missing(cache)
    try:
        yield
    finally:
        if ranks.is_first() and not run.exists():
            run.discard_start()
            for folder in made:
                # not empty: it is not only ours
                with contextlib.suppress(OSError):
                    folder.rmdir()


def _missing(folder: Path) -> list[Path]:
    """The folder and its parents that do not exist yet, the innermost first."""
    return [one for one in (folder, *folder.parents) if not one.exists()]
