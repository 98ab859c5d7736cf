"""The training loop, readable from top to bottom.

Randomness is a function of (seed, epoch, position) only, and the state is saved after every epoch. So a run that was
killed and started again ends with the same bits as an uninterrupted one.
"""

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from bus_smp import __version__
from bus_smp.classes import CLASSES
from bus_smp.config import Settings
from bus_smp.data.cache import Cache, open_cache
from bus_smp.data.examples import ExampleReader
from bus_smp.data.geometry import Geometry
from bus_smp.data.loading import TrainingDataset, explained_workers, make_loader
from bus_smp.data.manifest import Manifest
from bus_smp.data.sampler import EpochSampler, RankSampler, balancing_weights
from bus_smp.errors import CheckpointError, TrainingError
from bus_smp.evaluation.calibration import calibrate_weights
from bus_smp.evaluation.score_images import validate
from bus_smp.figures.training_curves import write_dice_curve, write_loss_curves
from bus_smp.inference.predictor import NetworkPredictor, TorchNetwork
from bus_smp.model.checkpoint import weights_sha256, write_checkpoint
from bus_smp.model.consistency import learn_rule
from bus_smp.model.hybrid import IMAGENET_MEAN, IMAGENET_STD
from bus_smp.runs.ancestry import Ancestry
from bus_smp.runs.describe import describe_calibration
from bus_smp.runs.run import Run
from bus_smp.system import ranks
from bus_smp.system.console import Progress as Shown
from bus_smp.system.console import duration, show_progress
from bus_smp.system.engine import Engine, make_engine, set_determinism
from bus_smp.system.environment import describe_environment, git_commit, package_versions
from bus_smp.system.files import write_text
from bus_smp.system.threads import count_cores
from bus_smp.text import folded
from bus_smp.training.preflight import (
    check_batch,
    explained_compile,
    explained_memory,
)
from bus_smp.training.progress import SCORE, Outcome, Progress
from bus_smp.training.resume import (
    StateWriter,
    check_best,
    describe_place,
    is_same_run,
    read_state,
    run_identity,
)
from bus_smp.training.step import ImageTargets, TrainingStep
from bus_smp.training.tensorboard import EventFile

# Seconds between two drawings of the curves, each of which takes half a second.
_DRAW_EVERY = 20.0


def run_training(
    settings: Settings,
    manifest: Manifest,
    run: Run,
    ancestry: Ancestry,
    begin: Callable[[], None],
    say: Callable[[str], None],
    bar: bool,
) -> Outcome:
    """Train a run that is checked and locked, to its end; arguments and errors as for ``train``."""
    with explained_memory(settings), explained_workers(), explained_compile(settings):
        training = _Training(settings, manifest, run, ancestry, say, bar)
        # not earlier: a start that failed must not bind the next one to its settings
        ranks.on_first(lambda: None if run.exists() else _begin(run, settings, manifest, ancestry))
        begin()
        return training.finish()


def _begin(run: Run, settings: Settings, manifest: Manifest, ancestry: Ancestry) -> None:
    ancestry.write(run.folder)
    run.begin(settings, manifest)


class _Training:
    """The parts of one training; ``finish`` runs it."""

    def __init__(
        self,
        settings: Settings,
        manifest: Manifest,
        run: Run,
        ancestry: Ancestry,
        say: Callable[[str], None],
        bar: bool,
    ) -> None:
        self.settings, self.manifest, self.run, self.ancestry = settings, manifest, run, ancestry
        self.say, self.bar = say, bar
        plan = settings.train
        set_determinism(plan.deterministic)
        self.engine = make_engine(settings.runtime.device, plan.precision)

        torch.manual_seed(plan.seed)
        # a state holds all weights, and so does a run
        resuming = run.state_path.exists()
        weights = None if resuming or settings.model.init else settings.model.encoder_weights
        self.step = TrainingStep(settings, self.engine, weights, ancestry.weights)
        for head in self.step.new_heads:
            self.say(
                f"The {head.replace('_', ' ')} starts from random weights: {settings.model.init} has none"
            )
        self.rows = manifest.used("train")
        smallest = min(plan.batch_size, len(self.rows))
        shared = 1 if plan.sync_batchnorm else ranks.count()
        check_batch(self.step.model, settings.data.size, smallest // shared)

        self.geometry = Geometry.of(settings.data.model_dump())
        self.cache = cache = ranks.after_first(self._open_cache)
        kinds = self.rows["dataset"] + " " + self.rows["label"]
        if settings.heads.consistency:
            self.step.rule = learn_rule(cache.masks, list(self.rows["label"])).to(self.engine.device)
        drawn = kinds if plan.balanced_sampling == "source" else self.rows["label"]
        whole = EpochSampler(list(drawn), plan.seed, bool(plan.balanced_sampling))
        self.sampler: EpochSampler | RankSampler = whole
        self.weights = torch.from_numpy(balancing_weights(kinds, whole.shares()))
        if ranks.count() > 1:
            self.sampler = RankSampler(whole, plan.batch_size, ranks.rank(), ranks.count())
        self.loader = make_loader(
            TrainingDataset(
                cache, list(self.rows["label"]), settings.augment, plan.seed, settings.heads.shape > 0
            ),
            self.sampler,
            plan.batch_size // ranks.count(),
            count_workers(settings, self.engine),
            self.engine.device,
        )
        self.steps = len(self.loader)

        network = TorchNetwork(self.step.best_model, self.engine, IMAGENET_MEAN, IMAGENET_STD)
        self.predictor = NetworkPredictor(
            network,
            network.computed_in,
            geometry=self.geometry,
            # without gradients a GPU has room for more images, and is faster with them
            batch_size=plan.batch_size * (4 if self.engine.device.type == "cuda" else 1),
        )

        self.read_validation = ExampleReader(manifest)
        self.progress = Progress()
        # of each epoch of this start
        self.seconds: list[float] = []
        self.states = StateWriter(run.state_path, plan.save_every)
        self.draw_due = 0.0
        self.identity, self.place = run_identity(settings, manifest), describe_place(self.engine)
        self._restore()

    def _open_cache(self) -> Cache:
        with show_progress(len(self.rows), "preparing images", wanted=self.bar) as progress:
            return open_cache(
                self.manifest,
                self.rows,
                self.geometry,
                Path(self.settings.runtime.cache),
                lambda done, _: progress.update(),
            )

    def finish(self) -> Outcome:
        """Train until the last epoch or until patience ends, and calibrate."""
        with self.states:
            if not self._is_over():
                self._announce()
                with self._tensorboard() as board, self._steps_bar() as bar:
                    while not self._is_over():
                        self._one_epoch(bar, board)
            # calibrating continues from it after a kill
            self.states.begin_write()
            ranks.on_first(self._calibrate)
        # the run is finished: nothing will continue it
        ranks.on_first(lambda: self.run.state_path.unlink(missing_ok=True))
        made = self.progress
        return Outcome(made.best_epoch, made.best_score, made.done, made.done < self.settings.train.epochs)

    def _is_over(self) -> bool:
        return self.progress.is_over(self.settings.train.epochs, self.settings.train.patience)

    def _calibrate(self) -> None:
        """Fit temperature and thresholds of the best weights on the validation split, and write them into the header.

        This is done once, after the last epoch, and finishes the run. If it was killed before, the next start of the
        same command does it.
        """
        self.say("Calibrating on the validation split")
        size = self.settings.train.batch_size
        calibration = calibrate_weights(
            self.run.best_path, self.engine, self.manifest, self.read_validation, batch_size=size,
            cached=self.cache.images,
        )  # fmt: skip
        for line in describe_calibration(calibration):
            self.say("\n".join(folded(line[0].upper() + line[1:])))

    def _write_environment(self) -> None:
        """Record what someone needs to repeat the run."""
        about = describe_environment(self.engine)
        write_text(self.run.environment_path, json.dumps(about, indent=2) + "\n")

    def _announce(self) -> None:
        ranks.on_first(self._write_environment)
        done, epochs = self.progress.done, self.settings.train.epochs
        self.say(
            f"{'Continuing' if done else 'Training'} {self.run.folder} on {self.engine.device.type} "
            f"{self.engine.precision}: {len(self.rows)} images, {self.steps} steps per epoch, epoch {done + 1} of {epochs}"
        )
        if self.step.encoder_origin and not done:
            self.say("\n".join(folded(f"Encoder weights: {self.step.encoder_origin}")))
        # like ``_one_line``
        self.say(f"{'':13}   loss  val. Dice  misses  false alarms  seconds  time left")

    def _steps_bar(self) -> contextlib.AbstractContextManager[Shown]:
        """Progress over the whole run, so that it shows the time left for the run."""
        epochs, done = self.settings.train.epochs, self.progress.done
        return show_progress(
            epochs * self.steps, "", "step", done=done * self.steps, every=60, wanted=self.bar
        )

    def _one_epoch(self, bar: Shown, board: Any) -> None:
        epoch, begun = self.progress.done, time.monotonic()
        row = {"epoch": epoch + 1, **self._train_epoch(epoch, bar), **self._validate()}
        self._record(row, board)
        self.seconds.append(time.monotonic() - begun)
        self.say(self._one_line(row))

    def _one_line(self, row: dict[str, Any]) -> str:
        """One row of the table whose head ``_announce`` prints; at most 80 columns."""
        epochs = self.settings.train.epochs
        left = sum(self.seconds) / len(self.seconds) * (epochs - row["epoch"])
        return (
            f"{'epoch ' + str(row['epoch']) + '/' + str(epochs):13}{row['train_loss']:7.3f}{row[SCORE]:11.3f}"
            f"{row['val_miss_rate']:8.2f}{row['val_false_alarm_rate']:14.2f}{self.seconds[-1]:9.1f}{duration(left):>11}"
        )

    def _train_epoch(self, epoch: int, bar: Shown) -> dict[str, float]:
        plan = self.settings.train
        # for random layers of the network
        torch.manual_seed(plan.seed + epoch)
        self.sampler.set_epoch(epoch)
        self.step.model.train()
        name = f"epoch {epoch + 1}/{plan.epochs}"
        bar.describe(name)
        # On CUDA, reading a loss waits for the device, so losses are read every 20 steps.
        interval = 20 if self.engine.device.type == "cuda" else 1
        losses: list[torch.Tensor] = []
        indices: list[torch.Tensor] = []
        for step, batch in enumerate(self.loader):
            at = (epoch * self.steps + step, plan.epochs * self.steps, plan.warmup * self.steps)
            rates = [cosine_rate(highest, *at) for highest in self.step.rates]
            self.step.set_rates(rates)
            # The last group of an epoch may be smaller, because the saved state holds no gradients.
            begun = step // plan.accumulate * plan.accumulate
            size = min(plan.accumulate, self.steps - begun)
            whole = ImageTargets(batch.labels, batch.shapes, self.weights[batch.indices])
            last = step + 1 == begun + size
            losses.append(self.step(batch.images, batch.masks, size, last, whole))
            indices.append(batch.indices)
            if len(losses) % interval == 0 or step + 1 == self.steps:
                self._check_finite(losses, indices, epoch)
                bar.describe(name, self._postfix(losses))
            bar.update()
        means = ranks.gather(torch.stack(losses).double().mean(0).tolist())
        table = [sum(of_each) / len(of_each) for of_each in zip(*means, strict=True)]
        names = ["train_loss", *(f"train_loss_{name}" for name in self.step.loss_names)]
        return {"lr": rates[-1], **dict(zip(names, table, strict=True))}

    def _check_finite(self, losses: list[torch.Tensor], indices: list[torch.Tensor], epoch: int) -> None:
        recent = torch.stack(losses)[:, 0]
        if torch.isfinite(recent).all():
            return
        step = int(torch.nonzero(~torch.isfinite(recent))[0])
        names = [str(self.rows.iloc[int(i)]["image_id"]) for i in indices[step]]
        saved = f"; epoch {epoch} is saved" if epoch else ""
        raise TrainingError(
            f"the loss became {recent[step].item()} in epoch {epoch + 1}, step {step + 1} "
            f"(images {', '.join(names)}){saved}",
            hint="start another run with a lower rate or full precision: "
            f"--run NAME --set train.lr={self.settings.train.lr / 3:.0e} --set train.precision=fp32",
        )

    def _postfix(self, losses: list[torch.Tensor]) -> str:
        loss = torch.stack(losses[-50:])[:, 0].mean().item()
        dice = f"{self.progress.history[-1][SCORE]:.3f}" if self.progress.done else "-"
        return f"loss {loss:.3f}, lesion Dice {dice}"

    def _validate(self) -> dict[str, float]:
        self.step.share_buffers()
        scores = validate(self.predictor, self.manifest, self.manifest.used("val"), self.read_validation)
        return {f"val_{name}": value for name, value in scores.items()}

    def _record(self, row: dict[str, Any], board: Any) -> None:
        """Write everything of one epoch. The state comes last, so that a kill before it repeats the epoch.

        It may be several epochs behind the other files, which these epochs then write again, with the same bytes.
        """
        is_best = self.progress.add(row)
        if not ranks.is_first():
            return
        if is_best:
            write_checkpoint(self.run.best_path, self.step.best_model, self._about(row))
            self.progress.best_weights = weights_sha256(self.run.best_path)
        table = self.run.write_metrics(self.progress.history)
        if time.monotonic() >= self.draw_due or self._is_over():
            write_loss_curves(table, self.run.loss_curves_path)
            write_dice_curve(table, self.run.dice_curve_path)
            self.draw_due = time.monotonic() + _DRAW_EVERY
        values = {name.replace("_", "/", 1): value for name, value in row.items() if name != "epoch"}
        board.add(values, row["epoch"])
        self.states.keep({**self.step.state(), **self.progress.state(), "place": self.place, **self.identity})

    def _about(self, row: dict[str, Any]) -> dict[str, Any]:
        """The checkpoint's header: what is needed to use the weights and to know where they come from."""
        return {
            "model": self.step.model_arguments,
            **({"encoder_origin": self.step.encoder_origin} if self.step.encoder_origin else {}),
            "classes": [{"index": c.index, "name": c.name, "rgb": list(c.rgb)} for c in CLASSES],
            "mean": list(IMAGENET_MEAN),
            "std": list(IMAGENET_STD),
            **self.settings.data.model_dump(include={"size", "geometry", "grey"}),
            "settings": json.loads(self.identity["settings"]),
            "datasets": self.manifest.datasets,
            "manifest_sha256": self.identity["manifest_sha256"],
            **({"ancestors": list(self.ancestry.entries)} if self.ancestry.entries else {}),
            "versions": {"bus_smp": __version__, **package_versions()},
            "git_commit": git_commit(),
            "precision": self.engine.precision,
            "epoch": row["epoch"],
            "score": {
                name: value for name, value in row.items() if name.startswith("val_") and math.isfinite(value)
            },
        }

    def _restore(self) -> None:
        state = read_state(self.run.state_path, self.engine)
        if state is None:
            if self.run.metrics_path.exists() and not self.run.has_weights():
                raise CheckpointError(
                    f"{self.run.best_path} is gone; it held the weights of this run",
                    hint="put it back, or delete the run folder to start again, or use --run NAME",
                )
            return
        try:
            self._take_over(state)
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:120]
            raise CheckpointError(
                f"{self.run.state_path} does not hold the state of this run ({type(error).__name__}: {reason})",
                hint="delete the run folder to start again, or use --run NAME",
            ) from None

    def _take_over(self, state: dict[str, Any]) -> None:
        changed = [
            f"{name} {before}, now {now}"
            for name, now in self.place.items()
            if (before := state["place"].get(name, now)) != now
        ]
        if changed:
            self.say(
                f"Warning: the run was computed elsewhere ({'; '.join(changed)}); "
                "it will not be bit-identical to an uninterrupted run"
            )
        if not is_same_run(self.identity, json.loads(state["settings"]), state["manifest_sha256"]):
            raise ValueError("it is of a run with other data or settings")
        self.step.restore(state)
        self.progress = Progress.from_state(state)
        check_best(self.run.best_path, self.identity, self.progress)

    @contextlib.contextmanager
    def _tensorboard(self) -> Iterator[Any]:
        if not ranks.is_first():
            yield None
            return
        with contextlib.closing(EventFile(self.run.folder, self.progress.done + 1)) as board:
            yield board


def cosine_rate(lr: float, step: int, steps: int, warmup: float = 0) -> float:
    """Learning rate at ``step`` of ``steps``: along a line up to ``lr`` in the first ``warmup`` steps (Goyal et al. 2017),
    from there down to 0 along half a cosine (Loshchilov & Hutter 2017)."""
    if step < warmup:
        return lr * (step + 1) / (warmup + 1)
    return lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


def count_workers(settings: Settings, engine: Engine) -> int:
    """Loader processes of a run."""
    if settings.runtime.workers >= 0:
        return settings.runtime.workers
    # On a CPU a batch takes 4 ms of a step of seconds; another process would slow the step down by more.
    return 0 if engine.device.type == "cpu" else min(4, count_cores())
