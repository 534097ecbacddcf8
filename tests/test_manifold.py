"""Promises of ManifoldMix: exact mixing at the drawn layer, one layer for all processes of a step, a clean model afterwards."""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from torch import nn

from helpers.batches import Open, resumed
from helpers.processes import torchrun
from helpers.samples import CLASSES
from multimix_pipe import Batch, ConfigError, ManifoldMix, MultiMix, MultiMixLoss, apply_mix

K = 3
LAYERS = ["input", "0", "2", "3"]


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.LazyLinear(CLASSES),
    )


@pytest.fixture
def model(plain: Batch) -> nn.Sequential:
    model = net()
    model.eval()(plain.images)  # LazyLinear takes its width
    return model.train()


@pytest.fixture
def plain(opened: Open) -> Batch:
    return next(iter(opened(mix=MultiMix(k=K), expand=False)))


def mixed_by_hand(model: nn.Sequential, plain: Batch, layer: str) -> tuple[torch.Tensor, torch.Tensor]:
    depth = 0 if layer == "input" else int(layer) + 1
    below = model[:depth](plain.images)
    lam = torch.from_numpy(plain.plan.lam).reshape(8, K, *[1] * (below.ndim - 1))
    mixed = lam * below[:, None] + (1 - lam) * below[plain.plan.partner][:, None]
    targets = apply_mix(plain.images, plain.labels, plain.plan.mix, num_classes=CLASSES).targets
    assert isinstance(targets, torch.Tensor)
    return model[depth:](mixed.flatten(0, 1)), targets


@pytest.mark.parametrize("layer", [*LAYERS, "1", "4", "5"])
def test_logits_targets_and_gradients_are_those_of_mixing_between_the_layers(
    model: nn.Sequential, plain: Batch, layer: str
) -> None:
    by_hand = copy.deepcopy(model)
    logits, targets = ManifoldMix(model, layer)(plain)
    expected_logits, expected_targets = mixed_by_hand(by_hand, plain, layer)
    assert logits.equal(expected_logits)
    assert targets.equal(expected_targets)
    MultiMixLoss()(logits, targets).backward()
    MultiMixLoss()(expected_logits, expected_targets).backward()
    for parameter, expected in zip(model.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, expected.grad, rtol=1e-5, atol=1e-7)


def test_the_input_as_a_layer_is_the_loaders_own_mixing(model: nn.Sequential, opened: Open, plain: Batch) -> None:
    whole = next(iter(opened(mix=MultiMix(k=K))))
    seen = []
    model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    _, targets = ManifoldMix(model, "input")(plain)
    torch.testing.assert_close(seen[0], whole.images, rtol=0, atol=1e-6)
    assert targets.equal(whole.targets)


def test_layers_below_see_b_rows_and_layers_above_b_times_k(model: nn.Sequential, plain: Batch) -> None:
    rows = {}
    for name, module in model.named_children():
        module.register_forward_pre_hook(lambda module, inputs, name=name: rows.update({name: len(inputs[0])}))
    ManifoldMix(model, "2")(plain)
    assert rows == {"0": 8, "1": 8, "2": 8, "3": 8 * K, "4": 8 * K, "5": 8 * K}


def test_nothing_is_left_on_the_model(model: nn.Sequential, plain: Batch) -> None:
    before = model(plain.images)
    mixing = ManifoldMix(model, "2")
    mixing(plain)
    handle = model[3].register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="in the forward pass"):
        mixing(plain)
    handle.remove()
    assert all(not module._forward_hooks for module in model.modules())
    assert model(plain.images).shape == before.shape
    assert set(model.state_dict()) == set(net().state_dict())


def fail(module: nn.Module, inputs: object) -> None:
    raise RuntimeError("in the forward pass")


# which layer


def layers_of(loader, mixing: ManifoldMix) -> list[str]:
    return [mixing.layer(batch) for batch in loader]


def test_processes_of_a_step_draw_the_same_layer_also_in_the_last_short_step(model, opened: Open) -> None:
    mixing = ManifoldMix(model, LAYERS)
    options = {"mix": MultiMix(k=2), "expand": False, "world_size": 3, "last_batch": "partial"}
    drawn = [layers_of(opened(rank=rank, **options), mixing) for rank in range(3)]  # 100 samples: 5, 4 and 4 steps
    for step in range(5):
        assert len({layers[step] for layers in drawn if step < len(layers)}) == 1
    assert len(set(drawn[0])) > 1


def test_a_resumed_run_draws_the_same_layers(model, opened: Open) -> None:
    mixing = ManifoldMix(model, LAYERS)
    options = {"mix": MultiMix(k=2), "expand": False}
    loader = opened(**options)
    batches = iter(loader)
    for _ in range(4):
        next(batches)
    state = loader.state_dict()
    assert layers_of(batches, mixing) == layers_of(resumed(opened, state, **options), mixing)


def test_layers_are_drawn_uniformly_and_differently_with_another_seed(model, plain: Batch) -> None:
    def draws(seed: int) -> list[str]:
        mixing = ManifoldMix(model, LAYERS, seed=seed)
        return [mixing.layer(plain.__replace__(plan=replace(plain.plan, step_start=8 * step))) for step in range(2000)]

    first = draws(0)
    assert chisquare(list(Counter(first).values())).pvalue > 1e-3
    assert first == draws(0)
    assert np.mean([a == b for a, b in zip(first, draws(1), strict=True)]) < 0.35


def test_names_and_expressions_choose_layers() -> None:
    model = nn.Sequential()
    for name in ("stem", "layer1", "layer2", "head"):
        model.add_module(name, nn.Sequential(nn.Identity(), nn.ReLU()))
    assert ManifoldMix(model, "layer1").layers == ("layer1",)
    assert ManifoldMix(model, ["input", "layer[12]", "layer2"]).layers == ("input", "layer1", "layer2")
    assert ManifoldMix(model, r"layer\d\.1").layers == ("layer1.1", "layer2.1")


# precision and memory


@pytest.mark.parametrize("layer", LAYERS)
def test_autocast_keeps_the_layers_type_and_mixes_in_float32(model: nn.Sequential, plain: Batch, layer: str) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        logits, targets = ManifoldMix(model, layer)(plain)
        expected = model(plain.images) if layer != "input" else None
    assert logits.dtype == torch.bfloat16
    assert targets.dtype == torch.float32
    assert expected is None or expected.dtype == logits.dtype
    assert logits.isfinite().all()
    MultiMixLoss()(logits, targets).backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("layer", ["input", "0"])
def test_channels_last_is_kept(model: nn.Sequential, opened: Open, layer: str) -> None:
    model = model.to(memory_format=torch.channels_last)
    seen = []
    above = model[0] if layer == "input" else model[1]
    above.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    ManifoldMix(model, layer)(next(iter(opened(mix=MultiMix(k=K), expand=False, channels_last=True))))
    assert seen[0].is_contiguous(memory_format=torch.channels_last)


# compiled models


@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not a leaf"
)  # torch's own, while it compiles
def test_a_compiled_block_is_a_layer(model: nn.Sequential, plain: Batch) -> None:
    expected = {layer: mixed_by_hand(copy.deepcopy(model), plain, layer)[0] for layer in ("2", "3")}
    model[2] = torch.compile(model[2], backend="eager")
    for layer, logits in expected.items():
        assert ManifoldMix(copy.deepcopy(model), layer)(plain)[0].equal(logits)


def test_layers_inside_compiled_code_are_refused(model: nn.Sequential) -> None:
    whole = torch.compile(model, backend="eager")
    assert ManifoldMix(whole, "input").layers == ("input",)
    nested = nn.Sequential(torch.compile(copy.deepcopy(model), backend="eager"))
    in_place = copy.deepcopy(model)
    in_place.compile(backend="eager")
    for compiled, layer in ((whole, "0"), (nested, "0._orig_mod.0"), (in_place, "0")):
        with pytest.raises(ConfigError, match=r"inside compiled code, which skips hooks; .*torch.compile\(model.0\)"):
            ManifoldMix(compiled, layer)


# what cannot be mixed


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (["layr1"], "layers must name modules of the model; found 'layr1'. Near it: 'layer1'"),
        (["conv.*"], "found 'conv.*'. Near it: "),
        (["("], r"found '\(', in which missing \)"),
        ([], "at least one layer; found none"),
        ([7], "names or regular expressions; found 7"),
    ],
)
def test_wrong_layers_are_named(layers: list[object], message: str) -> None:
    model = nn.Sequential()
    model.add_module("layer1", nn.ReLU())
    model.add_module("stem", nn.ReLU())
    with pytest.raises(ConfigError, match=message):
        ManifoldMix(model, layers)  # type: ignore[arg-type]


class Odd(nn.Module):
    """Has layers that cannot be mixed."""

    def __init__(self) -> None:
        super().__init__()
        self.shared, self.unused = nn.ReLU(), nn.ReLU()
        self.gru, self.head = nn.GRU(3, 3, batch_first=True), nn.Linear(3, CLASSES)
        self.whole = nn.AdaptiveAvgPool2d(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.shared(self.shared(self.whole(x))).flatten(2).transpose(1, 2)
        return self.head(self.gru(x)[0][:, -1])


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("shared", "layer 'shared' is called more than once in a step"),
        ("unused", "layer 'unused' was not called in this step and nothing was mixed"),
        ("gru", "layer 'gru' must return one tensor .* found tuple"),
    ],
)
def test_layers_that_cannot_be_mixed_are_named(plain: Batch, layer: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ManifoldMix(Odd(), layer)(plain)


def test_a_batch_that_cannot_be_mixed_says_what_to_open(model: nn.Sequential, opened: Open, plain: Batch) -> None:
    mixing = ManifoldMix(model, "0")
    with pytest.raises(ConfigError, match="Pass expand=False to open_loader"):
        mixing(next(iter(opened(mix=MultiMix(k=K)))))
    with pytest.raises(ConfigError, match="Pass expand=False to open_loader"):
        mixing(next(iter(opened(mix=MultiMix(k=1)))))
    with pytest.raises(ConfigError, match="found a chunk"):
        mixing(next(plain.chunks(8)))
    with pytest.raises(ConfigError, match=r"expand=False\); found tuple"):
        mixing((plain.images, plain.labels))  # type: ignore[arg-type]


def test_a_model_of_too_few_classes_is_an_error(model: nn.Sequential, plain: Batch) -> None:
    model[5] = nn.Linear(model[5].in_features, 2)
    with pytest.raises(ConfigError, match=r"labels must lie in \[0, 2\), the number of the model's outputs"):
        ManifoldMix(model, "0")(plain)


@pytest.mark.parametrize(
    ("name", "instead"),
    [
        ("manifold", r"ManifoldMix\(model, layers\)"),
        ("PuzzleMix", r"PuzzleMix\(model\)"),
        ("manifold_mixup", "ManifoldMix"),
    ],
)
def test_a_method_that_needs_the_model_says_what_to_use_instead(name: str, instead: str) -> None:
    with pytest.raises(ConfigError, match=f"found '{name}'. Open the loader with .*expand=False.*{instead}"):
        MultiMix(method=name)


# several processes


def test_two_processes_train_as_one_on_both_batches(shards: Path) -> None:
    """The program compares layers and gradients under DistributedDataParallel; also those of PuzzleMix."""
    printed = torchrun(2, "-m", "programs.model_mixing", shards).stdout
    assert printed.count("manifold: same layers and gradients") == 2
    assert printed.count("puzzle: same gradients") == 2
