"""One road, one direction: a module imports only from what comes before it, and Ray stays where it belongs."""

import ast
import graphlib
from pathlib import Path

import pytest

from pipeline.settings import ROOT

# From the start of the road to its end: a module may import from its own folder and from those before it.
ROAD = [
    "errors",
    "settings",
    "schema",
    "storage",
    "media",
    "runtime",
    "bridge",
    "models",
    "data",
    "train",
    "shipped",
    "sampling",
    "metrics",
    "bivdiff",
    "report",
]
# The same within folders: a folder's own modules may import from all of its rooms, and a room from those before it.
ROOMS = {
    "data": ["plan", "decode", "cache", "load"],
    "models": ["checkpoints", "files"],
    "train": ["report", "deepspeed", "export"],
}
RAY = {
    "pipeline/runtime/connect.py",
    "pipeline/runtime/placement.py",
    "pipeline/runtime/metrics.py",
    "pipeline/runtime/pools.py",
    "pipeline/runtime/ray_internals.py",
    "pipeline/data/cache/pipeline.py",
    "pipeline/data/cache/run.py",  # for types
    "pipeline/train/run.py",
    "pipeline/train/worker.py",
    "pipeline/train/checkpoint.py",
    "pipeline/train/failures.py",
    "pipeline/sampling/batches.py",
    "pipeline/sampling/while_training.py",
    "pipeline/metrics/evaluate.py",
    "experiments/ablation/run.py",
}
PLAIN = {"ray", "deepspeed", "torch.distributed"}
MODULES = sorted(path for top in ("pipeline", "experiments") for path in (ROOT / top).rglob("*.py"))
NAMES = {path: ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in MODULES}
KNOWN = set(NAMES.values())


def imports(path: Path) -> set[str]:
    """Dotted names that the file imports, anywhere in it, in full."""
    found = set()
    name = NAMES[path]
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            found |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return found


def modules_imported(path: Path) -> set[str]:
    """Modules of this project that the file imports, those for types included."""
    return {name for name in imports(path) if name in KNOWN and name != NAMES[path]}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_module_imports_only_from_what_comes_before_it(path: Path) -> None:
    top, _, rest = NAMES[path].partition(".")
    own = rest.split(".")[0]
    for name in imports(path):
        found = name.split(".")
        if found[0] not in ("pipeline", "experiments") or len(found) == 1 or name == NAMES[path]:
            continue
        if top == "experiments":
            continue  # may use all of the library
        assert found[0] == "pipeline", f"{path.name} imports {name}, which is outside the library"
        if not own:
            continue  # the package's own page offers names from all of the road, and imports none until it is used
        assert ROAD.index(found[1]) <= ROAD.index(own), f"{path.name} imports {name}, which comes later"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_room_imports_only_from_rooms_before_it(path: Path) -> None:
    parts = NAMES[path].split(".")
    rooms = ROOMS.get(parts[1], []) if len(parts) > 2 else []
    if len(parts) < 3 or parts[2] not in rooms:
        return
    for name in modules_imported(path):
        found = name.split(".")
        if found[:2] == parts[:2] and len(found) > 2 and found[2] in rooms:
            assert rooms.index(found[2]) <= rooms.index(parts[2]), f"{path.name} imports {name}, which comes later"


def test_no_module_imports_itself_through_others() -> None:
    """Packages count as their own `__init__.py`; imports for types and within functions count as well."""
    graph = {NAMES[path]: modules_imported(path) for path in MODULES}
    packages = {NAMES[path] for path in MODULES if path.name == "__init__.py"}
    graph = {name: found - packages for name, found in graph.items()}
    try:
        tuple(graphlib.TopologicalSorter(graph).static_order())
    except graphlib.CycleError as error:
        pytest.fail(" <- ".join(error.args[1]))


def test_imports_inside_the_package_are_relative() -> None:
    """Installed, the package is called framebridge."""
    for path in (ROOT / "pipeline").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level and node.module:
                names = [node.module]
            assert not [name for name in names if name.split(".")[0] in ("pipeline", "experiments")], path


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_ray_and_deepspeed_stay_in_their_adapters(path: Path) -> None:
    name = str(path.relative_to(ROOT))
    used = {top for top in PLAIN for dotted in imports(path) if dotted == top or dotted.startswith(top + ".")}
    if name.startswith(("pipeline/bridge/", "pipeline/models/")):
        assert not used, "plain PyTorch only"
    if name not in RAY:
        assert "ray" not in used
    if not name.startswith("pipeline/train/deepspeed/"):
        assert "deepspeed" not in used


def test_private_modules_of_ray_are_imported_in_one_file_only() -> None:
    for path in [*MODULES, *(ROOT / "jobs").glob("*.py")]:
        if path != ROOT / "pipeline" / "runtime" / "ray_internals.py":
            tree = ast.walk(ast.parse(path.read_text()))
            names = {node.module for node in tree if isinstance(node, ast.ImportFrom) and node.module}
            private = [name for name in names if name.startswith("ray.") and ("._" in name or "internal" in name)]
            assert not private, f"{path.name} imports {private}"


def test_jobs_are_thin() -> None:
    for path in (ROOT / "jobs").glob("*.py"):
        tree = ast.parse(path.read_text())
        assert ast.get_docstring(tree), f"{path.name} has no docstring"
        lines = len(path.read_text().splitlines())
        assert lines <= (140 if path.name == "demo.py" else 100), f"{path.name} has {lines} lines"
