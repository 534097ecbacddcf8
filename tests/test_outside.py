"""The same mix as in other packages, with their weights, boxes and permutations put into `apply_mix`.

`make test-outside` installs them; what is missing is skipped.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from multimix_pipe import MixPlan, MultiMix, apply_mix, mix_batch
from multimix_pipe.plan import draw_mixing

B, CLASSES = 6, 6
SIZE = (20, 14)


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(B, 3, *SIZE, generator=generator), torch.arange(B)


def same(plan: MixPlan, images: Tensor, targets: Tensor) -> None:
    """Check that `apply_mix` gives these images and target rows."""
    own = apply_mix(*batch(), plan, num_classes=CLASSES)
    assert torch.allclose(own.images, images.float(), rtol=0, atol=1e-6)
    assert isinstance(own.targets, Tensor)
    assert torch.allclose(own.targets, targets.float(), rtol=0, atol=1e-6)


def boxed(partner: np.ndarray, boxes: np.ndarray) -> MixPlan:
    """Return a plan of CutMix with K = 1 and these boxes (B, 4)."""
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    lam = (1 - area / (SIZE[0] * SIZE[1])).astype(np.float32)
    return MixPlan(partner, lam[:, None], np.full(len(partner), "cutmix"), boxes[:, None].astype(np.int32))


@pytest.mark.parametrize("method", ["mixup", "cutmix", "smoothmix"])
def test_k_members_are_k_calls_with_one(method: str) -> None:
    images, labels = batch()
    mix = MultiMix(k=4, method=method)
    plan = draw_mixing(mix, 0, 0, 0, B, SIZE)
    all_rows = mix_batch(images, labels, mix, num_classes=CLASSES, step=0)
    for k in range(4):
        factors = None if plan.factors is None else plan.factors[:, k : k + 1]
        one = MixPlan(plan.partner, plan.lam[:, k : k + 1], plan.method, plan.box[:, k : k + 1], factors)
        row = apply_mix(images, labels, one, num_classes=CLASSES)
        assert torch.equal(row.images, all_rows.images[k::4])
        assert torch.equal(row.targets, all_rows.targets[k::4])  # type: ignore[arg-type, index]


@pytest.mark.parametrize("seed", range(5))
def test_torchvision(seed: int) -> None:
    v2 = pytest.importorskip("torchvision.transforms.v2")
    images, labels = batch()
    rolled = np.roll(np.arange(B), 1)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        mixed, targets = v2.MixUp(alpha=1.0, num_classes=CLASSES)(images, labels)
        lam = float(targets[0].max() if targets[0, 0] == targets[0].max() else targets[0, 0])
        same(MixPlan(rolled, np.full((B, 1), lam, dtype=np.float32)), mixed, targets)
        torch.manual_seed(seed)
        cut = v2.CutMix(alpha=1.0, num_classes=CLASSES)
        parameters = cut.make_params([images])
        torch.manual_seed(seed)
        mixed, targets = cut(images, labels)
    x0, y0, x1, y1 = (int(value) for value in parameters["box"])
    same(boxed(rolled, np.tile([y0, x0, y1, x1], (B, 1))), mixed, targets)


@pytest.mark.parametrize("mode", ["batch", "elem"])
def test_timm(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mixup = pytest.importorskip("timm.data.mixup")
    reversed_rows = np.arange(B)[::-1].copy()
    images, labels = batch()
    state = np.random.get_state()  # noqa: NPY002  (timm draws from it)
    try:
        np.random.seed(3)  # noqa: NPY002
        for kind in ({"mixup_alpha": 0.8, "cutmix_alpha": 0.0}, {"mixup_alpha": 0.0, "cutmix_alpha": 1.0}):
            boxes: list[tuple[int, ...]] = []
            draw = mixup.cutmix_bbox_and_lam

            def recorded(*args: object, boxes: list = boxes, draw: object = draw, **named: object) -> tuple:  # type: ignore[type-arg]
                box, lam = draw(*args, **named)  # type: ignore[operator]
                boxes.append(tuple(map(int, box)))
                return box, lam

            monkeypatch.setattr(mixup, "cutmix_bbox_and_lam", recorded)
            mixed, targets = mixup.Mixup(**kind, mode=mode, label_smoothing=0.0, num_classes=CLASSES)(
                images.clone(), labels
            )
            monkeypatch.undo()
            lam = targets.diagonal().numpy().astype(np.float32)[:, None]
            if kind["cutmix_alpha"]:
                y0, y1, x0, x1 = np.array(boxes * (B if mode == "batch" else 1)).T
                same(boxed(reversed_rows, np.stack([y0, x0, y1, x1], axis=1)), mixed, targets)
            else:
                same(MixPlan(reversed_rows, lam), mixed, targets)
    finally:
        np.random.set_state(state)  # noqa: NPY002


def test_kornia_whose_lam_is_the_partners() -> None:
    augmentation = pytest.importorskip("kornia.augmentation")
    images, labels = batch()
    with torch.random.fork_rng():
        torch.manual_seed(1)
        mix = augmentation.RandomMixUpV2(p=1.0, data_keys=["input", "class"])
        mixed, targets = mix(images, labels)
    partner = mix._params["mixup_pairs"].numpy()
    lam = 1 - mix._params["mixup_lambdas"].numpy().astype(np.float32)
    weight = torch.from_numpy(lam)[:, None]
    rows = weight * torch.eye(CLASSES) + (1 - weight) * torch.eye(CLASSES)[partner]
    same(MixPlan(partner, lam[:, None]), mixed, rows)
    assert torch.allclose(targets[:, 2], 1 - weight[:, 0], rtol=0, atol=1e-6)


def test_kornia_cutmix() -> None:
    augmentation = pytest.importorskip("kornia.augmentation")
    images, labels = batch()
    with torch.random.fork_rng():
        torch.manual_seed(1)
        mix = augmentation.RandomCutMixV2(p=1.0, data_keys=["input", "class"], use_correct_lambda=True)
        mixed, targets = mix(images, labels)
    (partner,), (corners,) = mix._params["mix_pairs"].numpy(), mix._params["crop_src"].numpy()
    assert len(np.unique(corners, axis=0)) > 1  # each pair has its own box
    # corners are (x, y) and belong to the box
    boxes = np.concatenate([corners[:, 0, ::-1], corners[:, 2, ::-1] + 1], axis=1)
    weight = targets[0, :, 2:]
    rows = weight * torch.eye(CLASSES) + (1 - weight) * torch.eye(CLASSES)[partner]
    same(boxed(partner, boxes), mixed, rows)


def test_composer() -> None:
    functional = pytest.importorskip("composer.functional")
    images, labels = batch()
    partner, (y0, x0, y1, x1) = np.array([3, 0, 5, 1, 2, 4]), (2, 5, 17, 14)
    indices = torch.from_numpy(partner)
    box = (y0, x0, y1, x1)  # its "x" is the first of the two axes
    mixed, other, area, _ = functional.cutmix_batch(images, labels, bbox=box, indices=indices)
    own = torch.eye(CLASSES)
    same(boxed(partner, np.tile(box, (B, 1))), mixed, area * own[labels] + (1 - area) * own[other])
    mixed, other, lam = functional.mixup_batch(images, labels, mixing=0.3, indices=indices)
    rows = (1 - lam) * own[labels] + lam * own[other]  # the weight that it returns is the partner's
    same(MixPlan(partner, np.full((B, 1), 0.7, dtype=np.float32)), mixed, rows)


@pytest.mark.parametrize("sampling", ["iid", "stratified"])
@pytest.mark.parametrize("method", ["mixup", "cutmix"])
def test_k_members_are_k_calls_of_composer(method: str, sampling: str) -> None:
    functional = pytest.importorskip("composer.functional")
    images, labels = batch()
    # composer has one weight and one box for a batch
    mix = MultiMix(k=4, method=method, sampling=sampling, lam_per="batch")
    own = mix_batch(images, labels, mix, num_classes=CLASSES, step=0)
    indices, classes = torch.from_numpy(own.plan.partner), torch.eye(CLASSES)
    for k in range(4):
        lam, box = float(own.plan.lam[0, k]), tuple(own.plan.box[0, k].tolist())
        if method == "mixup":
            mixed, other, partners_weight = functional.mixup_batch(images, labels, mixing=1 - lam, indices=indices)
            share = 1 - partners_weight
        else:
            mixed, other, share, _ = functional.cutmix_batch(images, labels, bbox=box, indices=indices)
        rows = share * classes[labels] + (1 - share) * classes[other]
        torch.testing.assert_close(own.images[k::4], mixed, rtol=0, atol=1e-6)
        torch.testing.assert_close(own.targets[k::4], rows, rtol=0, atol=1e-6)
