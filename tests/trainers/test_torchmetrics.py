"""torchmetrics: the guide's mean average precision is that of all samples, alone and over two processes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.multiprocessing
from numpy.typing import NDArray
from torch import nn

from helpers.images import KINDS, picture
from helpers.processes import ROOT
from helpers.tars import write_tar
from multimix_pipe import EvalTransform, open_loader

N, C = 23, 4
GUIDE = ROOT / "docs" / "guides" / "multilabel.md"


def write(folder: Path) -> Path:
    members = []
    for number in range(N):
        extension, image = KINDS["420"](picture(number, 20, 16))
        labels = [i for i in range(C) if (number * (i + 3)) % 7 < 3]
        members += [(f"{number:02}.{extension}", image), (f"{number:02}.cls", " ".join(map(str, labels)).encode())]
    return write_tar(folder / "val.tar", members)


def measured(shards: Path, rank: int = 0, world_size: int = 1) -> dict[str, Any]:
    """Run the guide's block on shards; return its names, and scores and labels of this process."""
    (block,) = re.findall(r"^```python\n(from torchmetrics.*?)^```$", GUIDE.read_text(), re.MULTILINE | re.DOTALL)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, C))
    options = {
        "batch_size": 5,
        "num_classes": C,
        "multilabel": True,
        "transform": EvalTransform(size=8),
        "device": "cpu",
    }
    with open_loader(shards, rank=rank, world_size=world_size, **options) as val:  # type: ignore[arg-type]
        with torch.inference_mode():
            batches = [(model(batch.images).sigmoid(), batch.labels) for batch in val]
        code = block.replace("print(precision.compute())", "found = precision.compute().item()")
        names: dict[str, Any] = {"torch": torch, "model": model, "val": val, "train": val}
        exec(code, names)
    scores, labels = (torch.cat(part).numpy() for part in zip(*batches, strict=True))
    return {"found": names["found"], "scores": scores, "labels": labels}


def average_precision(scores: NDArray[np.float32], labels: NDArray[np.float32]) -> float:
    """The mean over the positives of the precision among the samples that score at least as high."""
    at_least = scores[:, None] <= scores  # [i, j]: sample j scores at least as high as i
    return float(np.mean([labels[at_least[i]].mean() for i in np.flatnonzero(labels)]))


def mean_of(parts: list[dict[str, Any]]) -> float:
    scores, labels = (np.concatenate([part[name] for part in parts]) for name in ("scores", "labels"))
    assert len(scores) == N
    return float(np.mean([average_precision(scores[:, i], labels[:, i]) for i in range(C)]))


def test_the_guides_mean_average_precision_is_that_of_all_samples(tmp_path: Path) -> None:
    part = measured(write(tmp_path))
    assert abs(part["found"] - mean_of([part])) < 1e-6
    assert 0.2 < part["found"] < 0.9


def _in_process(rank: int, folder: Path) -> None:
    torch.distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    torch.save(measured(folder / "val.tar", rank, 2), folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def test_processes_with_unequal_shares_give_the_figure_of_all_samples(tmp_path: Path) -> None:
    write(tmp_path)
    torch.multiprocessing.spawn(_in_process, (tmp_path,), nprocs=2)
    parts = [torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in range(2)]
    assert len(parts[0]["scores"]) != len(parts[1]["scores"])
    for part in parts:
        assert abs(part["found"] - mean_of(parts)) < 1e-6
