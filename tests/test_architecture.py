"""The house: imports go down the floors only, and the storehouse knows no torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "bus_smp"

# Floor of each room; the longest matching prefix decides.
FLOORS = {
    "": 0,
    "outputs": 0,
    "synthetic": 1,
    "data": 1,
    "report": 1,
    "data.augment_albumentations": 2,
    "data.transforms": 2,
    "data.dataset": 2,
    "data.sampler": 2,
    "model": 2,
    "engine": 2,
    "ranks": 2,
    "environment": 2,
    "evaluation": 3,
    "training": 4,
    "benchmark": 4,
    "cli": 5,
    "__main__": 5,
    "commands": 5,
}


def _modules() -> dict[str, Path]:
    names = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        names[".".join(part for part in parts if part != "__init__")] = path
    return names


def _floor(module: str) -> int:
    parts = module.split(".")
    for length in range(len(parts), -1, -1):
        prefix = ".".join(parts[:length])
        if prefix in FLOORS and (prefix or module == "" or len(parts) == 1):
            return FLOORS[prefix]
    raise AssertionError(f"no floor for {module}")


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
    modules = _modules()
    wrong = [
        f"{name} (floor {_floor(name)}) imports {target} (floor {_floor(target)})"
        for name, path in modules.items()
        for target in (
            i.removeprefix("bus_smp").lstrip(".") for i in _imports(path) if i.split(".")[0] == "bus_smp"
        )
        if target in modules and _floor(target) > _floor(name)
    ]
    assert not wrong, "\n".join(wrong)


def test_albumentations_is_imported_in_one_file():
    users = [
        name
        for name, path in _modules().items()
        if any(i.startswith("albumentations") for i in _imports(path))
    ]
    assert users == ["data.augment_albumentations"]


@pytest.mark.parametrize("module", sorted(name for name in _modules() if _floor(name) <= 1 and name))
def test_words_storehouse_and_gallery_name_no_torch(module):
    assert not any(i.split(".")[0] in ("torch", "torchvision", "timm") for i in _imports(_modules()[module]))


def test_importing_the_whole_storehouse_and_gallery_loads_no_torch():
    low = [f"bus_smp.{name}" for name in _modules() if _floor(name) <= 1 and name]
    code = (
        f"import sys, importlib; [importlib.import_module(m) for m in {low!r}]; print('torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


def test_no_room_is_called_helpers():
    banned = {"utils", "helpers", "common", "misc", "core", "base"}
    assert not banned & {part for name in _modules() for part in name.split(".")}
