"""Both backends, and verify with the decoder of each, judge odd and broken images the same, but for those listed here."""

from __future__ import annotations

import logging
import re
import tarfile
from pathlib import Path
from typing import Any

import pytest

from helpers.backends import dali_missing, needs_dali
from helpers.batches import Open, same_batch
from helpers.judgement import Outcome, check_images
from helpers.odd_images import odd_images
from helpers.samples import folder_from_environment
from helpers.tars import write_tar
from multimix_pipe import BadSampleError, TrainTransform

REFUSED_BY_INDEX = {
    "JPEG cut in its header",
    "JPEG of 65500x65500 pixels in its header",
    "JPEG of no height in its header",
    "nothing",
    "zeros",
    "junk",
    "PNG of 60000x60000 pixels in its header",
    "WebP cut at 50%",
    "GIF",
    "TIFF",
}
REFUSED_BY_BOTH = {
    *(f"JPEG cut at {part}%" for part in (99, 90, 70, 30)),
    "JPEG without its end mark",
    "JPEG cut at its first pixel",
    "JPEG with zeros from the middle on",
    *(f"progressive JPEG cut at {part}%" for part in (99, 50)),
    *(f"progressive JPEG with flipped bits, {seed}" for seed in (1, 2, 3)),
    "PNG cut at 50%",
    "PNG without its end mark",
    *(f"PNG with flipped bits, {seed}" for seed in (0, 1)),
    "PNG with a wrong checksum",
    "PNG of 8000x4000 pixels in its header",
    "BMP cut at 50%",
    "PPM cut at 50%",
}
"""When all of the image is decoded."""
REFUSED_BY_TORCH = {"JPEG with an unknown marker in the middle", "JPEG with junk from the middle on"}
"""DALI fills the rest with gray."""

CUT = {"torch": "bad bad bad", "dali": "bad ok bad"}
GRAY = {"torch": "bad bad bad", "dali": "ok ok ok"}
DIFFERING = {
    "JPEG cut at 99%": CUT,
    "JPEG cut at 90%": CUT,
    "JPEG cut at 70%": CUT,
    "JPEG without its end mark": CUT,
    "JPEG with zeros from the middle on": CUT,
    **dict.fromkeys(REFUSED_BY_TORCH, GRAY),
}
"""What each backend says of the whole, of a window at the top and of one at the bottom, where they do not say the same."""
DIFFERING_OF_ODD = {
    "pillow__jpeg_ff00_header.jpg": {"torch": "ok ok ok", "dali": "bad bad bad"},
    "zune__incomplete_image.jpg": CUT,
}

COLOURS = {"CMYK JPEG": 1.3, "YCCK JPEG": 1.3}
NEGATIVE = {"CMYK JPEG without Adobe's mark": 255.0}
"""Adobe's negative to libjpeg-turbo and Pillow, which expect no other; plain CMYK to DALI."""
SIXTEEN_BITS = {"16-bit grayscale PNG": 0.5, "16-bit PNG": 0.5, "16-bit PNG with alpha": 0.5}
APART = COLOURS | NEGATIVE | SIXTEEN_BITS
"""Most that the pixels of the backends differ by, of 255, where they do: another conversion to RGB, another rounding."""

WHOLE = TrainTransform(size=8, scale=(1.0, 1.0), ratio=(0.2, 5.0))


@pytest.fixture(scope="module")
def images() -> dict[str, bytes]:
    return odd_images()


@pytest.fixture(scope="module")
def judged(images: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> list[Outcome]:
    if reason := dali_missing():
        pytest.skip(reason)
    return check_images(images, tmp_path_factory.mktemp("judged"))


def differing(rows: list[Outcome]) -> dict[str, dict[str, str]]:
    return {
        row.name: {backend: " ".join(told.values()) for backend, told in row.backends.items()}
        for row in rows
        if row.differs
    }


def refused(backend: str) -> set[str]:
    return REFUSED_BY_INDEX | REFUSED_BY_BOTH | (REFUSED_BY_TORCH if backend == "torch" else set())


def test_the_same_images_are_generated_every_time(images: dict[str, bytes]) -> None:
    assert odd_images() == images


def test_backends_judge_the_same_but_for_what_is_listed(judged: list[Outcome]) -> None:
    assert differing(judged) == DIFFERING


@pytest.mark.parametrize("backend", ["torch", "dali"])
def test_what_is_refused_is_what_is_listed(judged: list[Outcome], backend: str) -> None:
    said = {row.name: row.backends[backend]["whole"] for row in judged}
    assert {name for name, told in said.items() if told == "index"} == REFUSED_BY_INDEX
    assert {name for name, told in said.items() if told != "ok"} == refused(backend)


@pytest.mark.parametrize("backend", ["torch", "dali"])
def test_verify_finds_what_a_backend_refuses_of_whole_images_and_nothing_else(
    judged: list[Outcome], backend: str
) -> None:
    assert {row.name: row.verify[backend] for row in judged} == {
        row.name: row.backends[backend]["whole"] for row in judged
    }


@pytest.mark.parametrize("backend", ["torch", "dali"])
def test_what_decodes_as_a_whole_decodes_in_every_window(judged: list[Outcome], backend: str) -> None:
    for row in judged:
        if row.backends[backend]["whole"] == "ok":
            assert set(row.backends[backend].values()) == {"ok"}, row.name


def test_what_both_take_has_the_same_pixels(judged: list[Outcome]) -> None:
    apart = {row.name: row.difference for row in judged if row.difference is not None}
    assert len(apart) > 30
    assert {name for name, difference in apart.items() if difference > 0.005} == APART.keys()
    assert all(apart[name] < most for name, most in APART.items())


@needs_dali
def test_backends_judge_a_zoo_of_real_files_the_same_but_for_two(tmp_path: Path) -> None:
    zoo = folder_from_environment("MULTIMIX_ODD", "a folder of odd and broken images")
    images = {path.name: path.read_bytes() for path in sorted(zoo.iterdir()) if path.suffix != ".tsv"}
    rows = check_images(images, tmp_path)
    assert differing(rows) == DIFFERING_OF_ODD


# each kind in a loader


@pytest.fixture(scope="module")
def odd_shard(images: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sample of each kind, its name as key."""
    members = []
    for name, data in images.items():
        members += [(f"{name}.jpg", data), (f"{name}.cls", b"1")]
    return write_tar(tmp_path_factory.mktemp("odd") / "odd.tar", members, format=tarfile.PAX_FORMAT)


def in_order(opened: Open, shard: Path, backend: str, **options: object) -> Any:
    settings: dict[str, object] = {"batch_size": 1, "shuffle": "none", "mix": None, "transform": WHOLE}
    return opened(shard, backend=backend, **settings | options)


def test_under_raise_each_bad_kind_is_named_with_its_cause(
    opened: Open, odd_shard: Path, images: dict[str, bytes], backend: str
) -> None:
    loader = in_order(opened, odd_shard, backend, prefetch=1)
    state = loader.state_dict()
    errors: dict[str, str] = {}
    for position, name in enumerate(images):
        loader.load_state_dict({**state, "samples": position, "steps": position})
        try:
            assert next(iter(loader)).keys == [name]
        except BadSampleError as error:
            errors[name] = str(error)
    assert errors.keys() == refused(backend)
    for name, told in errors.items():
        assert re.match(rf"odd\.tar : {re.escape(name)}: .{{10,}}\. Leave it out ", told), told


def test_under_replace_each_bad_kind_is_counted_and_logged_once_and_the_run_goes_on(
    opened: Open, odd_shard: Path, images: dict[str, bytes], backend: str, caplog: pytest.LogCaptureFixture
) -> None:
    options: dict[str, object] = {"batch_size": 16, "on_bad_sample": "replace", "last_batch": "partial"}
    first, again = (in_order(opened, odd_shard, backend, **options) for _ in range(2))
    with caplog.at_level(logging.WARNING):
        batches = [batch for _ in range(2) for batch in first]
    names = {f"odd.tar : {name}" for name in refused(backend)}
    assert first.bad_samples.keys() == names
    assert all(len(reason) > 10 for reason in first.bad_samples.values())
    logged = [message for message in caplog.messages if message.startswith("bad sample replaced: ")]
    assert sorted(logged) == sorted(f"bad sample replaced: {name}: {told}" for name, told in first.bad_samples.items())
    for found, expected in zip(batches[: len(first)], again, strict=True):
        assert same_batch(found, expected)
    keys = [key for batch in batches[: len(first)] for key in batch.keys]
    assert [key for key in keys if key in refused(backend)] == []
    assert [key for key, name in zip(keys, images, strict=True) if key == name] == [
        name for name in images if name not in refused(backend)
    ]


def test_under_replace_the_run_ends_where_one_more_is_bad_than_allowed(
    opened: Open, odd_shard: Path, backend: str
) -> None:
    options: dict[str, object] = {"batch_size": 16, "on_bad_sample": "replace", "last_batch": "partial"}
    count = len(refused(backend))
    assert len(list(in_order(opened, odd_shard, backend, max_bad=count, **options))) == 5
    with pytest.raises(
        BadSampleError, match=f"{count} bad samples found, max_bad={count - 1} allowed; the last one: odd"
    ):
        list(in_order(opened, odd_shard, backend, max_bad=count - 1, **options))
