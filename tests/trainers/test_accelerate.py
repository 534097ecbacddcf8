"""Accelerate: its checkpoints hold the loader's position, and uneven last batches count once, on two processes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.data_loader import prepare_data_loader
from safetensors.torch import load_file
from torch.utils.data import DataLoader, IterableDataset
from train_classifier import make_model

from helpers.processes import ROOT, torchrun
from multimix_pipe import Batch, EvalTransform, Loader, TrainTransform, open_loader


def run(data: Path, out: Path, *options: str) -> tuple[str, dict[str, torch.Tensor]]:
    """Return what the recipe prints on two processes, and the weights of its checkpoint."""
    recipe = [str(ROOT / "pipelines" / "accelerate_classifier.py"), str(data / "train"), "--val", str(data / "val")]
    settings = ["--num-classes", "3", "--cpu", "--batch-size", "4", "--out", out]
    return torchrun(2, *recipe, *settings, *options, timeout=120).stdout, load_file(
        out / "checkpoint" / "model.safetensors"
    )


def test_an_interrupted_run_ends_as_an_uninterrupted_one(data: Path, tmp_path: Path) -> None:
    printed, whole = run(data, tmp_path / "whole")
    run(data, tmp_path / "parts", "--max-steps", "3")
    _, parts = run(data, tmp_path / "parts", "--resume", str(tmp_path / "parts" / "checkpoint"))
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)

    # the 21 samples of the two processes, whose last batches have 4 rows and 1, are those of one process
    model = make_model("small", 3)
    model.load_state_dict(whole)
    val = open_loader(data / "val", batch_size=21, num_classes=3, device="cpu", transform=EvalTransform(size=32))
    images, labels = next(iter(val))
    with torch.inference_mode():
        accuracy = (model.eval()(images).argmax(1) == labels).double().mean().item()
    assert printed.splitlines()[-1] == f"epoch 1 accuracy {accuracy:.4f} of 21 samples"


class Wrapped(IterableDataset[Batch]):
    """The loader as a dataset, which it should not be."""

    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.loader)


def test_a_dataloader_around_the_loader_divides_twice_in_silence(data: Path) -> None:
    loader = open_loader(
        data / "train",
        batch_size=4,
        num_classes=3,
        device="cpu",
        transform=TrainTransform(size=16),
        rank=0,
        world_size=2,
    )
    own = [batch.keys for batch in loader]
    wrapped = DataLoader(Wrapped(loader), batch_size=1, collate_fn=lambda batches: batches[0])
    prepared = prepare_data_loader(wrapped, num_processes=2, process_index=0, put_on_device=False)
    loader.set_epoch(0)
    assert [batch.keys for batch in prepared] == own[::2]


def test_prepare_returns_the_loader_as_it_is(data: Path) -> None:
    loader = open_loader(data / "train", batch_size=4, num_classes=3, device="cpu", transform=TrainTransform(size=16))
    assert Accelerator(cpu=True).prepare(loader) is loader
