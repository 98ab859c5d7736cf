"""Kill trainings at random and at chosen moments, continue them, and compare the end with an undisturbed training.

    python tests/torture/kills.py --kills 24 --seed 1 --folder outputs/kills

SIGKILL, SIGTERM and SIGINT take turns, to the process or to its whole session; each start has another number of loader
processes. After each kill every file under its final name must be complete, no process of the killed training may be
alive, and its lock must be free. At the end weights, tables, curves, calibration and evaluation must be the same
bytes. A moment of ``training.MOMENTS`` that was never hit is a problem too.
"""

from __future__ import annotations

import argparse
import collections
import random
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from os import kill, killpg
from pathlib import Path

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).resolve().parents[2])]

from training import CHECKOUT, MOMENTS, Training, Watched, catches_sigterm, of_session
from whole import check_cache, check_run, differences, hidden, is_free

from bus_smp.data import synthetic

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
WORDS = "Stopped. The same command continues after the last finished epoch."
# Seconds after a kill until no process of the training may be alive; SIGTERM and SIGINT may take 15.
LINGER = 6.0
SIZE = 64
TINY = (
    "model.encoder_name=tu-test_resnet",
    "model.encoder_weights=null",
    f"data.size={SIZE}",
    "train.lr=1e-3",
    "train.save_every=0",
)
VARIANTS = {
    "fp32": ("train.precision=fp32", "train.ema=0.9", "train.accumulate=3"),
    # bf16, except on a CPU that would have to emulate it many times slower.
    "auto": ("train.precision=auto",),
    # The state is some epochs behind the other files.
    "late": ("train.precision=fp32", "train.save_every=3"),
}
# About how many seconds a moment lasts: a kill comes at a random time in it.
_LENGTHS = {
    "start": 4.0,
    "cache": 0.05,
    "step": 1.0,
    "validation": 0.4,
    "calibration": 0.8,
    "last.ckpt": 0.25,
}
_USUAL = 0.002


@dataclass(frozen=True)
class Kill:
    """What is done to a training, at one of ``MOMENTS`` or at ``any`` time."""

    moment: str
    signal: signal.Signals
    # True: to the whole session, as a terminal does; False: only to the process.
    all_of_it: bool
    # Of the moment, since the training was started or continued.
    occurrence: int = 1


@dataclass(frozen=True)
class Done:
    """A kill that was done: the moment it hit, and the seconds until no process was alive."""

    kill: Kill
    hit: str
    seconds: float
    problems: tuple[str, ...]


def make_training(folder: Path, settings: Sequence[str], code: Path = CHECKOUT) -> Training:
    """A training on synthetic images in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    tree = folder / "tree" / "BUS-UCLM"
    if not tree.exists():
        tree = synthetic.write_bus_uclm(folder / "tree", size=(96, 72))
    # The smallest network passes each moment faster than the moments can be watched.
    usual = (*TINY, "model.encoder_name=resnet18")
    training = Training(tree, folder / "data_manifests", (*usual, *settings), code)
    if not training.manifests.exists():
        made = training.command("make-manifest", "--root", tree, "--out", training.manifests)
        _, shown = made.communicate()
        assert made.returncode == 0, shown.decode()
    return training


def plan_kills(count: int, rng: random.Random, moments: Sequence[str] = MOMENTS) -> list[Kill]:
    """Each moment once, the others at any time; the three signals in turn."""
    moments = [*moments, *["any"] * max(0, count - len(moments))][: max(count, 1)]
    rng.shuffle(moments)
    signals = [SIGNALS[number % 3] for number in range(len(moments))]
    rng.shuffle(signals)
    repeated = [moment not in ("start", "cache", "calibration") for moment in moments]
    return [
        Kill(moment, number, rng.random() < 0.4, rng.choice((1, 2)) if again else 1)
        for moment, number, again in zip(moments, signals, repeated, strict=True)
    ]


class Torture:
    """Kills one training again and again in ``folder`` until it has ended nevertheless."""

    def __init__(self, training: Training, folder: Path, rng: random.Random) -> None:
        self.training, self.rng = training, rng
        self.run, self.cache = folder / "outputs" / "run", folder / "cache"
        self.starts = 0

    def choose(self, todo: list[Kill]) -> Kill | None:
        """The next kill that is still possible: the cache is built once, calibration comes last."""
        cached = any(not path.name.startswith(".") for path in self.cache.glob("*"))
        first = [kill for kill in todo if kill.moment == "cache" and not cached]
        usual = [kill for kill in todo if kill.moment not in ("cache", "calibration")]
        last = [kill for kill in todo if kill.moment == "calibration"]
        return next(iter(first or usual or last), None)

    def once(self, todo: list[Kill]) -> Done | None:
        """Start or continue the training and do one kill of ``todo``, which leaves the list; None: it ended first."""
        kill = self.choose(todo)
        watched = Watched(self.training, self.run, self.cache, self.starts % 3)
        self.starts += 1
        try:
            if kill is not None:
                kill, hit = self._aim(watched, kill, todo)
            if kill is None or not hit:
                code = watched.finish(300)
                assert code == 0, f"exit code {code}: {watched.shown[-2000:]}"
                return None
            done = self._kill(watched, kill, hit)
            todo.remove(kill)
            return done
        finally:
            if not watched.ended():
                killpg(watched.pid, signal.SIGKILL)
            watched.close()

    def _aim(self, watched: Watched, kill: Kill, todo: list[Kill]) -> tuple[Kill, str]:
        """Freeze the training where ``kill`` wants it; the moment it is at, empty if it never was there."""
        deadline = time.monotonic() + 240
        if kill.moment == "any":
            # In the other cases the time begins when the training does.
            early = self.rng.random() < 0.25
            while watched.at in ("start", "cache") and not early and not watched.ended():
                watched.look(0.05)
            due = time.monotonic() + self.rng.uniform(0.1, 6)
            while time.monotonic() < due and not _is_late(watched):
                watched.look(due - time.monotonic())
            if not _is_late(watched):
                freeze(watched)
                return kill, watched.at
        else:
            length = _LENGTHS.get(kill.moment, _USUAL)
            at = kill.moment
            if watched.freeze_at(at, kill.occurrence, lambda: self.rng.uniform(0, length), deadline):
                return kill, at
        # The training is past the moment; a kill in the calibration is still possible.
        late = next((other for other in todo if other.moment == "calibration"), None)
        if late is not None and late is not kill and not watched.ended() and watched.at != "end":
            length = _LENGTHS["calibration"]
            if watched.freeze_at("calibration", 1, lambda: self.rng.uniform(0, length), deadline):
                return late, "calibration"
        return kill, ""

    def _kill(self, watched: Watched, kill: Kill, hit: str) -> Done:
        gentle = kill.signal != signal.SIGKILL
        # Before the first line of ours the signal is handled by Python.
        if gentle and not catches_sigterm(watched.pid):
            resume(watched)
            deadline = time.monotonic() + 10
            while not watched.ended() and not catches_sigterm(watched.pid) and time.monotonic() < deadline:
                time.sleep(0.01)
        begun = time.monotonic()
        (killpg if kill.all_of_it else _kill_one)(watched.pid, kill.signal)
        resume(watched)
        code = watched.finish(15 if gentle else LINGER)
        problems = []
        while of_session(watched.pid) and time.monotonic() - begun < (15 if gentle else LINGER):
            time.sleep(0.02)
        seconds = time.monotonic() - begun
        if alive := of_session(watched.pid):
            problems.append(f"{len(alive)} processes live on {seconds:.0f} s after it")
        expected = 128 + kill.signal if gentle else -kill.signal
        if code != expected:
            problems.append(f"exit code {code}, not {expected}")
        shown = watched.shown
        if gentle and (shown.count(WORDS) != 1 or re.search(r"Traceback|Error|Exception", shown)):
            problems.append(f"says {shown[-1500:]!r}")
        if gentle and (left := hidden(self.run)):
            problems.append(f"leaves {', '.join(left)}")
        problems += self._damage()
        return Done(kill, hit, seconds, tuple(problems))

    def _damage(self) -> list[str]:
        problems = []
        for check in (
            lambda: check_run(self.run),
            lambda: check_cache(self.cache),
            lambda: _claim(is_free(self.run), "the lock is held"),
        ):
            try:
                check()
            except Exception as error:
                problems.append(f"{type(error).__name__}: {error}")
        return problems


def _is_late(watched: Watched) -> bool:
    return watched.ended() or watched.at in ("calibration", "end")


def freeze(watched: Watched) -> None:
    """Freeze it, and record what it did until then."""
    kill(watched.pid, signal.SIGSTOP)
    watched.look(0.02)


def resume(watched: Watched) -> None:
    """Let a frozen training run."""
    if not watched.ended():
        kill(watched.pid, signal.SIGCONT)


def _kill_one(pid: int, number: int) -> None:
    kill(pid, number)


def _claim(true: bool, otherwise: str) -> None:
    if not true:
        raise AssertionError(otherwise)


def evaluate(training: Training, run: Path) -> None:
    """Score a finished run on its test split."""
    process = training.command("evaluate", "--out", run.parent, "--run", run.name)
    _, shown = process.communicate()
    assert process.returncode == 0, shown.decode()


def reference(training: Training, folder: Path) -> Path:
    """The undisturbed run."""
    run = folder / "outputs" / "run"
    process = training.start(run, folder / "cache", 0)
    _, shown = process.communicate()
    assert process.returncode == 0, shown.decode()
    return run


def at_the_end(torture: Torture, whole: Path) -> list[str]:
    """What is not as it should be of a training that ended after its kills."""
    problems = [f"differs: {name}" for name in differences(torture.run, whole)]
    problems += [f"leaves {name}" for folder in (torture.run, torture.cache) for name in hidden(folder)]
    return problems + torture._damage()


def torture_variant(
    name: str,
    training: Training,
    folder: Path,
    kills: list[Kill],
    rng: random.Random,
    say: Callable[[str], None],
) -> tuple[list[Done], list[str]]:
    """All ``kills``, in as many trainings as that takes; what was done, and all problems."""
    whole = reference(training, folder / "whole")
    evaluate(training, whole)
    todo, done, problems = list(kills), [], []
    for number in range(1, 2 + len(kills)):
        torture = Torture(training, folder / f"killed-{number}", rng)
        while (one := torture.once(todo)) is not None:
            done.append(one)
            who = "session" if one.kill.all_of_it else "process"
            say(
                f"{name} {one.kill.signal.name:7} to the {who} in {one.hit:16} gone after {one.seconds:4.1f} s"
                + "".join(f"\n  {problem}" for problem in one.problems)
            )
            problems += one.problems
        evaluate(training, torture.run)
        wrong = at_the_end(torture, whole)
        problems += wrong
        say(
            f"{name} training {number} ended after {torture.starts - 1} kills: {'; '.join(wrong) or 'same bytes'}"
        )
        if not wrong:
            shutil.rmtree(folder / f"killed-{number}")
        if not todo:
            break
    missing = sorted({kill.moment for kill in todo} - {"any"})
    problems += [f"{name}: {moment} was never hit" for moment in missing]
    return done, problems


def main() -> int:
    """Kill; print a line for each and a table; 1 if there was any problem."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--kills", type=int, default=24, help="in all, shared by the variants")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--variant", choices=VARIANTS, action="append", help="repeatable; default: all")
    parser.add_argument("--moment", choices=MOMENTS, action="append", help="repeatable; default: all")
    parser.add_argument("--folder", type=Path, default=Path("outputs/kills"), help="emptied first")
    parser.add_argument("--code", type=Path, default=CHECKOUT, help="checkout to torture")
    options = parser.parse_args()
    # The training ends with this process.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    shutil.rmtree(options.folder, ignore_errors=True)
    folder = options.folder.resolve()
    # A copy, because the checkout may change meanwhile.
    shutil.copytree(options.code / "bus_smp", folder / "code" / "bus_smp")
    rng = random.Random(options.seed)
    names = options.variant or list(VARIANTS)
    done: list[Done] = []
    problems: list[str] = []
    for number, name in enumerate(names):
        count = options.kills // len(names) + (number < options.kills % len(names))
        settings = (*VARIANTS[name], f"train.epochs={options.epochs}")
        training = make_training(folder / "data", settings, folder / "code")
        some, wrong = torture_variant(
            name,
            training,
            folder / name,
            plan_kills(count, rng, options.moment or MOMENTS),
            rng,
            lambda text: print(text, flush=True),
        )
        done, problems = done + some, problems + wrong
    counts = collections.Counter((one.hit, one.kill.signal.name) for one in done)
    columns = [number.name for number in SIGNALS]
    print(f"\n{'moment':18}" + "".join(f"{column:>9}" for column in columns))
    for moment in (*MOMENTS, "between"):
        print(f"{moment:18}" + "".join(f"{counts[moment, column]:9}" for column in columns))
    slowest = max((one.seconds for one in done), default=0)
    print(f"{len(done)} kills, nothing alive after {slowest:.1f} s at the latest, {len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
