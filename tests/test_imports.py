"""The house: imports go one way, the heavy libraries stay in their rooms, and tests share through tests/support/."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "spanbert_jax"

# Each room may import itself and the rooms that are named.
_BASE = {"errors", "version", "config", "files", "json_files", "signals", "batch"}
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "json_files": set(),
    "version": set(),
    "config": {"errors"},
    "batch": {"config"},
    "config_check": {"config", "errors", "text"},
    "files": {"errors"},
    "signals": set(),
    "cli": {"errors", "files", "signals", "text"},
    "tensorflow_settings": set(),
    "text": {"errors", "config", "files", "json_files", "signals"},
    "metrics": {"errors"},
    "batches": _BASE,
    "corpus": {*_BASE, "tensorflow_settings", "text", "batches"},
    "convert": {*_BASE, "tensorflow_settings", "text"},
    "model": {"batch", "config", "errors"},
    "training": {*_BASE, "batches", "model"},
    "tasks": {*_BASE, "text", "metrics", "batches", "corpus", "convert", "model", "training"},
    "serving": {*_BASE, "text", "batches", "convert", "model", "training", "tasks"},
    "service": {"errors", "version", "signals", "text", "serving", "tasks"},
    "serve": {"cli", "errors", "serving", "service"},
    "runs": {*_BASE, "config_check", "text", "batches", "corpus", "convert", "model", "training", "tasks", "serving"},
    "main": {"cli", "config", "config_check", "errors", "training", "tasks", "runs"},
}
ROOMS = {
    "apache_beam": ("corpus/build_on_beam.py", "corpus/beam_inputs.py"),
    "tensorflow": ("corpus/", "convert/tensorflow_checkpoint.py", "serving/saved_model.py"),
    "tensorflow_datasets": ("corpus/", "tasks/example_files.py"),
    "array_record": ("corpus/",),
    "flax": ("model/",),
    "orbax": ("training/checkpoint.py",),
    "torch": ("convert/pytorch_pickle.py",),  # which reads its pickles where it is installed
    "transformers": (),
    **dict.fromkeys(("starlette", "uvicorn", "msgspec", "orjson"), ("service/",)),
}


def modules() -> list[Path]:
    return [path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"]


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_one_way(path: Path) -> None:
    room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for name in imported(path):
        assert name != "spanbert_jax", f"{path} imports the package's Python interface, which stands above all rooms"
        if name.startswith("spanbert_jax."):
            assert name.split(".")[1] in ALLOWED[room] | {room}, f"{path} imports {name}"


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_heavy_libraries_stay_in_their_rooms(path: Path) -> None:
    place = str(path.relative_to(PACKAGE))
    for name in imported(path):
        rooms = ROOMS.get(name.split(".")[0])
        assert rooms is None or any(place.startswith(room) for room in rooms), f"{place} imports {name}"


def test_tests_take_from_each_other_through_tests_support_alone() -> None:
    """Test modules can be moved and renamed freely. A script in a string, for a process of its own, counts too."""
    other = re.compile(r"\b(?:from|import) (?:test_\w|tests(?: import (?!support\b)|\.(?!support\b)\w)).*")
    found = {
        f"{path.relative_to(ROOT)}: {line[0]}"
        for path in (ROOT / "tests").rglob("*.py")
        for line in other.finditer(path.read_text())
    }
    assert found == set()


def test_tests_use_no_private_name_of_the_program() -> None:
    """A private name can be renamed freely: no test reads one, imports one or patches one."""
    private = re.compile(r"_(?!_)\w+")
    found = set()
    for path in (ROOT / "tests").rglob("*.py"):
        nodes = list(ast.walk(ast.parse(path.read_text())))
        imports = [node for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)]
        ours = {
            alias.asname or alias.name
            for node in imports
            for alias in node.names
            if (getattr(node, "module", None) or alias.name).split(".")[0] in ("spanbert_jax", "tools", "benchmarks")
        }
        for node in nodes:
            names: list[str] = []
            if isinstance(node, ast.ImportFrom):
                names = [alias.name for alias in node.names if alias.name in ours]
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in ours:
                names = [node.attr]
            elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Name):
                patched = node.args[1:2] if node.args[0].id in ours else []
                names = [arg.value for arg in patched if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
            found |= {f"{path.relative_to(ROOT)}: {name}" for name in names if private.fullmatch(name)}
    assert found == set()


def test_model_training_and_the_objective_run_a_step_without_tensorflow() -> None:
    script = """
import sys
for name in ("tensorflow", "tensorflow_datasets", "array_record", "ml_collections", "torch", "transformers"):
    sys.modules[name] = None  # an import raises ImportError
import importlib, pathlib
for path in sorted(pathlib.Path("spanbert_jax").glob("*/**/*.py")):
    if path.parts[1] in ("model", "training") or path.stem == "pretraining_loss":
        importlib.import_module(".".join(path.with_suffix("").parts))
from tests.support.synthetic import small_config
from tests.support.steps import losses
print(losses(small_config(), 1))
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.strip("[]\n")) > 0
