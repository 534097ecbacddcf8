"""CutMix, SmoothMix, ResizeMix and the switch: what is drawn, its distribution, and what `MultiMix(method=)` takes."""

from __future__ import annotations

import copy
import json
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from helpers.backends import needs_dali
from helpers.batches import Open, all_same
from helpers.methods import registered
from helpers.samples import CLASSES, TINY
from multimix_pipe import (
    ConfigError,
    CutMix,
    Loader,
    MixPlan,
    Mixup,
    MultiMix,
    MultiMixLoss,
    ResizeMix,
    SmoothMix,
    StateMismatchError,
    apply_mix,
    mix_batch,
    mixed_accuracy,
)
from multimix_pipe.mixing import Field, Members
from multimix_pipe.mixing.reference import mix_images
from multimix_pipe.mixing.smoothmix import _bell
from multimix_pipe.plan import draw_mixing
from multimix_pipe.plan.mixing import ordered_weights
from multimix_pipe.plan.seeding import Stream, draw_words
from multimix_pipe.training.targets import pair_targets

SIZES = [(224, 224), (7, 5), (1, 9), (31, 64)]
METHODS = ["mixup", "cutmix", CutMix(boxes="independent"), "resizemix", "smoothmix", {"cutmix": 0.5, "smoothmix": 0.5}]


def drawn(method: Any, size: tuple[int, int] = (7, 5), rows: int = 64, seed: int = 0, **options: Any) -> MixPlan:
    return draw_mixing(MultiMix(method=method, **options), seed, 0, 0, rows, size)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("method", METHODS, ids=str)
@pytest.mark.parametrize("lam_per", ["pair", "batch"])
def test_lam_is_the_mean_of_the_field_and_never_increases(method: Any, size: tuple[int, int], lam_per: str) -> None:
    plan = drawn(method, size, k=7, lam_per=lam_per, prob=0.7)
    fields = plan.weights(size).astype(np.float64)
    assert np.abs(fields.mean((2, 3)) - plan.lam).max() < 1e-6
    assert np.all(np.diff(plan.lam, axis=1) <= 0)
    unmixed = np.all(plan.lam == 1, axis=1)
    assert lam_per == "batch" or unmixed.any()
    assert np.all(fields[unmixed] == 1)
    assert np.all(plan.box[unmixed] == 0)


@pytest.mark.parametrize("method", ["cutmix", "resizemix", "smoothmix"])
def test_each_field_lies_inside_the_next(method: str) -> None:
    fields = drawn(method, (31, 64), k=6).weights((31, 64))
    assert np.all(np.diff(fields, axis=1) <= 0)


def test_boxes_have_the_drawn_sides_unless_the_image_cuts_them() -> None:
    height, width = 40, 30
    plan = drawn("cutmix", (height, width), rows=2000)
    words = draw_words(0, Stream.LAM, 0, 0, 2000, 6)
    rest = np.sqrt(1 - ordered_weights(words, MultiMix()).astype(np.float64))
    y0, x0, y1, x1 = np.moveaxis(plan.box, -1, 0)
    for side, low, high in ((height, y0, y1), (width, x0, x1)):
        expected = np.floor(side * rest)
        inside = (low > 0) & (high < side) & (y1 > y0)
        assert inside.sum() > 500
        assert np.array_equal((high - low)[inside], expected[inside])
        assert np.all(high - low <= expected)


def test_the_centres_of_boxes_and_holes_are_uniform_over_the_image() -> None:
    small = drawn("cutmix", (40, 30), rows=6000, k=1, alpha=(200.0, 2.0))  # boxes of a few pixels
    y0, x0, y1, x1 = small.box[:, 0].T
    whole = (y0 > 0) & (x0 > 0) & (y1 < 40) & (x1 < 30) & (y1 > y0)
    for low, high, side in ((y0, y1, 40), (x0, x1, 30)):
        centre = (low + (high - low) // 2)[whole]
        counts = np.bincount(centre, minlength=side)[8 : side - 8]
        assert stats.chisquare(counts).pvalue > 0.001
    holes = drawn("smoothmix", (40, 30), rows=4000, k=1, alpha=(200.0, 2.0))
    assert holes.factors is not None
    peak = holes.factors[:, 0, :40].argmax(axis=1)
    assert stats.chisquare(np.bincount(peak, minlength=40)[4:36]).pvalue > 0.001


def test_independent_boxes_have_centres_of_their_own() -> None:
    boxes = drawn(CutMix(boxes="independent"), (64, 64), rows=500, k=2).box.astype(int)
    middle = (boxes[..., :2] + boxes[..., 2:]) / 2
    assert np.mean(np.abs(middle[:, 0] - middle[:, 1]) > 2) > 0.8


def test_a_hole_is_the_gaussian() -> None:
    place, centre, sigma = np.arange(50) + 0.5, np.array([3.2, 30.0]), np.array([[5.0, 0.4], [17.0, 0.0]])
    found = _bell(place, centre, sigma)
    with np.errstate(divide="ignore"):
        exact = np.exp(-((place - centre[:, None, None]) ** 2) / (2 * sigma[..., None] ** 2))
    assert np.abs(found - exact).max() < 1e-6
    assert np.all(found * 2**24 == np.rint(found * 2**24))


@pytest.mark.parametrize("sampling", ["iid", "stratified"])
@pytest.mark.parametrize("alpha", [(0.4, 0.4), (1.0, 1.0), (2.0, 5.0), (0.5, 3.0), (8.0, 1.0)])
def test_pooled_weights_are_beta_distributed(alpha: tuple[float, float], sampling: str) -> None:
    mix = MultiMix(k=5, alpha=alpha, sampling=sampling)  # type: ignore[arg-type]
    lam = ordered_weights(draw_words(3, Stream.LAM, 0, 0, 4000, 6), mix)
    assert np.all(np.diff(lam, axis=1) <= 0)
    assert stats.kstest(lam.ravel().astype(np.float64), stats.beta(*alpha).cdf).pvalue > 0.01
    if alpha[0] == alpha[1]:
        one = MultiMix(k=5, alpha=alpha[0], sampling=sampling)  # type: ignore[arg-type]
        assert np.array_equal(lam, ordered_weights(draw_words(3, Stream.LAM, 0, 0, 4000, 6), one))


def test_a_switch_draws_methods_with_their_probabilities_and_each_its_own_alpha() -> None:
    plan = drawn({Mixup(alpha=0.1): 0.3, CutMix(alpha=1.0): 0.7}, rows=4000, k=1)
    mixup = plan.method == "mixup"
    assert stats.binomtest(int(mixup.sum()), 4000, 0.3).pvalue > 0.001
    assert stats.kstest(plan.lam[mixup, 0].astype(np.float64), stats.beta(0.1, 0.1).cdf).statistic < 0.1
    alone = drawn(Mixup(alpha=0.1), rows=4000, k=1)
    assert np.array_equal(plan.lam[mixup], alone.lam[mixup])
    assert len(set(drawn({"mixup": 0.5, "cutmix": 0.5}, lam_per="batch").method)) == 1


@pytest.mark.parametrize(("rows", "k"), [(2, 3), (3, 7), (5, 4), (9, 5)])
def test_partners_of_members_are_others_and_none_comes_twice_until_all_were_used(rows: int, k: int) -> None:
    for start in range(0, 40 * rows, rows):
        partner = draw_mixing(MultiMix(k=k, partners="each"), 0, 0, start, rows).partner
        assert partner.shape == (rows, k)
        assert np.all(partner != np.arange(rows)[:, None])
        for members in range(0, k, rows - 1):
            turn = partner[:, members : members + rows - 1]
            assert all(len(set(row)) == turn.shape[1] for row in turn.tolist())
        assert all(len(set(column)) == rows for column in partner.T.tolist())


def test_each_partner_of_a_member_is_equally_likely() -> None:
    plans = [draw_mixing(MultiMix(k=3, partners="each"), 0, 0, 6 * batch, 6).partner for batch in range(4000)]
    for k in range(3):
        counts = np.bincount([plan[2, k] for plan in plans], minlength=6)
        assert counts[2] == 0
        assert stats.chisquare(np.delete(counts, 2)).pvalue > 0.001


def test_targets_loss_and_accuracy_follow_the_partner_of_each_member() -> None:
    labels = torch.arange(6)
    batch = mix_batch(torch.rand(6, 3, 4, 4), labels, MultiMix(k=3, partners="each"), num_classes=6, step=0)
    pairs = pair_targets(labels, torch.from_numpy(batch.plan.partner), torch.from_numpy(batch.plan.lam))
    assert pairs[1].shape == (6, 3)
    logits, weight = torch.randn(18, 6), torch.rand(6)
    assert isinstance(batch.targets, torch.Tensor)
    assert torch.allclose(MultiMixLoss(weight)(logits, batch.targets), MultiMixLoss(weight)(logits, pairs))
    assert torch.allclose(mixed_accuracy(logits, batch.targets), mixed_accuracy(logits, pairs))


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_settings_survive_a_copy_and_json(method: Any) -> None:
    mix = MultiMix(method=method, alpha=(0.5, 2))
    assert copy.deepcopy(mix) == mix
    assert hash(mix) == hash(MultiMix(method=method, alpha=(0.5, 2)))
    assert json.loads(json.dumps(mix.settings()))["alpha"] == [0.5, 2]


def test_settings_of_other_options_differ() -> None:
    methods = [*METHODS, CutMix(alpha=0.5), {"cutmix": 0.4, "smoothmix": 0.6}]
    assert len({json.dumps(MultiMix(method=method).settings()) for method in methods}) == len(methods)


def test_settings_that_draw_the_same_are_saved_as_the_same() -> None:
    wide, narrow = CutMix(alpha=1.0), CutMix(alpha=0.2)
    same = [["cutmix", CutMix(), {"cutmix": 1.0}], [{"mixup": 0.4, "cutmix": 0.6}, {CutMix(): 0.6, "mixup": 0.4}]]
    same += [[{wide: 0.5, narrow: 0.5}, {narrow: 0.5, wide: 0.5}]]
    for methods in same:
        assert len({json.dumps(MultiMix(method=method).settings()) for method in methods}) == 1  # type: ignore[arg-type]
        plans = [drawn(method) for method in methods]
        assert all(np.array_equal(plan.lam, plans[0].lam) for plan in plans)
        assert all(np.array_equal(plan.method, plans[0].method) for plan in plans)


def test_a_state_from_before_there_were_partners_and_crops_is_resumed_or_refused_by_its_fields(opened: Open) -> None:
    state = opened(mix=MultiMix(k=3, alpha=0.4)).state_dict()
    assert (state["mix"].pop("partners"), state["mix"].pop("crops")) == ("same", "same")
    fields = {"k": 3, "alpha": 0.4, "method": "mixup", "sampling": "iid", "lam_per": "pair"}
    assert state["mix"] == {**fields, "pairing": "derangement", "prob": 1.0}
    loader = opened(mix=MultiMix(k=3, alpha=0.4))
    loader.load_state_dict(state)
    other = opened(mix=MultiMix(k=3, alpha=0.4, method="cutmix", partners="each"))
    message = (
        "mix.partners: this loader has 'each', the state has 'same'; "
        "mix.method: this loader has 'cutmix', the state has 'mixup'. Open the loader"
    )
    with pytest.raises(StateMismatchError, match=re.escape(message)):
        other.load_state_dict(state)
    by_epoch = opened(mix={0: MultiMix(k=3, alpha=0.4), 2: None})
    with pytest.raises(StateMismatchError, match=r"mix: this loader has \{'0': .*, '2': None\}, the state has \{"):
        by_epoch.load_state_dict(state)
    assert "mix={0: MultiMix(k=3" in repr(by_epoch)
    state = by_epoch.state_dict()
    del state["mix"]["0"]["partners"], state["mix"]["0"]["crops"]
    by_epoch.load_state_dict(state)
    state["mix"]["0"]["crops"] = "each"
    with pytest.raises(StateMismatchError, match=r"^mix\.0\.crops: this loader has 'same', the state has 'each'"):
        by_epoch.load_state_dict(state)


@pytest.mark.parametrize("name", ["deit", "timm", "torchvision", "openmixup-cifar"])
def test_a_preset_can_be_changed(name: str) -> None:
    assert MultiMix.preset(name).k == 1
    changed = MultiMix.preset(name, k=5, lam_per="pair")
    assert (changed.k, changed.lam_per, changed.method) == (5, "pair", MultiMix.preset(name).method)


@pytest.mark.parametrize(
    ("name", "mixup_alpha", "pairing", "prob"),
    [
        ("deit", 0.8, "flip", 1.0),
        ("timm", 0.8, "flip", 1.0),
        ("torchvision", 0.2, "roll", 1.0),
        ("openmixup-cifar", 0.1, "derangement", 2 / 3),
    ],
)
def test_presets_are_those_of_their_source(name: str, mixup_alpha: float, pairing: str, prob: float) -> None:
    preset = MultiMix.preset(name)
    choices = [(choice.name, choice.alpha, choice.prob) for choice in preset.choices]
    assert choices == [("cutmix", 1.0, 0.5), ("mixup", mixup_alpha, 0.5)]
    assert (preset.pairing, preset.prob, preset.lam_per) == (pairing, prob, "batch")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "fmix"}, r"MultiMix.method must be one of 'mixup', 'cutmix', .*; found 'fmix'"),
        (
            {"method": "manifold_mixup"},
            r"needs no model; found 'manifold_mixup'.*expand=False.*ManifoldMix\(model, layers\)",
        ),
        ({"method": "PuzzleMix"}, r"expand=False, and pass its batches to PuzzleMix\(model\)"),
        ({"method": 3}, "an object of their classes, or a mapping"),
        ({"method": {}}, "must sum to 1; found 0"),
        ({"method": {"mixup": 0.5, "cutmix": 0.4}}, "must sum to 1; found 0.9, the sum of 0.5, 0.4"),
        (
            {"method": {"mixup": 1.5, "cutmix": -0.5}},
            "the probability of 'mixup' in MultiMix.method must be a finite number",
        ),
        (
            {"partners": "each", "pairing": "roll"},
            'partners="each" needs pairing="derangement".*found pairing=\'roll\'',
        ),
        ({"partners": "all"}, "MultiMix.partners must be one of 'same', 'each'"),
        ({"alpha": (1.0, 2.0, 3.0)}, r"MultiMix.alpha must be a number or a pair \(a, b\) of numbers; found \(1.0, 2"),
        ({"alpha": (1.0, 0.0)}, r"MultiMix.alpha must be a finite number in \(0, 1000\]; found 0"),
    ],
)
def test_settings_that_do_not_fit_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MultiMix(**options)


def test_options_of_methods_are_checked() -> None:
    with pytest.raises(ConfigError, match=r"CutMix\.boxes must be one of 'nested', 'independent'; found 'both'"):
        CutMix(boxes="both")  # type: ignore[arg-type]
    for method in (Mixup, CutMix, ResizeMix, SmoothMix):
        with pytest.raises(ConfigError, match=f"{method.__name__}.alpha must be a finite number"):
            method(alpha=0)
    with pytest.raises(ConfigError, match="preset must be one of 'deit', 'timm'"):
        MultiMix.preset("imagenet")


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (drawn("cutmix", (5, 3), rows=4), r"lam must be the share of x in images of 7x5.*drawn for another size"),
        (drawn("cutmix", (9, 9), rows=4), r"boxes .* must lie inside images of 7x5; found .*drawn for another size"),
        (drawn("smoothmix", (9, 9), rows=4), "factors must be for images of 7x5, 12 for each member; found 18"),
        (drawn("mixup", rows=3), "plan must hold 4 pairs, one per image"),
        (drawn("mixup", rows=5, partners="each"), "plan must hold 4 pairs, one per image"),
    ],
)
def test_a_plan_of_another_batch_is_refused(plan: MixPlan, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        apply_mix(torch.rand(4, 3, 7, 5), torch.arange(4), plan, num_classes=4)


def test_a_smooth_plan_needs_its_factors() -> None:
    with pytest.raises(ConfigError, match=r"needs factors \(B, K, H \+ W\); found None"):
        MixPlan(np.array([1, 0]), np.ones((2, 1), np.float32), np.array(["smoothmix"] * 2))


@pytest.mark.parametrize("method", ["cutmix", "resizemix"])
def test_a_plan_of_boxes_needs_boxes(method: str) -> None:
    with pytest.raises(ConfigError, match=rf"a MixPlan with {method} needs box \(B, K, 4\); found None"):
        MixPlan(np.array([1, 0]), np.full((2, 1), 0.25, np.float32), np.array([method] * 2))


def test_a_method_of_boxes_that_draws_none_is_named() -> None:
    class Forgetful:
        field = Field.BOX
        uniforms = 0

        def draw(self, u: object, lam: Any, size: object) -> Members:
            return Members(lam)

    with (
        registered("split", Forgetful()) as name,
        pytest.raises(ConfigError, match="must draw boxes, as its field is BOX"),
    ):
        drawn(name)


def test_a_plan_of_weights_of_another_shape_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"needs lam \(B, K\); found shape \(2,\)"):
        MixPlan(np.array([1, 0]), np.ones(2, np.float32))


SCHEDULES: list[dict[int, MultiMix | None]] = [
    {0: MultiMix(k=3, method="cutmix"), 1: None, 3: MultiMix(k=2, partners="each")},
    {0: None, 1: MultiMix(k=2, method={"resizemix": 0.5, "smoothmix": 0.5}), 3: MultiMix(k=4)},
]
CROPS = {0: MultiMix(k=3, crops="each"), 1: None, 2: MultiMix(k=2), 3: MultiMix(k=2, method="resizemix", crops="each")}


@pytest.mark.parametrize("schedule", [*SCHEDULES, CROPS])
@pytest.mark.parametrize("targets", ["rows", "pairs"])
def test_settings_by_epoch_hold_from_their_epoch_on_and_in_a_resumed_run(
    opened: Open, backend: str, targets: str, schedule: dict[int, MultiMix | None]
) -> None:
    settings = {"mix": schedule, "backend": backend, "batch_size": 40, "targets": targets, "transform": TINY}
    loader = opened(**settings)
    current: MultiMix | None = None
    for epoch in range(5):
        current = schedule.get(epoch, current)
        k = 1 if current is None else current.k
        batches = list(loader)
        state = loader.state_dict()
        alone = opened(**{**settings, "targets": "rows", "mix": current})
        alone.set_epoch(epoch)
        for batch, expected in zip(batches, alone, strict=True):
            for name in ("partner", "lam", "method", "box"):
                assert np.array_equal(getattr(batch.plan.mix, name), getattr(expected.plan.mix, name))
            assert batch.images.equal(expected.images)
            assert batch.plan.epoch == epoch
            assert batch.images.shape == (40 * k, 3, 8, 8)
            rows = batch.targets if isinstance(batch.targets, torch.Tensor) else batch.targets[2]
            assert rows.dtype == torch.float32
            assert rows.shape == ((40 * k, CLASSES) if targets == "rows" else (40, k))
            assert MultiMixLoss()(torch.zeros(40 * k, CLASSES), batch.targets) > 0
            if current is None:
                assert np.all(batch.plan.lam == 1)
        resumed = opened(**settings)
        resumed.load_state_dict(json.loads(json.dumps(state)))
        assert resumed.state_dict() == state
    assert all_same(list(resumed), list(loader))


@needs_dali
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_whole_graph_follows_settings_by_epoch(opened: Open, schedule: dict[int, MultiMix | None]) -> None:
    from multimix_pipe.dali.executor import DaliExecutor

    context = opened(backend="dali", mix=schedule, batch_size=25, transform=TINY).context
    plain = Loader(context, DaliExecutor(replace(context, config=replace(context.config, expand=False)), ends="pixels"))
    mixed = Loader(context, DaliExecutor(context, ends="batch"))
    for _ in range(4):
        for a, b in zip(plain, mixed, strict=True):
            expected = torch.from_numpy(mix_images(a.images.contiguous().numpy(), a.plan.mix))
            rows = torch.from_numpy(b.plan.method != "resizemix").repeat_interleave(b.plan.mix.k)
            assert b.images.shape == expected.shape
            assert torch.allclose(b.images[rows], expected[rows], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("mix", "message"),
    [
        ({}, r"mix by epoch must have epoch 0 and at least one MultiMix.*found \{\}"),
        ({1: MultiMix()}, "must have epoch 0"),
        ({0: None}, "at least one MultiMix.*Use mix=None"),
        ({0: MultiMix(), -1: None}, "an epoch in mix must be an int >= 0; found -1"),
        ({0: "mixup"}, r"mix\[0\] must be a MultiMix or None; found 'mixup'"),
        ("mixup", "mix must be a MultiMix, None, or a mapping of epochs to these; found 'mixup'. Give a method as"),
    ],
)
def test_settings_by_epoch_that_do_not_fit_are_refused(opened: Open, mix: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        opened(mix=mix)
