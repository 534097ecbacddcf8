"""Promises of the command: one line for what a user can mend, quick help, a preview that shows what the loader gives."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torch import Tensor

from multimix_pipe import EvalTransform, MultiMix, TrainTransform, __version__, open_loader
from multimix_pipe.cli import main
from multimix_pipe.cli.demo.shapes import OUTLINES, write_shapes
from multimix_pipe.cli.picture import _outlined, to_pixels
from multimix_pipe.cli.preview import distinct_pairs
from multimix_pipe.runtime.tensors import MixTensors
from multimix_pipe.shards.pack import pack

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shapes")
    write_shapes(folder / "images", 2, 1, progress=False)
    pack(folder / "images", folder / "shards", progress=False)
    return folder / "shards" / "train"


def command(*argv: str) -> subprocess.CompletedProcess[str]:
    """The command in a fresh interpreter in which a warning is an error."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "multimix_pipe", *argv], cwd=ROOT, capture_output=True, text=True
    )


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["preview", "nowhere.tar", "-o", "grid.png"], "nowhere.tar"),
        (["preview", "nowhere.tar", "-o", "grid.png", "--k", "0"], "MultiMix.k must be an int in [1, 1024]; found 0"),
        (["preview", "nowhere.tar"], "-o/--out"),
        (["preview", "nowhere.tar", "-o", "grid.png", "--alpha", "x"], "invalid float value: 'x'"),
        (
            ["demo", "--data", "nowhere.zip", "--epochs", "-1"],
            "--epochs must be a finite number in (0, 10000]; found -1.0",
        ),
        (["demo", "--data", "nowhere.zip"], "nowhere.zip"),
        (["demo", "--epochs", "1", "--minutes", "1"], "not allowed with argument"),
        (["demo", "--test-data", "nowhere.tar"], "--test-data needs --data"),
        (["pack", "nowhere", "out"], "nowhere: required a folder, zip or tar"),
        (["bake"], "invalid choice: 'bake'"),
        ([], "COMMAND"),
    ],
)
def test_what_cannot_work_is_one_line_and_status_2(
    argv: list[str], says: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(argv) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert len(printed.err.splitlines()) == 1
    assert "error: " in printed.err
    assert says in printed.err


def test_verbose_tells_an_error_in_full_on_either_side_of_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    for argv in (["-v", "index", "nowhere.tar"], ["index", "nowhere.tar", "-v"]):
        assert main(argv) == 2
        assert "Traceback" in capsys.readouterr().err


def test_an_interrupt_is_one_line_and_status_130(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(args: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("multimix_pipe.cli.index.run", interrupt)
    assert main(["index", "anything.tar"]) == 130
    assert capsys.readouterr().err.strip() == "multimix-pipe: interrupted"


def test_a_closed_pipe_is_no_traceback(shards: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "multimix_pipe", "index", str(shards)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    errors = process.stderr.read()
    process.stderr.close()
    process.wait()
    assert "Traceback" not in errors
    assert process.returncode == 1


def test_help_names_the_commands_and_loads_no_torch() -> None:
    code = (
        "import sys; from multimix_pipe.cli import main; status = main(['--help'])\n"
        "print(sorted({'torch', 'nvidia', 'webdataset', 'scipy'} & set(sys.modules)), status)"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[] 0", done.stderr
    for name in ("demo", "pack", "index", "verify", "preview", "report", "doctor"):
        assert f"\n    {name} " in done.stdout


def test_python_m_tells_the_version() -> None:
    done = command("--version")
    assert (done.returncode, done.stdout) == (0, f"multimix-pipe {__version__}\n")


def test_log_lines_go_to_stderr_and_the_handler_is_gone_afterwards(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        assert main(["preview", str(shards), "-o", str(tmp_path / "a.png"), "--backend", "torch", "--size", "16"]) == 0
        assert capsys.readouterr().err.count("multimix-pipe: 20 samples, backend torch on cpu") == 1  # of two alike


def test_doctor_finds_nothing_wrong_here() -> None:
    done = command("doctor")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "FAIL" not in done.stdout
    assert "OK   torch on cpu: decodes 10 images and mixes them 5 ways" in done.stdout
    assert done.stderr == ""


def test_doctor_fails_where_a_backend_does_not_mix_as_the_reference_does(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from multimix_pipe.runtime.kernels import host

    right = host.blend

    def wrong(images: Tensor, mix: MixTensors | None, *rest: Any) -> None:
        right(images, mix and replace(mix, lam=1 - mix.lam), *rest)

    monkeypatch.setattr(host, "blend", wrong)
    assert main(["doctor"]) == 1
    assert "FAIL torch on cpu: decodes" in capsys.readouterr().out


def test_preview_shows_the_rows_of_the_loader_from_x_to_its_partner(shards: Path, tmp_path: Path) -> None:
    pairs, k, size = 6, 5, 48
    argv = ["preview", str(shards), "-o", str(tmp_path / "grid.png"), "--pairs", str(pairs), "--k", str(k)]
    argv += ["--size", str(size), "--seed", "3", "--backend", "torch", "--sampling", "stratified"]
    assert main(argv) == 0
    picture = np.asarray(Image.open(tmp_path / "grid.png").convert("RGB")).astype(int)

    settings = {"num_classes": len(OUTLINES), "seed": 3, "backend": "torch", "batch_size": 3 * pairs}
    transform = TrainTransform(size=size)
    mix = MultiMix(k=k, sampling="stratified")
    mixed = next(iter(open_loader(shards, mix=mix, transform=transform, **settings)))
    plain = next(iter(open_loader(shards, mix=mix, transform=transform, expand=False, **settings)))
    tiles = to_pixels(mixed.images.numpy(), transform).reshape(3 * pairs, k, size, size, 3).astype(int)
    images = to_pixels(plain.images.numpy(), transform).astype(int)

    chosen = distinct_pairs(mixed.plan.partner, mixed.plan.sample, pairs)
    assert len({*chosen, *mixed.plan.partner[chosen].tolist()}) == 2 * pairs
    ys, x0, step = locate(picture, tiles[chosen])
    assert len(ys) == pairs
    for b, y in zip(chosen, ys, strict=True):
        shown = [picture[y : y + size, x0 + i * step : x0 + i * step + size] for i in range(k)]
        assert all(np.array_equal(tile, wanted) for tile, wanted in zip(shown, tiles[b], strict=True))
        own, other = images[b], images[mixed.plan.partner[b]]
        at_x, at_other = (x0 + i * step + gap for i, gap in ((-1, -10), (k, 10)))  # the ends are set apart
        assert np.array_equal(picture[y : y + size, at_x : at_x + size], own)
        assert np.array_equal(picture[y : y + size, at_other : at_other + size], other)
        to_own = [np.abs(tile - own).mean() for tile in shown]
        to_other = [np.abs(tile - other).mean() for tile in shown]
        assert to_own[0] < to_other[0]
        assert to_own[-1] > to_other[-1]
        assert to_own == sorted(to_own)


def test_preview_shows_a_crop_of_each_member(shards: Path, tmp_path: Path) -> None:
    argv = ["preview", str(shards), "-o", str(tmp_path / "grid.png"), "--pairs", "2", "--k", "3", "--crops", "each"]
    assert main([*argv, "--size", "48", "--backend", "torch"]) == 0
    picture = np.asarray(Image.open(tmp_path / "grid.png").convert("RGB")).astype(int)
    transform, mix = TrainTransform(size=48), MultiMix(k=3, crops="each")
    settings: dict[str, Any] = {"num_classes": len(OUTLINES), "backend": "torch", "batch_size": 6, "mix": mix}
    loaders = [open_loader(shards, transform=transform, expand=expand, **settings) for expand in (True, False)]
    mixed, plain = (next(iter(loader)) for loader in loaders)
    tiles, crops = (
        to_pixels(batch.images.numpy(), transform).reshape(6, 3, 48, 48, 3).astype(int) for batch in (mixed, plain)
    )
    chosen = distinct_pairs(mixed.plan.partner, mixed.plan.sample, 2)
    ys, x0, step = locate(picture, tiles[chosen])
    for b, y in zip(chosen, ys, strict=True):
        shown = [tiles[b, 0], tiles[b, 1], tiles[b, 2], crops[b, 0], crops[mixed.plan.partner[b], 2]]
        at = [x0, x0 + step, x0 + 2 * step, x0 - step - 10, x0 + 3 * step + 10]  # the ends are set apart
        for tile, x in zip(shown, at, strict=True):
            assert np.array_equal(picture[y : y + 48, x : x + 48], tile)


def test_preview_of_all_methods_draws_a_pair_by_each_and_outlines_the_partner(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["preview", str(shards), "-o", str(tmp_path / "all.png"), "--method", "all", "--size", "48", "--k", "3"]
    assert main([*argv, "--backend", "torch"]) == 0
    assert "1 pair by each of mixup, cutmix, resizemix, smoothmix, K = 3" in capsys.readouterr().out
    with Image.open(tmp_path / "all.png") as page:
        height = page.height
    assert main([*argv, "--backend", "torch", "--pairs", "2"]) == 0
    assert "2 pairs by each of mixup" in capsys.readouterr().out
    with Image.open(tmp_path / "all.png") as page:
        assert page.height > 1.5 * height
    tile, weight = np.zeros((9, 8, 3), np.uint8), np.ones((9, 8), np.float32)
    weight[2:7, 3:] = 0
    marked = (_outlined(tile, weight) != 0).any(-1)
    assert marked[2:7, 3:].sum() == marked.sum() == 2 * 5 + 2 * 3
    assert not _outlined(tile, np.zeros_like(weight)).any()


def locate(picture: np.ndarray, tiles: np.ndarray) -> tuple[list[int], int, int]:
    """Where the tiles are: the y of each row, the x of the first column, the distance of columns."""
    size = tiles.shape[2]

    def find(tile: np.ndarray) -> tuple[int, int]:
        corners = np.argwhere((picture == tile[0, 0]).all(-1))
        return next((int(y), int(x)) for y, x in corners if np.array_equal(picture[y : y + size, x : x + size], tile))

    (_, first), (_, second) = find(tiles[0, 0]), find(tiles[0, 1])
    return [find(row[0])[0] for row in tiles], first, second - first


def test_preview_draws_names_of_classes_json_and_ids_without_it(shards: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for shard in shards.glob("*.tar"):
        (bare / shard.name).write_bytes(shard.read_bytes())
    for name, source in (("named", shards), ("bare", bare)):
        assert main(["preview", str(source), "-o", str(tmp_path / f"{name}.png"), "--size", "32"]) == 0
    named, ids = (np.asarray(Image.open(tmp_path / f"{name}.png")) for name in ("named", "bare"))
    assert named.shape == ids.shape
    edge = 130
    assert not np.array_equal(named[:, :edge], ids[:, :edge])
    assert np.array_equal(named[:, edge:-edge], ids[:, edge:-edge])


def test_pixels_come_back_from_normalised_images() -> None:
    transform = EvalTransform()
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)
    mean, std = np.float32(list(transform.mean)), np.float32(list(transform.std))
    normalised = ((pixels.astype(np.float32) / 255 - mean) / std).transpose(0, 3, 1, 2)
    assert np.array_equal(to_pixels(normalised, transform), pixels)


def test_a_picture_that_cannot_be_written_is_one_line(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["preview", str(shards), "-o", str(tmp_path / "grid.unknown"), "--size", "16"]) == 2
    assert "must be a picture file that can be written" in capsys.readouterr().err
