"""The network of bench/gpu_training.py is the one that its name says."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import torch


def load_resnet() -> ModuleType:
    spec = importlib.util.spec_from_file_location("resnet", Path(__file__).resolve().parents[1] / "bench" / "resnet.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_resnet50_has_the_published_number_of_parameters_and_strides_in_its_3x3_convolutions() -> None:
    model = load_resnet().resnet50()
    assert sum(parameter.numel() for parameter in model.parameters()) == 25_557_032
    strided = [m.kernel_size for m in model.modules() if isinstance(m, torch.nn.Conv2d) and m.stride == (2, 2)]
    assert sorted(strided) == [(1, 1)] * 3 + [(3, 3)] * 3 + [(7, 7)]  # v1.5: a shortcut and a 3x3 in each of 3 stages
    with torch.inference_mode():
        assert model.eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 1000)
