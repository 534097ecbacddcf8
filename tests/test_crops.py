"""Training windows are those of torchvision's RandomResizedCrop, evaluation windows those of its Resize and CenterCrop."""

from __future__ import annotations

import math
import os
import threading

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats

from multimix_pipe.augment.crop import TRIES, UNIFORMS_PER_CROP, centre_windows, random_flips, random_windows
from multimix_pipe.augment.host import apply_orientation, crop_whole, resize
from multimix_pipe.config import EvalTransform, TrainTransform
from multimix_pipe.plan.seeding import Stream, draw_words, uniform

SIDES = [1, 2, 3, 10, 97, 500, 1000, 65500]
TRANSFORMS = [
    TrainTransform(),
    TrainTransform(scale=(1.0, 1.0), ratio=(1.0, 1.0)),
    TrainTransform(scale=(1e-9, 1e-3)),
    TrainTransform(scale=(0.9, 1.0), ratio=(0.001, 0.01)),
    TrainTransform(scale=(0.01, 1.0), ratio=(50.0, 1000.0)),
    TrainTransform(ratio=(0.001, 1000.0)),
]


def scalar_window(u: NDArray[np.float64], width: int, height: int, transform: TrainTransform) -> tuple[int, ...]:
    """torchvision's RandomResizedCrop.get_params with its random numbers given: (top, left, height, width)."""
    log_low, log_high = (math.log(bound) for bound in transform.ratio)
    low, high = transform.scale
    for attempt in range(TRIES):
        target_area = height * width * (low + (high - low) * u[attempt])
        aspect_ratio = float(np.float32(math.exp(log_low + (log_high - log_low) * u[TRIES + attempt])))
        w = round(math.sqrt(target_area * aspect_ratio))
        h = round(math.sqrt(target_area / aspect_ratio))
        if 0 < w <= width and 0 < h <= height:
            top = math.floor(u[2 * TRIES] * (height - h + 1))
            left = math.floor(u[2 * TRIES + 1] * (width - w + 1))
            return top, left, h, w
    in_ratio = width / height
    if in_ratio < min(transform.ratio):
        w, h = width, round(width / min(transform.ratio))
    elif in_ratio > max(transform.ratio):
        w, h = round(height * max(transform.ratio)), height
    else:
        w, h = width, height
    w, h = max(w, 1), max(h, 1)  # torchvision returns an empty window there
    return (height - h) // 2, (width - w) // 2, h, w


def sizes(count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    width, height = np.meshgrid(SIDES, SIDES)
    repeats = -(-count // width.size)
    return np.tile(width.ravel(), repeats)[:count].astype(np.int64), np.tile(height.ravel(), repeats)[:count]


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_windows_equal_torchvisions_loop_over_the_same_uniforms(transform: TrainTransform) -> None:
    width, height = sizes(1280)
    draws = uniform(draw_words(0, Stream.CROP, 0, 0, len(width), UNIFORMS_PER_CROP))
    expected = [scalar_window(u, int(w), int(h), transform) for u, w, h in zip(draws, width, height, strict=True)]
    windows = random_windows(draws, width, height, transform)
    assert windows.dtype == np.float32
    assert np.array_equal(windows, np.array(expected, dtype=np.float32))


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_windows_are_whole_pixels_inside_the_image(transform: TrainTransform) -> None:
    width, height = sizes(1280)
    draws = uniform(draw_words(1, Stream.CROP, 0, 0, len(width), UNIFORMS_PER_CROP))
    windows = random_windows(draws, width, height, transform).astype(np.int64)
    assert np.array_equal(windows, random_windows(draws, width, height, transform))
    y, x, window_height, window_width = windows.T
    assert min(y.min(), x.min()) >= 0
    assert min(window_height.min(), window_width.min()) >= 1
    assert np.all(y + window_height <= height)
    assert np.all(x + window_width <= width)


def test_areas_ratios_and_corners_have_torchvisions_distribution() -> None:
    count, width, height = 6000, 500, 375
    draws = uniform(draw_words(2, Stream.CROP, 0, 0, count, UNIFORMS_PER_CROP))
    sides = np.full(count, width), np.full(count, height)
    ours = random_windows(draws, *sides, TrainTransform()).astype(np.float64)
    rng = np.random.default_rng(0)
    theirs = np.array([scalar_window(rng.random(22), width, height, TrainTransform()) for _ in range(count)])
    for name, value in {
        "area": lambda w: w[:, 2] * w[:, 3],
        "ratio": lambda w: w[:, 3] / w[:, 2],
        "y": lambda w: w[:, 0],
        "x": lambda w: w[:, 1],
    }.items():
        assert stats.ks_2samp(value(ours), value(theirs)).pvalue > 0.01, name


def test_a_square_image_has_uniform_areas_for_square_windows() -> None:
    count, side = 4000, 20_000
    draws = uniform(draw_words(3, Stream.CROP, 0, 0, count, UNIFORMS_PER_CROP))
    transform = TrainTransform(scale=(0.25, 1.0), ratio=(1.0, 1.0))
    windows = random_windows(draws, np.full(count, side), np.full(count, side), transform).astype(np.float64)
    assert np.array_equal(windows[:, 2], windows[:, 3])
    area = windows[:, 2] * windows[:, 3] / side**2
    assert stats.kstest(area, stats.uniform(0.25, 0.75).cdf).pvalue > 0.01


@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_flips_come_with_their_probability(probability: float) -> None:
    flips = random_flips(uniform(draw_words(0, Stream.CROP, 0, 0, 5000, UNIFORMS_PER_CROP)), probability)
    if probability in (0.0, 1.0):
        assert np.all(flips == bool(probability))
    assert abs(flips.mean() - probability) < 0.03


@pytest.mark.parametrize("antialias", [True, False])
def test_a_resized_window_is_written_pixel_by_pixel(antialias: bool) -> None:
    """torch writes planes if it does not recognise the memory format, which takes twice as long, and is then copied."""
    image = np.random.default_rng(0).integers(0, 256, (50, 60, 3), dtype=np.uint8)
    resized = resize(crop_whole(image, np.array([3, 7, 30, 40], np.float32)), 24, 25, antialias)
    assert resized.shape == (24, 25, 3)
    assert resized.flags.c_contiguous


@pytest.mark.parametrize("transform", [EvalTransform(), EvalTransform(size=(100, 37), resize=101)])
def test_evaluation_shows_what_torchvisions_resize_and_centre_crop_show(transform: EvalTransform) -> None:
    pairs = [(w, h) for w in (1, 37, 224, 256, 257, 333, 500, 1023, 4000) for h in (97, 255, 256, 500, 1024, 3999)]
    width, height = np.array(pairs).T
    for (w, h), window in zip(pairs, centre_windows(width, height, transform), strict=True):
        short, long = min(w, h), max(w, h)
        resized_long = int(transform.shorter_side * long / short)
        new_w, new_h = (transform.shorter_side, resized_long) if w <= h else (resized_long, transform.shorter_side)
        crop_h, crop_w = (min(size, side) for size, side in zip(transform.height_width, (new_h, new_w), strict=True))
        top, left = round((new_h - crop_h) / 2.0), round((new_w - crop_w) / 2.0)
        expected = (top * h / new_h, left * w / new_w, crop_h * h / new_h, crop_w * w / new_w)
        assert np.allclose(window, expected, rtol=1e-6, atol=0)


def test_an_evaluation_window_never_leaves_the_image() -> None:
    width, height = sizes(64)
    y, x, window_height, window_width = centre_windows(width, height, EvalTransform(size=(224, 400), resize=224)).T
    assert np.all(y >= 0)
    assert np.all(x >= 0)
    assert np.all(y + window_height <= height * (1 + 1e-6))
    assert np.all(x + window_width <= width * (1 + 1e-6))


@pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="no list of threads")
@pytest.mark.skipif(torch.get_num_threads() < 2, reason="torch uses one thread")
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("antialias", [True, False])
def test_resizing_starts_no_threads(antialias: bool, orientation: int) -> None:
    """torch would give each thread that resizes a window a team of OpenMP threads."""
    image, found = np.zeros((400, 500, 3), dtype=np.uint8), set[str]()
    window = apply_orientation(image, orientation)[20:350, 30:380]

    def resize_window() -> None:
        before = set(os.listdir("/proc/self/task"))
        resize(window, 64, 64, antialias)
        found.update(set(os.listdir("/proc/self/task")) - before)

    thread = threading.Thread(target=resize_window)
    thread.start()
    thread.join()
    assert not found
