"""One road, one direction: a module imports only from what comes before it, and Ray stays where it belongs."""

import ast
from pathlib import Path

import pytest

from pipeline.config import ROOT

# From the start of the road to its end; a module may import from its own level and from those before it.
ROAD = [
    {"settings", "settings_base", "settings_checks", "settings_bivdiff"},
    {"config"},
    {"s3"},
    {"schema", "storage", "media", "cli", "local_cluster"},
    {"bridge"},
    {"models"},
    {"ray_start", "placement", "monitoring"},
    {"data"},
    {"train"},
    {"sampling", "metrics"},
    {"training_free"},
    {"report"},
    {"ablation"},
]
RAY = {
    "pipeline/data/cache.py",
    "pipeline/train/worker.py",
    "pipeline/train/checkpoint.py",
    "pipeline/ray_start.py",
    "pipeline/placement.py",
    "pipeline/monitoring.py",
}
RAY |= {"pipeline/train/failures.py", "pipeline/sampling/while_training.py"}
RAY |= {"pipeline/train/loop.py", "pipeline/sampling/batches.py"}
RAY |= {"pipeline/metrics/evaluate.py", "pipeline/ablation/run.py"}
PLAIN = {"ray", "deepspeed", "torch.distributed"}
MODULES = sorted(path for path in (ROOT / "pipeline").rglob("*.py"))


def imports(path: Path) -> set[str]:
    """Dotted names that the file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def level(name: str) -> int:
    return next(index for index, names in enumerate(ROAD) if name in names)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_module_imports_only_from_what_comes_before_it(path: Path) -> None:
    parts = path.relative_to(ROOT / "pipeline").with_suffix("").parts
    if parts == ("__init__",):
        assert not imports(path)
        return
    for name in imports(path):
        if name.startswith("pipeline."):
            assert level(name.split(".")[1]) <= level(parts[0]), f"{path.name} imports {name}, which comes later"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_ray_and_deepspeed_stay_in_their_adapters(path: Path) -> None:
    name = str(path.relative_to(ROOT))
    used = {top for top in PLAIN for dotted in imports(path) if dotted == top or dotted.startswith(top + ".")}
    if name.startswith(("pipeline/bridge/", "pipeline/models/")):
        assert not used, "plain PyTorch only"
    if name not in RAY:
        assert "ray" not in used
    if not name.startswith("pipeline/train/"):
        assert "deepspeed" not in used


def test_jobs_are_thin() -> None:
    for path in (ROOT / "jobs").glob("*.py"):
        tree = ast.parse(path.read_text())
        assert ast.get_docstring(tree), f"{path.name} has no docstring"
        lines = len(path.read_text().splitlines())
        assert lines <= (170 if path.name == "demo.py" else 120), f"{path.name} has {lines} lines"
