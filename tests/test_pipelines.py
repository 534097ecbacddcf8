"""The recipes of pipelines/ run as a user runs them; what is interrupted ends as if it had not been."""

from __future__ import annotations

import contextlib
import importlib.util
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from PIL import Image
from torch.nn.parallel import DistributedDataParallel

from helpers.backends import needs_dali
from helpers.images import plain_image
from helpers.processes import ROOT, environment, torchrun
from helpers.tars import write_tar
from multimix_pipe import MultiMix, MultiMixLoss, TrainTransform, open_loader
from multimix_pipe.shards.pack import pack
from programs import nets

RECIPES = ROOT / "pipelines"
SETTINGS = ["--size", 32, "--batch-size", 4, "--k", 2, "--epochs", 2, "--lr", 0.02, "--device", "cpu"]
DROPOUT = ["--model", "programs.nets:dropout"]

Train = Callable[..., int]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 images of 3 classes that differ in colour, in 3 shards: 12 steps of 4."""
    folder = tmp_path_factory.mktemp("recipes")
    noise = np.random.default_rng(0)
    for number in range(48):
        place = folder / "images" / f"class{number % 3}" / f"{number:03}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        pixels = noise.integers(0, 80, (40, 40, 3))
        pixels[..., number % 3] += 150
        Image.fromarray(pixels.astype(np.uint8)).save(place)
    pack(folder / "images", folder / "shards", samples_per_shard=16, progress=False)
    return folder / "shards"


@pytest.fixture(scope="module")
def recipe() -> ModuleType:
    """pipelines/train_classifier.py as a module."""
    spec = importlib.util.spec_from_file_location("train_classifier", RECIPES / "train_classifier.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def train(recipe: ModuleType, shards: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Train]:
    """Run the recipe in this process: `train(out, "--option", value)` returns its exit status."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield lambda out, *options: recipe.main([str(word) for word in [shards, *SETTINGS, "--out", out, *options]])
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture(scope="module")
def whole(recipe: ModuleType, shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a training that nothing interrupts."""
    out = tmp_path_factory.mktemp("whole")
    run("-W", "error", RECIPES / "train_classifier.py", shards, *SETTINGS, *DROPOUT, "--val", shards, "--out", out)
    return out


def run(*command: object) -> str:
    variables = environment(OMP_NUM_THREADS="1")
    done = subprocess.run(
        [sys.executable, *map(str, command)], capture_output=True, text=True, env=variables, timeout=240, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def checkpoint(out: Path) -> dict[str, Any]:
    saved: dict[str, Any] = torch.load(out / "checkpoint.pt", weights_only=True)
    return saved


def difference(first: Path, second: Path) -> float:
    one, other = checkpoint(first)["model"], checkpoint(second)["model"]
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


@pytest.mark.parametrize(
    ("stop", "options", "status", "said"),
    [
        ("never 0 SIGINT", ["--max-steps", 7], 0, "stopped by --max-steps after step 7"),
        ("train 7 SIGINT", [], 130, "stopped by SIGINT after step 7"),
        ("train 12 SIGTERM", [], 143, "stopped by SIGTERM after step 12"),
        ("eval 3 SIGINT", [], 130, "stopped between steps"),
    ],
    ids=["max-steps", "Ctrl-C", "SIGTERM at the end of an epoch", "Ctrl-C in validation"],
)
def test_an_interrupted_training_ends_with_the_weights_and_the_log_of_an_uninterrupted_one(
    train: Train,
    whole: Path,
    shards: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    stop: str,
    options: list[object],
    status: int,
    said: str,
) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("STOP", stop)
        assert train(tmp_path, *DROPOUT, "--val", shards, *options) == status
    printed = capsys.readouterr()
    assert said in (printed.out + printed.err).splitlines()[-1]
    assert "Traceback" not in printed.err
    assert train(tmp_path, *DROPOUT, "--val", shards, "--resume", tmp_path / "checkpoint.pt") == 0
    assert difference(whole, tmp_path) == 0
    assert (whole / "log.jsonl").read_text() == (tmp_path / "log.jsonl").read_text()


def test_a_second_interrupt_ends_a_step_that_does_not_end(recipe: ModuleType) -> None:
    interrupt = recipe.Interrupt()
    interrupt.in_step = True
    interrupt(signal.SIGTERM, None)
    interrupt(signal.SIGTERM, None)  # launchers repeat it
    interrupt(signal.SIGINT, None)
    with pytest.raises(KeyboardInterrupt):
        interrupt(signal.SIGINT, None)


def test_header_and_lines_say_where_training_is_also_after_a_resume(
    train: Train, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tmp_path, "--val", shards, "--print-every", 5, "--max-steps", 14, "--checkpoint-every", 6)
    header = capsys.readouterr().out
    for said in (
        "1, on cpu",
        "48 samples of 3 classes",
        "12 per epoch, 24 in all",
        "4 pairs make 8 rows (mixup, K=2, iid",
    ):
        assert said in header
    assert re.findall(r"step (\S+)  ", header) == ["5/14", "6/14", "10/14", "12/14", "14/14"]
    assert len(re.findall(r"loss \d.*lr 0\.0.*images/s .*rows/s .*waited for data \d+%  ETA 0:\d\d:\d\d", header)) == 5
    train(tmp_path, "--val", shards, "--print-every", 5, "--resume", tmp_path / "checkpoint.pt")
    after = capsys.readouterr().out
    assert f"resuming     {tmp_path / 'checkpoint.pt'}, in epoch 2 after step 14" in after
    assert re.findall(r"(epoch 2/2  step \S+) ", after) == [f"epoch 2/2  step {step}/24" for step in (15, 20, 24)]
    assert [line for line in after.splitlines() if "epoch 2/2  validation: top-1 " in line]
    assert "will be replaced" not in header + after
    train(tmp_path, "--max-steps", 1)
    assert f"{tmp_path / 'checkpoint.pt'} exists and will be replaced; --resume continues it" in capsys.readouterr().out


def test_a_finished_training_says_so_and_trains_no_more(
    train: Train, whole: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [*DROPOUT, "--val", shards, "--resume", whole / "checkpoint.pt"]
    assert train(tmp_path / "new", *options) == 0
    assert train(tmp_path / "new", *options, "--max-steps", 24) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed == [f"nothing left to train: {whole / 'checkpoint.pt'} is at step 24, after 2 epochs"] * 2
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("make", "options", "said"),
    [
        (None, [], "No such file"),
        (Path.mkdir, [], "Is a directory"),
        (lambda path: path.write_bytes(b"no checkpoint"), [], "torch.load cannot read"),
        (lambda path: path.write_bytes(b""), [], "torch.load cannot read"),
        (lambda path: torch.save(nets.plain(3).state_dict(), path), [], "has layers.3.weight, layers.3.bias"),
        ("whole", ["--model", "small"], "model is small, was programs.nets:dropout"),
        ("whole", ["--model", "small", "--allow-changes"], "has another model: Error(s) in loading"),
        ("whole", ["--num-classes", 4], "num_classes is 4, was 3"),
        ("whole", ["--lr", 0.1, "--weight-decay", 0], "lr is 0.1, was 0.02; weight_decay is 0.0, was 5e-05. Keep"),
        ("whole", ["--seed", 1, "--k", 3], "seed: this loader has 1, the state has 0; mix.k: this loader has 3"),
    ],
)
def test_a_wrong_checkpoint_is_one_line(
    train: Train,
    whole: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    make: Any,
    options: list[object],
    said: str,
) -> None:
    path = whole / "checkpoint.pt" if make == "whole" else tmp_path / "checkpoint.pt"
    if callable(make):
        make(path)
    assert train(tmp_path / "new", *DROPOUT, "--resume", path, *options) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("train_classifier.py: error: ")
    assert said in line
    assert str(path) in line
    assert "strict=False" not in line
    assert ("--allow-changes" in line) == (make == "whole" and "--allow-changes" not in options)
    assert not (tmp_path / "new").exists()


def test_changed_settings_are_those_of_the_resumed_run_if_allowed(train: Train, whole: Path, tmp_path: Path) -> None:
    changed = ["--epochs", 3, "--weight-decay", 0.5, "--batch-size", 8, "--allow-changes"]
    assert train(tmp_path, *DROPOUT, *changed, "--resume", whole / "checkpoint.pt") == 0
    saved = checkpoint(tmp_path)
    assert saved["run"]["step"] == 24 + 6
    assert [group["weight_decay"] for group in saved["optimizer"]["param_groups"]] == [0.5, 0]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--val", "nowhere"], "nowhere"),
        (["--num-classes", 2], "num_classes"),
        (["--alpha", 0], "alpha"),
        (["--model", "nowhere:net"], "nowhere"),
        (["--model", "programs.nets:nothing"], "nothing"),
        (["--model", "programs.nets:infinite"], "loss must be finite; found"),
    ],
)
def test_an_error_is_one_line(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[object], said: str
) -> None:
    assert train(tmp_path, *options) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("train_classifier.py: error: ")
    assert said in line
    assert not (tmp_path / "checkpoint.pt").exists()


def test_the_share_of_waiting_and_the_rate_are_those_since_the_last_reading(
    recipe: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(recipe.time, "perf_counter", lambda: now)
    meter = recipe.Meter(torch.device("cpu"))

    def loader(waits: list[float]) -> Iterator[None]:
        nonlocal now
        for wait in waits:
            now += wait
            yield

    readings = []
    for _ in meter.batches(loader([6, 1, 1, 3])):
        now += 1  # the step
        meter.losses.append(torch.tensor(now))
        if len(meter.losses) == 2:
            readings.append(meter.read())
    assert readings == [([7, 9], 4.5, 7 / 9), ([11, 15], 3.0, 4 / 6)]


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    """torch.distributed with this process alone."""
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("chunks", [1, 2, 3, 5, 9])
def test_accumulated_gradients_are_those_of_the_whole_batch(
    recipe: ModuleType, shards: Path, group: None, monkeypatch: pytest.MonkeyPatch, chunks: int
) -> None:
    """7 pairs, so that chunks differ; and processes communicate once."""
    batch = next(
        iter(open_loader(shards, batch_size=7, mix=MultiMix(k=3), transform=TrainTransform(size=32), device="cpu"))
    )
    model = nets.plain(3)
    loss = MultiMixLoss()(model(batch.images), batch.targets)
    expected = torch.autograd.grad(loss, list(model.parameters()))

    silent: list[int] = []
    no_sync = DistributedDataParallel.no_sync
    monkeypatch.setattr(DistributedDataParallel, "no_sync", lambda self: silent.append(1) or no_sync(self))
    for net in (model, DistributedDataParallel(model)):
        model.zero_grad()
        total = recipe.backward(net, batch, MultiMixLoss(), chunks, contextlib.nullcontext())
        assert float(total) == pytest.approx(float(loss.detach()), abs=1e-6)
        for parameter, gradient in zip(model.parameters(), expected, strict=True):
            assert torch.allclose(parameter.grad, gradient, rtol=1e-6, atol=1e-6)
    assert len(silent) == min(chunks, 7) - 1


def test_the_weights_of_the_docs_give_the_gradients_of_all_rows() -> None:
    """docs/guides/migrating.md: batches of unequal sizes, processes that have unequal numbers of rows, class weights."""
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.rand(9, 3, 32, 32, generator=generator), torch.arange(9) % 3
    model, weight = nets.plain(3), torch.tensor([0.2, 1.0, 3.0])

    def gradient(rows: list[int], share: float, loss_function: MultiMixLoss) -> torch.Tensor:
        loss = loss_function(model(images[rows]), labels[rows]) * share
        return torch.cat([part.flatten() for part in torch.autograd.grad(loss, list(model.parameters()))])

    parts = [list(range(5)), list(range(5, 6)), list(range(6, 9))]
    mean, weighted = MultiMixLoss(), MultiMixLoss(weight, reduction="sum")
    whole = gradient(list(range(9)), 1.0, mean)
    batches = sum(gradient(rows, len(rows) / 9, mean) for rows in parts)
    processes = sum(gradient(rows, len(rows) / 9 * 3, mean) for rows in parts) / 3
    assert torch.allclose(batches, whole, rtol=0, atol=1e-6)
    assert torch.allclose(processes, whole, rtol=0, atol=1e-6)
    naive = sum(gradient(rows, 1 / 3, mean) for rows in parts)
    assert float((naive - whole).norm() / whole.norm()) > 0.05
    by_class = sum(gradient(rows, 1 / 9, weighted) for rows in parts)
    assert torch.allclose(by_class, gradient(list(range(9)), 1 / 9, weighted), rtol=0, atol=1e-6)


def test_the_learning_rate_stays_on_its_curve_when_steps_get_larger(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As with another number of processes: half an epoch in 6 steps, the rest of it in 3, then the first step of the second."""
    options = ["--model", "programs.nets:plain", "--k", 0]
    train(tmp_path / "small", *options, "--max-steps", 13)
    train(tmp_path, *options, "--max-steps", 6)
    train(tmp_path, *options, "--batch-size", 8, "--max-steps", 10, "--resume", tmp_path / "checkpoint.pt")
    assert "6 per epoch, 15 in all; 8 pairs make 8 rows (no mixing)" in capsys.readouterr().out
    rates = [checkpoint(out)["optimizer"]["param_groups"][0]["lr"] for out in (tmp_path / "small", tmp_path)]
    assert rates == [pytest.approx(0.01), pytest.approx(0.01)]
    train(tmp_path / "first", *options, "--max-steps", 1)
    rate = checkpoint(tmp_path / "first")["optimizer"]["param_groups"][0]["lr"]
    assert rate == pytest.approx(0.02 * 4 / 96 / 0.05), "on its way up, and not 0"


def test_norms_and_biases_have_no_weight_decay(recipe: ModuleType) -> None:
    model = recipe.small_net(3)
    decayed, others = recipe.make_optimizer(model, 0.1, 0.5).param_groups
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.5, 0)
    assert {parameter.ndim for parameter in decayed["params"]} == {2, 4}
    assert {parameter.ndim for parameter in others["params"]} == {1}
    assert len(decayed["params"]) + len(others["params"]) == len(list(model.parameters()))


def test_two_processes_stop_together_and_one_goes_on(
    train: Train, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without mixing, two processes of 4 train as one of 8; the second is stopped, and the first saves and prints."""
    options = ["--model", "programs.nets:plain", "--val", shards, "--k", 0]
    assert train(tmp_path / "whole", *options, "--batch-size", 8) == 0
    out = tmp_path / "parts"
    command = [RECIPES / "train_classifier.py", shards, *SETTINGS, *options, "--accumulate", 3, "--out", out]
    done = torchrun(2, *command, fails=True, STOP="train 22 SIGTERM")  # in the first chunk of step 8 of 12
    for said in (
        "2, on cpu",
        "8 pairs make 8 rows (no mixing, in 3 chunks",
        "epoch 1/2  validation: top-1",
        "SIGTERM after step 8",
    ):
        assert done.stdout.count(said) == 1, done.stdout + done.stderr
    assert train(out, *options, "--batch-size", 8, "--resume", out / "checkpoint.pt") == 0
    assert difference(tmp_path / "whole", out) < 1e-6
    logs = [(folder / "log.jsonl").read_text().count("\n") for folder in (tmp_path / "whole", out)]
    assert logs == [2, 2]


def test_torchrun_trains_on_two_processes(shards: Path, tmp_path: Path) -> None:
    printed = torchrun(2, RECIPES / "train_classifier.py", shards, *SETTINGS, "--val", shards, "--out", tmp_path).stdout
    assert printed.count("epoch 2/2  validation: top-1") == 1
    assert checkpoint(tmp_path)["run"]["step"] == 12


def test_the_stage_runs_in_a_dali_pipeline_of_ones_own(shards: Path) -> None:
    pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    recipe = RECIPES / "own_dali_pipeline.py"
    printed = run(recipe, *sorted(shards.glob("*.tar")), "--num-classes", 3, "--batch-size", 8, "--size", 32)
    assert printed.splitlines()[-1].startswith("step 5: (40, 3, 32, 32) images, loss ")


@needs_dali
def test_an_own_dali_pipeline_says_what_is_wrong_with_its_arguments(shards: Path) -> None:
    shard = min(shards.glob("*.tar"))
    for source, classes, message in (
        (shards, 3, "the shards must be tar files"),
        (shard, 1, "labels must lie in [0, --num"),
    ):
        command = [sys.executable, RECIPES / "own_dali_pipeline.py", source, "--num-classes", str(classes)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False, env=environment())
        assert done.returncode == 1
        assert done.stderr.splitlines()[-1].startswith(message)


@needs_dali
def test_an_own_dali_pipeline_says_how_to_find_the_image_that_cannot_be_decoded(tmp_path: Path) -> None:
    members = [(f"{i}.{kind}", data) for i in range(9) for kind, data in (("jpg", plain_image()), ("cls", b"0"))]
    members[8] = ("4.jpg", plain_image()[:60] + bytes(200))
    shard = write_tar(tmp_path / "x.tar", members)
    command = [sys.executable, RECIPES / "own_dali_pipeline.py", shard, "--num-classes", "1", "--batch-size", "4"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False, env=environment())
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("an image cannot be decoded, and DALI does not say which one: ")
