"""Fixtures that several test files use; `helpers` has all else that they share."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from helpers.backends import BACKENDS, dali_missing
from helpers.forks import Forks, fork_server
from helpers.samples import BAD, CLASSES, TRANSFORM, folder_from_environment, sample_set, write_shards
from multimix_pipe import Loader, open_loader
from multimix_pipe.shards.pack import pack

collect_ignore = ["trainers"]  # needs the trainers: `make test-trainers`


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    """Each backend in turn; DALI only where it imports."""
    if request.param == "dali" and (reason := dali_missing()):
        pytest.skip(reason)
    return str(request.param)


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of four tars, 100 samples of mixed formats and sizes, 7 classes. Do not write to it: use `own_shards`."""
    return write_shards(tmp_path_factory.mktemp("shards"), sample_set())


@pytest.fixture(scope="session")
def small_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `shards`, of images a quarter as wide and high: for tests that decode thousands and look at decisions."""
    return write_shards(tmp_path_factory.mktemp("small"), sample_set(4))


@pytest.fixture(scope="session")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    """Runs programs as forks of a server that has imported what takes seconds."""
    if not Path("/proc/self/task").is_dir():
        pytest.skip("needs /proc, and fork")
    with fork_server(tmp_path_factory.mktemp("forks")) as forks:
        yield forks


@pytest.fixture
def own_shards(shards: Path, tmp_path: Path) -> Path:
    """A copy of `shards` to damage."""
    return Path(shutil.copytree(shards, tmp_path / "own", ignore=shutil.ignore_patterns("*.index")))


@pytest.fixture
def bad_shards(tmp_path: Path) -> Path:
    """As `shards`, with the images of BAD cut behind their headers."""
    samples = [
        (key, extension, data[: len(data) * 7 // 10] if key in BAD else data) for key, extension, data in sample_set()
    ]
    return write_shards(tmp_path / "bad", samples)


@pytest.fixture
def opened(shards: Path) -> Iterator[Callable[..., Loader]]:
    """`open_loader` with small settings over `shards`; what it opened is closed after the test."""
    loaders: list[Loader] = []

    def make(source: Path = shards, **options: object) -> Loader:
        settings: dict[str, object] = {"batch_size": 8, "num_classes": CLASSES, "transform": TRANSFORM, "device": "cpu"}
        settings |= {"num_threads": 2, "rank": 0, "world_size": 1} | options
        loader = open_loader(source, **settings)  # type: ignore[arg-type]
        loaders.append(loader)
        return loader

    yield make
    for loader in loaders:
        loader.close()


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of real photos, packed from the folder of class/name.jpg in MULTIMIX_PHOTOS."""
    source = folder_from_environment("MULTIMIX_PHOTOS", "a folder of photos as class/name.jpg")
    out = tmp_path_factory.mktemp("photos")
    pack(source, out)
    return out
