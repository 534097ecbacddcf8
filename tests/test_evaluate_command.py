"""Promises of `multimix-pipe evaluate`: figures of the checkpoint, pictures, and one line for what does not fit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from helpers.samples import CLASSES
from multimix_pipe import EvalTransform, TrainTransform, evaluate, open_loader
from multimix_pipe.cli import main

NETS = """
from torch import nn

def small(num_classes):
    return nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(3 * 6 * 6, num_classes))

def fixed():
    return small(7)

def other(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 24 * 24, num_classes), nn.ReLU())

def number():
    return 3

def needs_more(width, num_classes):
    return small(num_classes)
"""
Run = Callable[..., int]


def small(num_classes: int = CLASSES) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(3 * 6 * 6, num_classes))


@pytest.fixture
def run(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs the command in a folder that has nets.py and the checkpoint good.pt."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets.py").write_text(NETS)
    monkeypatch.delitem(__import__("sys").modules, "nets", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    torch.save(small().state_dict(), tmp_path / "good.pt")

    def run(*options: str, checkpoint: str = "good.pt", model: str = "nets:small") -> int:
        fixed = ["--model", model, "--size", "24", "--device", "cpu", "--batch-size", "32", "--quiet"]
        return main(["evaluate", checkpoint, str(shards), *fixed, *options])

    return run


def test_a_checkpoint_of_a_loader_with_other_images_is_noticed(
    run: Run, shards: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for size, mean in ((24, 0.485), (32, 0.4)):
        transform = TrainTransform(size=size, mean=(mean, 0.456, 0.406))
        with open_loader(shards, batch_size=8, num_classes=CLASSES, transform=transform, backend="torch") as loader:
            torch.save({"model": small().state_dict(), "loader": loader.state_dict()}, tmp_path / f"{size}.pt")
    assert run(checkpoint="24.pt") == 0
    assert "trained with" not in caplog.text
    assert run(checkpoint="32.pt") == 0
    trained = "trained with --size [32, 32], --mean [0.4, 0.456, 0.406]"
    assert f"{trained}; this evaluates with --size [24, 24], --mean [0.485, 0.456, 0.406]" in caplog.text


def test_it_writes_the_figures_of_the_checkpoint_and_pictures(
    run: Run, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    options = ["--calibration", str(shards), "--corruptions", "jpeg", "contrast", "--severities", "1", "5"]
    assert run(*options, "--fgsm", "2", "--pgd", "2", "--out", "results") == 0
    report = json.loads((tmp_path / "results" / "report.json").read_text())
    transform = EvalTransform(size=24)
    loader = open_loader(shards, batch_size=32, num_classes=CLASSES, transform=transform, device="cpu")
    assert report["clean"]["raw"] == pytest.approx(evaluate(small(), loader)["clean"]["raw"])
    loader.close()
    assert set(report["corruptions"]) == {"jpeg", "contrast"}
    assert set(report["attacks"]) == {"fgsm eps=2/255", "pgd-10 eps=2/255"}
    assert report["model"] == "nets:small"
    for name in ("reliability.png", "corruptions.png"):
        with Image.open(tmp_path / "results" / name) as picture:
            assert picture.width > 400
    printed = capsys.readouterr().out
    assert "100 samples, 7 classes, temperature" in printed
    assert f"{report['clean']['raw']['top1']:.4f}" in printed
    assert "wrote report.json, reliability.png, corruptions.png in results" in printed


@pytest.mark.parametrize("form", ["nested", "ddp", "compiled"])
def test_checkpoints_of_training_scripts_are_read(run: Run, form: str, tmp_path: Path) -> None:
    state = small().state_dict()
    if form == "nested":
        torch.save({"epoch": 3, "model": state, "optimizer": {"lr": 0.1}}, "form.pt")
    else:
        prefix = "module." if form == "ddp" else "module._orig_mod."
        torch.save({"state_dict": {prefix + key: value for key, value in state.items()}}, "form.pt")
    assert run(checkpoint="form.pt") == 0
    assert run("--out", "plain") == 0
    found, expected = (json.loads((tmp_path / name / "report.json").read_text()) for name in ("evaluation", "plain"))
    assert found["clean"] == expected["clean"]


def test_a_function_without_num_classes_is_called_without(run: Run) -> None:
    assert run(model="nets:fixed") == 0


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("code of the checkpoint ran",)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"checkpoint": "nowhere.pt"}, "the checkpoint must be a file of torch.save; found no 'nowhere.pt'"),
        ({"checkpoint": "text.pt"}, "must be a file of torch.save that loads with weights_only=True"),
        ({"checkpoint": "evil.pt"}, "must be a file of torch.save that loads with weights_only=True"),
        ({"checkpoint": "empty.pt"}, "must hold a state_dict, by itself or under model, state_dict"),
        ({"checkpoint": "three.pt"}, "2.weight must have the shape (7, 108) that it has in nets:small; found (3, 108)"),
        ({"model": "nets:other"}, "must hold the 2 tensors of nets:other; 2 tensors missing and 2 unknown: no 1.bias"),
        ({"model": "nets"}, "--model must be MODULE:FUNCTION"),
        ({"model": "nets:none"}, "has no attribute 'none'"),
        ({"model": "no_such_module:net"}, "No module named 'no_such_module'"),
        ({"model": "nets:number"}, "--model must return a torch.nn.Module; found int"),
        ({"model": "nets:needs_more"}, "--model must work as needs_more(num_classes=N)"),
    ],
)
def test_what_does_not_fit_is_one_line(
    run: Run, options: dict[str, str], says: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    Path("text.pt").write_text("no checkpoint")
    torch.save({"model": Evil()}, "evil.pt")
    torch.save({"epoch": 3}, "empty.pt")
    torch.save(small(3).state_dict(), "three.pt")
    assert run(**options) == 2
    printed = capsys.readouterr()
    assert len(printed.err.splitlines()) == 1
    assert says in printed.err
    assert "code of the checkpoint ran" not in printed.out


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--corruptions", "fog"], "corruptions must be among"),
        (["--severities", "9"], "--severities must be an int in [1, 5]; found 9"),
        (["--fgsm", "-1"], "must be a finite number in [0, 255]; found -1.0"),
        (["--num-classes", "3"], "--num-classes must be an int >= 7; found 3"),
        (["--published", "nowhere"], "the folder of corrupted images must exist; found no 'nowhere'"),
        (["--out", "good.pt/results"], "--out must be a folder that can be written"),
    ],
)
def test_wrong_options_are_one_line(
    run: Run, options: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*options) == 2
    *log, last = capsys.readouterr().err.splitlines()
    assert says in last
    assert "Traceback" not in "".join(log)


def test_a_model_with_other_outputs_is_named(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--num-classes", "9", model="nets:fixed") == 2
    assert "the model must have 9 outputs, one for each class; found 7" in capsys.readouterr().err


def test_a_calibration_set_that_numbers_its_classes_otherwise_is_refused(
    run: Run, own_shards: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "names.txt").write_text("\n".join("abcdefg"))
    (own_shards / "classes.json").write_text(json.dumps(list("bacdefg")))
    assert run("--classes", "names.txt", "--calibration", str(own_shards)) == 2
    assert (
        "class ids must mean the same in all shards: class 0 is 'a' in classes= and 'b' in" in capsys.readouterr().err
    )
    (own_shards / "classes.json").write_text(json.dumps(list("abcdefg")))
    assert run("--classes", "names.txt", "--calibration", str(own_shards)) == 0


def test_labels_are_those_that_the_options_name(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--label-offset", "1", "--num-classes", "7") == 2  # the shards' labels begin at 0
    assert "label_offset=1" in capsys.readouterr().err
    assert run("--label", "none") == 2
    assert "--label must name labels to compare with; found none" in capsys.readouterr().err
