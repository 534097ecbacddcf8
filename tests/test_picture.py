"""Promises of the drawn curves: percent where a panel shows shares, and a demo that does without matplotlib."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from multimix_pipe.cli.demo.command import _draw_curves
from multimix_pipe.cli.picture import COLOURS, Panel, Row, draw_grid, draw_panels
from multimix_pipe.cli.preview import distinct_pairs
from multimix_pipe.errors import ConfigError

HISTORY = [
    {"epoch": epoch, "accuracy": 0.1 * epoch, "nll": 2.0 / epoch, "train_loss": 1.0 / epoch} for epoch in (1, 2, 4)
]
RUNS = [SimpleNamespace(name=name, history=HISTORY, steps=12) for name in ("multi-mix", "no mixing")]


def test_each_curve_is_drawn_in_its_colour(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    panels = [Panel("accuracy", "epoch", {"a": [(1, 0.1), (2, 0.9)], "b": [(1, 0.9), (2, 0.2)]}, percent=True)]
    draw_panels(panels, "12 steps", tmp_path / "folder" / "curve.png")
    with Image.open(tmp_path / "folder" / "curve.png") as picture:
        pixels = np.asarray(picture.convert("RGB"))
    for colour in COLOURS:
        assert (pixels == list(bytes.fromhex(colour[1:]))).all(axis=2).sum() > 100


def test_a_panel_of_shares_counts_in_percent(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    curve = {"a": [(1.0, 0.125), (2.0, 0.5)]}
    draw_panels([Panel("accuracy", "epoch", curve, percent=True)], "t", tmp_path / "percent.svg")
    draw_panels([Panel("loss", "epoch", curve)], "t", tmp_path / "plain.svg")
    percent, plain = ((tmp_path / name).read_text() for name in ("percent.svg", "plain.svg"))
    assert "<!-- a: 50.0% -->" in percent
    assert "<!-- a: 0.5 -->" in plain


def test_a_picture_that_cannot_be_written_is_one_of_our_errors(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    with pytest.raises(ConfigError, match="must be a picture file that can be written"):
        draw_panels([Panel("loss", "epoch", {"a": [(1.0, 1.0)]})], "t", tmp_path / "curve.unknown")


def test_without_matplotlib_there_are_no_curves_and_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)  # as where it is not installed
    assert not _draw_curves(tmp_path / "curve.png", SimpleNamespace(what="shapes"), RUNS)  # type: ignore[arg-type]
    assert not (tmp_path / "curve.png").exists()


def test_a_row_of_the_preview_begins_with_x_and_ends_with_its_partner(tmp_path: Path) -> None:
    tiles = np.stack([np.full((20, 20, 3), value, np.uint8) for value in (10, 60, 110, 160, 210)])
    row = Row(tiles, np.array([0.75, 0.5, 0.25], np.float32), "cat", "dog")
    pixels = np.asarray(draw_grid([row], "title"))
    middle = pixels[:, :, 0][np.argmax((pixels == 10).all(axis=2).sum(axis=1))]
    runs = [int(value) for i, value in enumerate(middle) if value in tiles[:, 0, 0, 0] and value != middle[i - 1]]
    assert runs == [10, 60, 110, 160, 210]


def test_pairs_of_a_preview_share_no_image_where_there_are_enough() -> None:
    for seed in range(50):
        partner = _cycle(12, seed)
        chosen = distinct_pairs(partner, np.arange(12), 4)
        assert len({*chosen, *partner[chosen].tolist()}) == 8
    assert len(distinct_pairs(_cycle(3, 0), np.zeros(3, np.int64), 2)) == 2


def _cycle(count: int, seed: int) -> np.ndarray:
    """A derangement: each of `count` rows has the next one of a random cycle as its partner."""
    cycle = np.random.default_rng(seed).permutation(count)
    partner = np.empty(count, np.int64)
    partner[cycle] = np.roll(cycle, -1)
    return partner
