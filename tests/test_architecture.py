"""The rooms of the package: imports go down only, no circle, and most rooms load no torch."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "bus_smp"

# The rooms from the top of the house down: a module imports from its own room or from a lower one.
ROWS = (
    ("cli", "__main__", "commands"),  # cli finds a command by its name; demo runs the others through cli
    ("serve",),
    ("model_comparison",),
    ("report",),
    ("training",),
    ("evaluation",),
    ("exchange",),
    ("inference",),
    ("runs",),
    ("model",),
    ("data",),
    ("statistics",),
    ("measures",),
    ("figures",),
    ("config",),
    ("system",),
    ("errors", "classes", "text", ""),
)

# Rooms that read tables and images only, and load no torch.
TORCH_FREE = (
    "serve",
    "exchange",
    "report",
    "runs",
    "statistics",
    "measures",
    "figures",
    "config",
    "errors",
    "classes",
    "text",
    "data",
)
USES_TORCH = ("data.loading", "data.sampler", "data.augment", "data.augment_albumentations")


def _modules() -> dict[str, Path]:
    names = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        names[".".join(part for part in parts if part != "__init__")] = path
    return names


def _row(module: str) -> int:
    room = module.split(".")[0]
    rows = [number for number, names in enumerate(reversed(ROWS)) if room in names]
    assert rows, f"{module}: its room is not in ROWS"
    return rows[0]


def _edges() -> dict[str, set[str]]:
    """The modules of the package that each module imports."""
    modules = _modules()
    return {
        name: {
            target
            for target in (
                i.removeprefix("bus_smp").lstrip(".") for i in _imports(path) if i.split(".")[0] == "bus_smp"
            )
            if target in modules and target != name
        }
        for name, path in modules.items()
        if name  # the package's own names are imported from all rooms, but only when they are used
    }


def _is_torch_free(module: str) -> bool:
    return module.split(".")[0] in TORCH_FREE and module not in USES_TORCH


def _imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_every_room_imports_downwards_only():
    wrong = [
        f"{name} imports {target}, which is higher up"
        for name, targets in _edges().items()
        for target in targets
        if _row(target) > _row(name)
    ]
    assert not wrong, "\n".join(wrong)


def test_no_room_shares_its_row_with_one_that_imports_it():
    shared = [
        f"{name} imports {target}, in the same row"
        for name, targets in _edges().items()
        for target in targets
        if target.split(".")[0] != name.split(".")[0] and _row(target) == _row(name) and target
    ]
    assert set(shared) <= {
        "__main__ imports cli, in the same row",
        "commands.demo imports cli, in the same row",
        "errors imports text, in the same row",
    }


def test_modules_inside_a_room_form_no_circle():
    try:
        graphlib.TopologicalSorter(_edges()).prepare()
    except graphlib.CycleError as error:
        pytest.fail(f"a circle of imports: {' -> '.join(error.args[1])}")


def test_albumentations_is_imported_in_one_file():
    users = [
        name
        for name, path in _modules().items()
        if any(i.startswith("albumentations") for i in _imports(path))
    ]
    assert users == ["data.augment_albumentations"]


@pytest.mark.parametrize("module", sorted(name for name in _modules() if name and _is_torch_free(name)))
def test_torch_free_rooms_name_no_torch(module):
    assert not any(i.split(".")[0] in ("torch", "torchvision", "timm") for i in _imports(_modules()[module]))


def test_importing_the_torch_free_rooms_loads_no_torch():
    low = [f"bus_smp.{name}" for name in _modules() if name and _is_torch_free(name)]
    code = (
        f"import sys, importlib; [importlib.import_module(m) for m in {low!r}]; print('torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


def test_no_room_is_called_helpers():
    banned = {"utils", "helpers", "common", "misc", "core", "base"}
    assert not banned & {part for name in _modules() for part in name.split(".")}
