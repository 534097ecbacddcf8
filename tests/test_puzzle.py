"""Promises of PuzzleMix: masks of minimal energy that nest, labels that are shares of pixels, and an untouched model."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from helpers.batches import Open
from helpers.samples import CLASSES
from multimix_pipe import Batch, ConfigError, MultiMix, MultiMixLoss, PuzzleMix, apply_mix
from multimix_pipe.training.puzzle import PuzzlePlan

K, SIDE = 5, 24


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, CLASSES),
    )


@pytest.fixture
def plain(opened: Open) -> Batch:
    return next(iter(opened(mix=MultiMix(k=K), expand=False)))


def plan_of(batch: Batch) -> PuzzlePlan:
    mix = batch.plan.mix
    assert isinstance(mix, PuzzlePlan)
    return mix


@pytest.mark.parametrize("blocks", [2, 4, 8, 12, 5, 7])  # 5 and 7 do not divide 24
def test_images_show_x_where_the_mask_says_and_labels_are_its_mean(plain: Batch, blocks: int) -> None:
    mixed = PuzzleMix(net(), blocks=blocks)(plain)
    mask = torch.from_numpy(plan_of(mixed).weights((SIDE, SIDE)))[:, :, None]
    other = plain.images[plain.plan.partner]
    expected = torch.where(mask == 1, plain.images[:, None], other[:, None]).flatten(0, 1)
    assert mixed.images.equal(expected)
    np.testing.assert_allclose(mixed.plan.lam, mask.mean((2, 3, 4)), atol=1e-6)
    weights = replace(plain.plan.mix, lam=mixed.plan.lam)
    by_hand = apply_mix(plain.images, plain.labels, weights, num_classes=CLASSES)
    assert mixed.targets.equal(by_hand.targets)
    assert mixed.keys == plain.keys


def test_masks_nest_and_lean_to_the_heavier_image(plain: Batch) -> None:
    lam = np.tile(np.array([1.0, 0.9, 0.5, 0.1, 0.0], np.float32), (8, 1))
    plain = plain.__replace__(plan=replace(plain.plan, mix=replace(plain.plan.mix, lam=lam)))
    mixed = PuzzleMix(net(), blocks=8)(plain)
    masks = plan_of(mixed).weights((SIDE, SIDE))
    assert (np.diff(masks, axis=1) <= 0).all()
    assert (masks[:, 0] == 1).all()
    assert (masks[:, 4] == 0).all()
    assert (mixed.plan.lam[:, 1] > mixed.plan.lam[:, 3]).all()
    assert mixed.images[::K].equal(plain.images)


def energies(mix: PuzzleMix, plain: Batch, saliency: np.ndarray, pair: int, k: int, every: np.ndarray) -> np.ndarray:
    """Return the energy of every mask (M, 4, 4), term by term as the documentation states it."""
    images = plain.images.numpy() * np.array(mix.std)[:, None, None]
    partner, lam = plain.plan.partner[pair], float(plain.plan.lam[pair, k])
    x, other = images[pair], images[partner]
    pooled = saliency.reshape(len(images), 4, 6, 4, 6).sum((2, 4))
    s, t = (pooled[i] / pooled[i].sum() for i in (pair, partner))
    energy = (every * t + (1 - every) * s).sum((1, 2))
    energy -= mix.eta / 16 * np.where(every, np.log(lam), np.log1p(-lam)).sum((1, 2))
    for row, column in itertools.product(range(4), range(4)):
        for down, right in ((1, 0), (0, 1)):
            if row + down > 3 or column + right > 3:
                continue
            strips = {}
            for shows, image in ((1, x), (0, other)):
                tile = image[:, 6 * row : 6 * row + 6, 6 * column : 6 * column + 6]
                next_tile = image[
                    :, 6 * (row + down) : 6 * (row + down) + 6, 6 * (column + right) : 6 * (column + right) + 6
                ]
                before, after = (tile[:, -1], next_tile[:, 0]) if down else (tile[:, :, -1], next_tile[:, :, 0])
                strips[shows] = before, after
            a, b = every[:, row, column], every[:, row + down, column + right]
            phi = {(i, j): np.abs(strips[i][0] - strips[j][1]).mean() for i in (0, 1) for j in (0, 1)}
            border = mix.beta / (16 * 4)
            values = np.select([(a == i) & (b == j) for i, j in phi], list(phi.values()))
            cut = (phi[1, 0] + phi[0, 1] - phi[0, 0] - phi[1, 1]) / 2
            # a border at which the cut would earn energy is free instead
            correction = max(0.0, border * (1 + mix.gamma * cut)) - border * (1 + mix.gamma * cut)
            energy += border * (mix.gamma * values + (a != b)) + correction * (a != b)
    return energy


@pytest.mark.parametrize("settings", [{}, {"beta": 0.0}, {"gamma": 0.0}, {"gamma": 40.0}, {"eta": 2.0}, {"beta": 10.0}])
def test_each_mask_has_the_least_energy_of_all(plain: Batch, settings: dict[str, float]) -> None:
    mix = PuzzleMix(net(), blocks=4, **settings)
    saliency = torch.rand(8, SIDE, SIDE, generator=torch.Generator().manual_seed(0)) ** 4
    shown = plan_of(mix(plain, saliency=saliency, num_classes=CLASSES)).shown
    every = np.array(list(itertools.product((0, 1), repeat=16))).reshape(-1, 4, 4)
    for pair, k in itertools.product(range(3), range(K)):
        energy = energies(mix, plain, saliency.double().numpy(), pair, k, every)
        own = energies(mix, plain, saliency.double().numpy(), pair, k, (k < shown[pair])[None].astype(int))
        assert own[0] <= energy.min() + 1e-4  # float32 differences of pixels, and energies rounded to 2**-20
        assert energy.max() > energy.min() + 1e-2


def test_salient_blocks_are_kept(plain: Batch) -> None:
    """Where x is looked at on the left and x' on the right, an even mix shows just that."""
    left = torch.zeros(SIDE, SIDE)
    left[:, : SIDE // 2] = 1
    even = np.full((8, K), 0.5, np.float32)
    partner = np.arange(8)[::-1].copy()
    plan = replace(plain.plan, mix=replace(plain.plan.mix, lam=even, partner=partner))
    saliency = torch.stack([left if row < 4 else left.flip(1) for row in range(8)])
    mixed = PuzzleMix(net(), blocks=4)(plain.__replace__(plan=plan), saliency=saliency, num_classes=CLASSES)
    masks = plan_of(mixed).weights((SIDE, SIDE))
    assert (masks == saliency.numpy()[:, None]).all()


# the model


@pytest.mark.parametrize("wrapped", [False, True])
def test_the_saliency_pass_leaves_the_model_as_it_was(plain: Batch, wrapped: bool) -> None:
    model = net()
    model[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    mix = PuzzleMix(torch.compile(model, backend="eager") if wrapped else model)
    random = torch.random.get_rng_state()
    mixed = mix(plain)
    assert torch.random.get_rng_state().equal(random)
    assert [module.training for module in model.modules()] == modes
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())
    assert not mixed.images.requires_grad
    assert not plain.images.requires_grad
    assert mix(plain).images.equal(mixed.images)


def test_the_gradient_of_a_pass_of_your_own_serves_as_well(plain: Batch) -> None:
    model = net().eval()
    images = plain.images.clone().requires_grad_()
    MultiMixLoss()(model(images), plain.labels).backward()
    mix = PuzzleMix(model, blocks=4)
    own = mix(plain, saliency=images.grad, num_classes=CLASSES)
    assert np.mean(plan_of(own).shown == plan_of(mix(plain)).shown) > 0.99  # but for rounding at ties


@pytest.mark.parametrize(
    "context", [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16)]
)
def test_contexts_do_not_disturb_it(plain: Batch, context) -> None:
    mix = PuzzleMix(net(), blocks=4)
    with context():
        mixed = mix(plain.__replace__(images=plain.images.clone(), labels=plain.labels.clone()))
    assert mixed.images.dtype == torch.float32
    assert np.mean(plan_of(mixed).shown == plan_of(mix(plain)).shown) > 0.9


@pytest.mark.parametrize("worth", [0.0, float("nan"), float("inf")])
def test_without_a_usable_gradient_all_blocks_are_equally_salient(plain: Batch, worth: float) -> None:
    mix = PuzzleMix(net(), blocks=4)
    flat = mix(plain, saliency=torch.full((8, SIDE, SIDE), worth), num_classes=CLASSES)
    expected = mix(plain, saliency=torch.ones(8, SIDE, SIDE), num_classes=CLASSES)
    assert np.array_equal(plan_of(flat).shown, plan_of(expected).shown)


def test_channels_last_and_16_bits_are_kept(opened: Open) -> None:
    plain = next(iter(opened(mix=MultiMix(k=2), expand=False, channels_last=True, dtype="bfloat16")))
    for transport in (False, True):
        mixed = PuzzleMix(net().bfloat16(), blocks=4, transport=transport)(plain)
        assert mixed.images.is_contiguous(memory_format=torch.channels_last)
        assert mixed.images.dtype == torch.bfloat16
        assert mixed.targets.dtype == torch.float32


# transport


def tiles(images: torch.Tensor, n: int) -> torch.Tensor:
    """Cut images (N, 3, H, W) into (N, n*n, ...) blocks."""
    side = SIDE // n
    return images.reshape(-1, 3, n, side, n, side).permute(0, 2, 4, 1, 3, 5).flatten(1, 2)


def test_transport_moves_distinct_blocks_of_the_right_image_and_gains_saliency(plain: Batch) -> None:
    saliency = torch.rand(8, SIDE, SIDE, generator=torch.Generator().manual_seed(0)) ** 4
    options = {"saliency": saliency, "num_classes": CLASSES}
    still = PuzzleMix(net(), blocks=4)(plain, **options)
    moved = PuzzleMix(net(), blocks=4, transport=True, move_cost=0.05)(plain, **options)
    assert np.array_equal(plan_of(still).shown, plan_of(moved).shown)
    assert still.targets.equal(moved.targets)
    assert not still.images.equal(moved.images)
    pooled = tiles(saliency[:, None].expand(-1, 3, -1, -1), 4).mean((2, 3, 4))
    sources, mixed = tiles(plain.images, 4), tiles(moved.images, 4)
    for row, (pair, k) in enumerate(itertools.product(range(8), range(K))):
        mask = torch.from_numpy(k < plan_of(moved).shown[pair].ravel())
        for image, places in ((pair, mask), (int(plain.plan.partner[pair]), ~mask)):
            same = (mixed[row, places][:, None] == sources[image][None]).flatten(2).all(2)
            assert (same.sum(1) >= 1).all()
            origin = same.float().argmax(1)
            assert len(set(origin.tolist())) == len(origin)
            assert pooled[image, origin].sum() >= pooled[image, places].sum() - 1e-5


def test_blocks_stay_where_moving_costs_more_than_it_gains(plain: Batch) -> None:
    still, dear = (
        PuzzleMix(net(), blocks=4, **options)(plain) for options in ({}, {"transport": True, "move_cost": 100})
    )
    assert still.images.equal(dear.images)


# one number of blocks for each step


def test_the_number_of_blocks_is_drawn_for_each_step(plain: Batch) -> None:
    mix = PuzzleMix(net(), blocks=(2, 3, 4))
    drawn = [
        plan_of(mix(plain.__replace__(plan=replace(plain.plan, step_start=8 * step)))).shown.shape[1]
        for step in range(30)
    ]
    assert set(drawn) == {2, 3, 4}


def test_chunks_of_a_mixed_batch_hold_whole_pairs(plain: Batch) -> None:
    mixed = PuzzleMix(net(), blocks=4)(plain)
    parts = list(mixed.chunks(3))
    assert torch.cat([part.images for part in parts]).equal(mixed.images)
    assert np.array_equal(np.concatenate([plan_of(part).shown for part in parts]), plan_of(mixed).shown)
    assert "PuzzlePlan(8 pairs, K=5, 4x4 blocks)" in repr(mixed.plan.mix)


# what cannot be mixed


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"blocks": 1}, r"blocks must be an int in \[2, 64\]; found 1"),
        ({"blocks": ()}, "at least one number of blocks"),
        ({"blocks": 32}, "at least n pixels a side; found 24x24 pixels and n = 32"),
        ({"blocks": 7, "transport": True}, "multiples of n, to move blocks; found 24x24 pixels and n = 7"),
        ({"eta": -1.0}, "eta must be"),
        ({"std": (0.2,)}, "std must hold one number per channel; found 1 for 3 channels"),
    ],
)
def test_settings_that_do_not_fit_are_named(plain: Batch, settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PuzzleMix(net(), **settings)(plain)  # type: ignore[arg-type]


def test_arguments_that_do_not_fit_are_named(plain: Batch, opened: Open) -> None:
    mix = PuzzleMix(net())
    with pytest.raises(ConfigError, match="needs num_classes="):
        mix(plain, saliency=plain.images)
    with pytest.raises(ConfigError, match=r"saliency must be \(B, C, H, W\) or \(B, H, W\)"):
        mix(plain, saliency=plain.images[:3], num_classes=CLASSES)
    with pytest.raises(ConfigError, match="Pass expand=False"):
        mix(next(iter(opened(mix=MultiMix(k=2)))))
    with pytest.raises(ConfigError, match="number of the model's outputs"):
        PuzzleMix(nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE * SIDE, 2)))(plain)
    with pytest.raises(ConfigError, match=r"apply_mix .*PuzzlePlan"):
        apply_mix(plain.images, plain.labels, mix(plain).plan.mix, num_classes=CLASSES)
    with pytest.raises(ConfigError, match="model must return logits"):
        PuzzleMix(nn.Conv2d(3, 8, 3))(plain)
