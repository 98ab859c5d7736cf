"""The comparison of networks: size, work, time on each backend and memory, one row for each network."""

import contextlib
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from bus_smp.classes import CLASSES
from bus_smp.errors import BusSmpError
from bus_smp.model.losses import DeepSupervisionLoss
from bus_smp.model_comparison.backends import DTYPES, Exports, Unavailable, count_gflop, open_backend
from bus_smp.model_comparison.networks import NETWORKS, SMP, build, count_parameters, for_prediction, try_size
from bus_smp.model_comparison.peak_memory import peak_memory
from bus_smp.model_comparison.timing import Spread, Work, matrix_product, quotient, spread, time_in_turn
from bus_smp.system.engine import Engine
from bus_smp.system.environment import describe_environment
from bus_smp.system.files import replacing, write_text
from bus_smp.text import harmless_table


@dataclass
class Compared:
    """One network and its numbers; ``note`` says why it has none."""

    name: str
    network: nn.Module | None = None
    exports: Exports | None = None
    cells: dict[str, Any] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class Comparison:
    """What to compare, and how.

    Attributes:
        encoder: a name of smp, the same for every network.
        size: side of the images in pixels.
        batch: images of one forward pass.
        backends: some of ``backends.BACKENDS``.
        repeats: readings of each number.
        train: also time a training step.
        networks: some of ``networks.NETWORKS``.
    """

    engine: Engine
    encoder: str = "resnet50"
    size: int = 256
    batch: int = 1
    backends: tuple[str, ...] = ()
    repeats: int = 5
    train: bool = False
    networks: tuple[str, ...] = NETWORKS


def compare(
    plan: Comparison, say: Callable[[str], None] = lambda text: None
) -> tuple[pd.DataFrame, dict[str, str]]:
    """Return the table of ``models.csv``, and the reason for each backend that has no columns in it.

    Columns: ``model, encoder, size_px, batch, parameters, gflop_per_image, peak_memory_mb``, for each backend
    ``<backend>_ms`` per image (median), ``_ms_low``, ``_ms_high`` (smallest and largest reading) and ``_limit_ratio`` (how
    many times as long as a matrix product of the same FLOP), with ``train`` ``train_step_s``, ``_low``, ``_high``,
    and ``note``: why a network has no numbers. All networks are timed in turn.
    """
    missing: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="bus-smp-compare-") as folder:
        compared = [_begin(name, plan, Path(folder) / str(i)) for i, name in enumerate(plan.networks)]
        usable = [one for one in compared if one.network is not None]
        for backend in plan.backends:
            say(f"Measuring: {backend}")
            if reason := _time_backend(backend, usable, plan):
                missing[backend] = reason
        say("Measuring: memory")
        dtype = str(plan.engine.dtype).removeprefix("torch.")
        for one in usable:
            one.cells["peak_memory_mb"] = peak_memory(
                one.name, plan.encoder, plan.size, plan.batch, str(plan.engine.device), dtype
            )
        if plan.train:
            say("Measuring: training step")
            _time_training(usable, plan)
    return pd.DataFrame([_row(one, plan) for one in compared]), missing


def _begin(name: str, plan: Comparison, folder: Path) -> Compared:
    """Build a network and try it once; if it cannot take the encoder or the size, its note gives the reason."""
    compared = Compared(name)
    try:
        plain = build(name, plan.encoder).eval()
        found = try_size(plain, plan.size)
        logits = found[0] if isinstance(found, tuple) else found
        if logits.shape[2:] != (plan.size, plan.size):
            raise ValueError(f"its output for {plan.size} px has {logits.shape[2]} px")
    except Exception as error:
        # smp, timm and torch raise errors of many types.
        compared.note = _reason(error)
        return compared
    folder.mkdir()
    compared.cells["parameters"] = count_parameters(plain)
    compared.cells["gflop_per_image"] = count_gflop(plain, plan.size, torch.device("cpu"))
    noise = np.random.default_rng(0).standard_normal((2, 3, plan.size, plan.size), np.float32)
    compared.exports = Exports(plain, plan.size, folder, lambda: [noise], fixed=name in SMP)
    network = for_prediction(plain).to(plan.engine.device)
    compared.network = network.to(memory_format=torch.channels_last)
    return compared


def _reason(error: Exception) -> str:
    text = error.what if isinstance(error, BusSmpError) else str(error)
    return (" ".join(text.split()) or type(error).__name__)[:160]


def _time_backend(backend: str, compared: Sequence[Compared], plan: Comparison) -> str:
    """Fill in the columns of one backend; return why it has none, or ""."""
    precision = backend.split("-")[1]
    # int8 is compared with the fastest precision of the device.
    limit = DTYPES.get(precision, plan.engine.dtype)
    if limit not in (torch.float32, plan.engine.dtype):
        limit = torch.float32
    product, flop = matrix_product(limit, plan.engine.device)
    works: dict[str, Work] = {"limit": product}
    for one in compared:
        assert one.network is not None and one.exports is not None
        try:
            works[one.name] = open_backend(backend, one.network, one.exports, plan.engine, plan.batch)
            works[one.name]()
        except Unavailable as error:
            return str(error)
        except Exception as error:
            # An exporter that cannot follow this network.
            one.note = f"{backend}: {_reason(error)}"
            works.pop(one.name, None)
    readings = time_in_turn(works, plan.repeats, plan.engine.device)
    for one in compared:
        if one.name not in works:
            continue
        each = [seconds / plan.batch for seconds in readings[one.name]]
        least = [seconds / flop * one.cells["gflop_per_image"] * 1e9 for seconds in readings["limit"]]
        key = backend.replace("-", "_")
        one.cells |= _columns(f"{key}_ms", spread(each).scaled(1000))
        one.cells[f"{key}_limit_ratio"] = quotient(each, least).median
    return ""


def _time_training(compared: Sequence[Compared], plan: Comparison) -> None:
    works = {one.name: _training(one.name, plan) for one in compared}
    readings = time_in_turn(works, plan.repeats, plan.engine.device)
    for one in compared:
        one.cells |= _columns("train_step_s", spread(readings[one.name]))


def _training(name: str, plan: Comparison) -> Work:
    """One step on a batch of random images: forward, the loss of ``bus-smp train``, backward, AdamW."""
    engine, size = plan.engine, plan.size
    model = build(name, plan.encoder).to(engine.device).to(memory_format=torch.channels_last).train()
    loss, scaler = DeepSupervisionLoss(len(CLASSES)), engine.make_scaler()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    images = torch.randn(plan.batch, 3, size, size).to(engine.device, memory_format=torch.channels_last)
    masks = torch.randint(0, len(CLASSES), (plan.batch, size, size), device=engine.device)

    def run() -> None:
        with engine.autocast():
            outputs = model(images)
        scaler.scale(loss(outputs, masks)[0]).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)

    return run


def _columns(name: str, found: Spread) -> dict[str, float]:
    return {name: found.median, f"{name}_low": found.low, f"{name}_high": found.high}


def _row(one: Compared, plan: Comparison) -> dict[str, Any]:
    first = {"model": one.name, "encoder": plan.encoder, "size_px": plan.size, "batch": plan.batch}
    empty = dict.fromkeys(("parameters", "gflop_per_image", "peak_memory_mb"))
    return {**first, **empty, **one.cells, "note": one.note}


def write_comparison(table: pd.DataFrame, about: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Write models.csv and models.json into ``folder``; return what the JSON holds.

    Raises:
        BusSmpError: if the disk is full or the folder cannot be written to.
    """
    with replacing(folder / "models.csv") as temporary:
        harmless_table(table).to_csv(temporary, index=False, lineterminator="\n", float_format="%.6g")
    rows = json.loads(table.to_json(orient="records"))
    document = {**about, "models": rows}
    write_text(folder / "models.json", json.dumps(document, indent=2, allow_nan=False) + "\n")
    return document


def summary(table: pd.DataFrame) -> str:
    """The table for a terminal, with the medians only."""
    timed = [name for name in table.columns if name.endswith("_ms") or name == "train_step_s"]
    titles = {"parameters": "parameters", "gflop_per_image": "GFLOP", "peak_memory_mb": "memory, MB"}
    titles |= {name: name.replace("_", " ") for name in timed}
    scores = {"dice_lesion": "val. Dice", "miss_rate": "misses", "false_alarm_rate": "false alarms"}
    titles |= {name: title for name, title in scores.items() if name in table}
    cells = table[list(titles)].map(lambda value: "-" if pd.isna(value) else _short(value))
    shown = cells.rename(columns=titles).set_axis(table["model"].rename(None))
    notes = [f"- {row['model']}: {row['note']}" for row in table.to_dict("records") if row["note"]]
    return "\n".join([shown.to_string(), *([""] if notes else []), *notes])


def _short(value: float) -> str:
    """Three significant digits, without an exponent."""
    return f"{value:,.0f}" if abs(value) >= 99.95 else f"{value:.3g}"


def describe_machine(engine: Engine) -> dict[str, Any]:
    """``environment`` as in a run folder, and ``packages``: the versions of the installed backends."""
    packages = {}
    for name in ("onnx", "onnxruntime", "openvino"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            packages[name] = metadata.version(name)
    return {"environment": describe_environment(engine), "packages": packages}
