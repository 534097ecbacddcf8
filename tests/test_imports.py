"""Promises about imports: layers import one way, DALI is named in one folder, and importing the package loads little.

`check` reads the source; its own test plants each kind of violation in a copy of the tree. What really gets loaded is
asked of fresh interpreters.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "multimix_pipe"

# A module may import from the rows above its own, and from its own folder; never from its neighbours in a row.
LAYERS = [
    {"errors"},
    {"config"},
    {"mixing", "augment", "shards"},
    {"plan"},
    {"runtime"},
    {"training"},
    {"dali", "native"},
    {"batch"},
    {"loader"},
    {"__init__"},
    {"verify"},
    {"cli"},
    {"__main__"},
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}

# Host operations in torch among the draws; all else in `plan`, `mixing` and `augment` is NumPy and SciPy.
TORCH_KERNELS = {"augment/host.py"}
NUMERIC = {"numpy", "scipy"}


def source_files(root: Path) -> list[Path]:
    return [path for top in (PACKAGE, "tests", "bench", "pipelines") for path in sorted((root / top).rglob("*.py"))]


def imports(root: Path, path: Path) -> Iterator[tuple[int, str]]:
    """Each import in a file, wherever it stands, as (line, absolute module name)."""
    parents = list(path.relative_to(root).parts[:-1])
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = parents[: len(parents) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            # `from multimix_pipe import plan` imports the module plan, `from multimix_pipe import MultiMix` a name
            for alias in node.names:
                at = root.joinpath(*module.split("."), alias.name)
                is_module = module == PACKAGE and (at.is_dir() or at.with_suffix(".py").is_file())
                yield node.lineno, f"{module}.{alias.name}" if is_module else module
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            name = getattr(node.func, "attr", getattr(node.func, "id", None))
            if name in ("import_module", "__import__") and isinstance(node.args[0].value, str):
                yield node.lineno, node.args[0].value


def layer_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def fault(where: str, module: str) -> str | None:
    """Why the file `where` (relative to the root) must not import `module`; None if it may."""
    top, *rest = where.split("/")
    outer = module.split(".")[0]
    named_there = where.startswith(f"{PACKAGE}/dali/") or top == "bench" or (top != PACKAGE and "dali" in rest[-1])
    if outer == "nvidia" and not named_there:
        return f"names nvidia outside {PACKAGE}/dali"
    if top != PACKAGE:
        recipe = top == "pipelines" and not where.startswith(f"{top}/evidence/")  # which measures, as bench does
        if recipe and outer == PACKAGE and module not in (PACKAGE, f"{PACKAGE}.dali"):
            return "is a recipe and uses more than the public API"
        return None
    if outer in ("tests", "bench", "pipelines"):
        return "imports what is built on the package"
    own = rest[0].removesuffix(".py")
    if outer == PACKAGE:
        target = layer_of(module)
        if not {own, target} <= RANK.keys():
            return f"has no layer for {own} or {target}: give it one in LAYERS of this test"
        return None if target == own or RANK[target] < RANK[own] else f"imports {target}, which is not below {own}"
    if own in ("plan", "mixing", "augment") and "/".join(rest) not in TORCH_KERNELS:
        return None if outer in NUMERIC | sys.stdlib_module_names else "imports more than NumPy and SciPy"
    return None


def check(root: Path) -> list[str]:
    """Each forbidden import below `root`, as `file:line: module: reason`."""
    found = []
    for path in source_files(root):
        where = path.relative_to(root).as_posix()
        for line, module in imports(root, path):
            reason = fault(where, module)
            if reason is not None:
                found.append(f"{where}:{line}: {module}: {reason}")
    return found


def python(code: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter that sees this source tree."""
    return subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=ROOT, capture_output=True, text=True)


def loaded_by(code: str) -> set[str]:
    """Top-level names that `code` adds to sys.modules in a fresh interpreter."""
    done = python(f"import sys; before = set(sys.modules)\n{code}\nprint(*(set(sys.modules) - before), sep='\\n')")
    assert done.returncode == 0, done.stderr
    return {name.split(".")[0] for name in done.stdout.split()}


def test_each_module_has_a_layer() -> None:
    modules = {path.name.removesuffix(".py") for path in (ROOT / PACKAGE).iterdir() if path.suffix == ".py"}
    folders = {path.name for path in (ROOT / PACKAGE).iterdir() if (path / "__init__.py").is_file()}
    assert modules | folders == set(RANK)


def test_imports_run_one_way_and_dali_is_named_in_one_folder() -> None:
    assert check(ROOT) == []


@pytest.fixture
def skeleton(tmp_path: Path) -> Path:
    """This source tree, in which all files are empty."""
    for path in source_files(ROOT):
        empty = tmp_path / path.relative_to(ROOT)
        empty.parent.mkdir(parents=True, exist_ok=True)
        empty.touch()
    assert check(tmp_path) == []
    return tmp_path


@pytest.mark.parametrize(
    ("where", "line", "reason"),
    [
        ("loader/loader.py", "import nvidia.dali", "names nvidia"),
        ("native/planted.py", "def late():\n    from nvidia.dali import fn", "names nvidia"),
        ("cli/planted.py", "from importlib import import_module\nimport_module('nvidia.dali')", "names nvidia"),
        ("../pipelines/planted.py", "import nvidia.dali.fn as fn", "names nvidia"),
        ("cli/planted_dali.py", "import nvidia.dali", "names nvidia"),
        ("loader/loader.py", "from multimix_pipe.cli import bench", "cli, which is not below loader"),
        ("plan/planted.py", "import torch", "more than NumPy and SciPy"),
        ("mixing/planted.py", "from torch import Tensor", "more than NumPy and SciPy"),
        ("plan/planted.py", "from multimix_pipe.loader import Loader", "loader, which is not below plan"),
        ("plan/planted.py", "from ..native import decode", "native, which is not below plan"),
        ("mixing/planted.py", "from .. import plan", "plan, which is not below mixing"),
        ("native/planted.py", "import multimix_pipe.dali", "dali, which is not below native"),
        ("dali/planted.py", "from multimix_pipe import native", "native, which is not below dali"),
        ("shards/planted.py", "from multimix_pipe import MultiMix", "__init__, which is not below shards"),
        ("errors.py", "from multimix_pipe.config import MultiMix", "config, which is not below errors"),
        ("loader/loader.py", "import pipelines.train_classifier", "imports what is built on"),
        ("../pipelines/planted.py", "from multimix_pipe.plan import Plan", "more than the public API"),
    ],
)
def test_the_checker_catches_what_is_planted(skeleton: Path, where: str, line: str, reason: str) -> None:
    planted = (skeleton / PACKAGE / where).resolve()
    planted.parent.mkdir(exist_ok=True)
    planted.write_text(line + "\n")
    (found,) = check(skeleton)
    assert found.startswith(planted.relative_to(skeleton.resolve()).as_posix())
    assert reason in found


@pytest.mark.parametrize(
    ("where", "line"),
    [
        ("dali/planted.py", "import nvidia.dali.fn"),
        ("../tests/test_dali_planted.py", "import nvidia.dali"),
        ("../bench/planted.py", "import nvidia.dali.fn as fn"),
        ("../pipelines/own_dali_planted.py", "from nvidia.dali import fn\nfrom multimix_pipe.dali import multi_mix"),
        ("plan/planted.py", "import numpy as np\nfrom scipy import special\nfrom multimix_pipe.plan import order"),
        ("loader/loader.py", "import torch\nfrom multimix_pipe import native, plan"),
    ],
)
def test_the_checker_lets_pass_what_is_allowed(skeleton: Path, where: str, line: str) -> None:
    planted = skeleton / PACKAGE / where
    planted.parent.mkdir(exist_ok=True)
    planted.write_text(line + "\n")
    assert check(skeleton) == []


def test_importing_the_package_loads_neither_dali_nor_webdataset_nor_torch() -> None:
    assert loaded_by(f"import {PACKAGE}") & {"nvidia", "webdataset", "torch", "simplejpeg", "PIL"} == set()


def test_the_public_names_load_neither_dali_nor_webdataset() -> None:
    loaded = loaded_by(f"import {PACKAGE} as m\nfor name in m.__all__: getattr(m, name)")
    assert "torch" in loaded
    assert loaded & {"nvidia", "webdataset"} == set()


def test_the_public_names_are_there_where_nvidia_does_not_import() -> None:
    # None in sys.modules makes `import nvidia` raise, as it does where nothing of that name is installed
    done = python(f"import sys; sys.modules['nvidia'] = None\nimport {PACKAGE} as m\nfor n in m.__all__: getattr(m, n)")
    assert done.returncode == 0, done.stderr


def test_plan_and_references_load_numpy_and_scipy_alone() -> None:
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for layer in ("plan", "mixing", "augment")
        for path in sorted((ROOT / PACKAGE / layer).rglob("*.py"))
        if path.relative_to(ROOT / PACKAGE).as_posix() not in TORCH_KERNELS
    ]
    assert len(modules) > 2
    loaded = loaded_by("\n".join(f"import {module}" for module in modules))
    assert "numpy" in loaded
    assert loaded & {"torch", "nvidia", "webdataset", "simplejpeg", "PIL", "tqdm"} == set()
