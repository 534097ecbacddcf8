"""What README and docs show works: the blocks of a page run in order, as one session, beside a small image folder.

A page is a session: its `python` blocks share one namespace, its `sh` blocks run in bash, all in one temporary folder. That
folder holds `images/{train,val}/{cat,dog,fox}/*.jpg`, this repository's `pipelines/`, and, for pages of docs/, the `shards/`
that the README's quickstart makes of those images.

A block that cannot run here follows a line `<!-- not run: WHY -->`; its syntax is checked all the same. What a page needs and a
reader does not stands in a comment `<!-- setup` ... `-->` of Python.
"""

from __future__ import annotations

import ast
import gc
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

import multimix_pipe
from multimix_pipe.loader.backend import dali_import_error
from multimix_pipe.mixing import METHODS
from multimix_pipe.shards.pack import pack

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
GUIDES = sorted((ROOT / "docs").rglob("*.md"))
PAGES = [README, *GUIDES]
CLASSES = ("cat", "dog", "fox")

BLOCK = re.compile(
    r"^(?:<!-- not run: (?P<why>[^\n]+) -->\n)?^```(?P<language>python|sh)\n(?P<code>.*?)^```$"
    r"|^<!-- setup\n(?P<setup>.*?)^-->$",
    re.MULTILINE | re.DOTALL,
)
LINK = re.compile(r"\]\((?!https?:|#)(?P<path>[^)#\s]+)[^)]*\)")
TEST_NAME = re.compile(r"`(test_\w+)`")


class Block(NamedTuple):
    """A piece of a page's session."""

    page: Path
    line: int
    """Of the page, at which `code` begins."""
    language: str
    code: str
    runs: bool

    @property
    def place(self) -> str:
        """`file:line`."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text(encoding="utf-8")
    for found in BLOCK.finditer(text):
        group = "setup" if found["code"] is None else "code"
        line = text.count("\n", 0, found.start(group)) + 1
        yield Block(page, line, found["language"] or "python", found[group], not found["why"])


def name(page: Path) -> str:
    return page.relative_to(ROOT).with_suffix("").as_posix()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with images/ and shards/: 36 images to train on, 12 to evaluate on."""
    folder = tmp_path_factory.mktemp("docs")
    noise = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 4)):
        for label, animal in enumerate(CLASSES):
            place = folder / "images" / split / animal
            place.mkdir(parents=True)
            for number in range(count):
                pixels = noise.integers(0, 120, (6, 8, 3), dtype=np.uint8)
                pixels[..., label] += 120
                Image.fromarray(pixels).resize((96, 72), Image.Resampling.BICUBIC).save(place / f"{number:03}.jpg")
    pack(folder / "images", folder / "shards", progress=False)
    return folder


@pytest.fixture
def session(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of a session, as the working directory."""
    (tmp_path / "pipelines").symlink_to(ROOT / "pipelines")
    shutil.copytree(made / "images", tmp_path / "images")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # the pages' small models are on the CPU
    methods = dict(METHODS)
    yield tmp_path
    METHODS.clear()  # a page may register one
    METHODS.update(methods)


def run_page(page: Path, folder: Path) -> dict[str, Any]:
    """Run the blocks of `page`; the names that its Python blocks leave."""
    if dali_import_error() is not None and re.search(r"nvidia\.dali|multimix_pipe\.dali", page.read_text("utf-8")):
        pytest.skip("needs DALI")
    names: dict[str, Any] = {"__name__": "__page__"}
    for block in blocks(page):
        if not block.runs:
            continue
        if block.language == "sh":
            run_shell(block, folder)
        else:
            # as many line ends before it as the page has, so that a traceback shows the page's line
            code = compile("\n" * (block.line - 1) + block.code, str(page), "exec", dont_inherit=True)
            exec(code, names)
    return names


def run_shell(block: Block, folder: Path) -> None:
    environment = {
        **os.environ,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
        "PYTHONPATH": str(ROOT),
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block.code],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, f"{block.place}\n{block.code}\n{done.stdout}{done.stderr}"


def close_loaders(names: dict[str, Any]) -> None:
    for value in names.values():
        if hasattr(value, "load_state_dict") and hasattr(value, "close"):
            value.close()
    names.clear()
    gc.collect()


def test_the_readme_goes_from_a_folder_of_images_to_a_trained_model(session: Path) -> None:
    names = run_page(README, session)
    assert (session / "shards" / "train" / "classes.json").is_file()
    assert (session / "grid.png").is_file()
    assert names["train"].classes == CLASSES
    close_loaders(names)


@pytest.mark.parametrize("page", [page for page in GUIDES if any(blocks(page))], ids=name)
def test_a_page_of_the_docs_runs_from_top_to_bottom(page: Path, made: Path, session: Path) -> None:
    shutil.copytree(made / "shards", session / "shards")
    close_loaders(run_page(page, session))


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_block_is_found_and_is_python_or_shell(page: Path) -> None:
    found = list(blocks(page))
    text = page.read_text(encoding="utf-8")
    fences = re.findall(r"^ *```+ *(?:python|sh|bash|console|py|pycon)\b", text, re.MULTILINE)
    setups = len(re.findall("<!-- setup", text))
    assert len(found) == len(fences) + setups, "a block is indented, or its mark is not on the line before it"
    for block in found:
        if block.language == "python":
            compile(block.code, block.place, "exec")
        else:
            subprocess.run(["bash", "-n", "-c", block.code], check=True)


def test_few_blocks_are_not_run() -> None:
    every = [block for page in PAGES for block in blocks(page)]
    assert sum(block.runs for block in every) > 0.8 * len(every)


def test_the_readme_has_at_most_150_lines() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 150


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "bench" / "README.md"], ids=name)
def test_links_lead_to_files_that_are_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    missing = [path for path in LINK.findall(text) if not (page.parent / path).exists()]
    assert not missing


def test_the_tests_that_hold_a_promise_are_there() -> None:
    tests = {path.stem: path.read_text(encoding="utf-8") for path in (ROOT / "tests").glob("test_*.py")}
    named = set(TEST_NAME.findall((ROOT / "docs" / "reference" / "promises.md").read_text(encoding="utf-8")))
    assert named, "the promises name no tests"
    missing = [test for test in named if not any(f"def {test}(" in text for text in tests.values())]
    assert not missing


def test_the_api_reference_has_every_public_name() -> None:
    text = (ROOT / "docs" / "reference" / "api.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"^\.\. auto\w+:: multimix_pipe\.(?:dali\.)?(\w+)", text, re.MULTILINE))
    stage = ast.parse((ROOT / "multimix_pipe" / "dali" / "__init__.py").read_text(encoding="utf-8"))
    (names,) = [node.value for node in stage.body if isinstance(node, ast.Assign)]
    assert {*multimix_pipe.__all__, *ast.literal_eval(names)} <= documented
