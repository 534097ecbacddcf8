"""Weights are Beta(alpha, alpha), ordered and in [0, 1]; partners are others, each as likely."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import special, stats

from multimix_pipe.mixing import MultiMix, Pairing, Sampling
from multimix_pipe.plan import draw_mixing
from multimix_pipe.plan.beta import inverse_beta
from multimix_pipe.plan.mixing import draw_partners, ordered_weights
from multimix_pipe.plan.seeding import Stream, draw_words

PAIRINGS: tuple[Pairing, ...] = ("derangement", "roll", "flip")
SAMPLINGS: tuple[Sampling, ...] = ("iid", "stratified")
ALPHAS = [1e-300, 1e-6, 0.01, 0.1, 0.2, 0.4, 1.0, 2.0, 10.0, 1000.0]


def weights(rows: int, seed: int = 0, **options: object) -> NDArray[np.float32]:
    mix = MultiMix(**options)  # type: ignore[arg-type]
    return ordered_weights(draw_words(seed, Stream.LAM, 0, 0, rows, 1 + mix.k), mix)


@pytest.mark.parametrize("alpha", [a for a in ALPHAS if a >= 0.1])
def test_the_table_is_the_inverse_beta_distribution(alpha: float) -> None:
    u = np.concatenate([np.random.default_rng(0).random(5000), [1e-12, 1e-6, 0.5, 1 - 1e-6, 1 - 1e-12]])
    assert np.max(np.abs(inverse_beta(alpha, u) - special.betaincinv(alpha, alpha, u))) < 2e-6


@pytest.mark.parametrize("alpha", ALPHAS)
def test_the_table_is_symmetric_and_never_decreases(alpha: float) -> None:
    u = np.sort(np.concatenate([np.arange(1, 4096) / 4096, np.geomspace(2.0**-63, 0.5, 3000)]))
    x = inverse_beta(alpha, u)
    assert np.all(np.diff(x) >= 0)
    assert x[0] >= 0
    dyadic = np.arange(2049) / 4096  # 1 - u is exact for these
    assert np.array_equal(inverse_beta(alpha, 1 - dyadic), 1 - inverse_beta(alpha, dyadic))


@pytest.mark.parametrize("alpha", [0.01, 0.2, 0.4, 1.0, 8.0, 1000.0])
def test_iid_weights_are_beta_distributed(alpha: float) -> None:
    lam = weights(4000, alpha=alpha, k=5).ravel().astype(np.float64)
    # a small alpha puts atoms at 0 and 1 in float32: compared over the middle, where there are none
    middle = (lam > 1e-6) & (lam < 1 - 1e-6)
    beta = stats.beta(alpha, alpha)
    inside = beta.cdf(1 - 1e-6) - beta.cdf(1e-6)
    assert abs(middle.mean() - inside) < 0.02
    result = stats.kstest(lam[middle], lambda x: (beta.cdf(x) - beta.cdf(1e-6)) / inside)
    assert result.pvalue > 0.01


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("k", [1, 5, 1024])
def test_weights_are_ordered_float32_in_the_unit_interval(alpha: float, sampling: Sampling, k: int) -> None:
    lam = weights(50, alpha=alpha, sampling=sampling, k=k)
    assert lam.shape == (50, k)
    assert lam.dtype == np.float32
    assert lam.min() >= 0
    assert lam.max() <= 1
    assert np.all(np.diff(lam, axis=1) <= 0)


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_stratified_weights_have_the_same_mean_and_far_less_variance(alpha: float) -> None:
    iid, stratified = (weights(4000, alpha=alpha, k=5, sampling=sampling) for sampling in SAMPLINGS)
    for f, factor in ((lambda lam: lam, 10), (lambda lam: lam**2, 6), (lambda lam: lam * (1 - lam), 2)):
        mean_iid, mean_stratified = f(iid).mean(axis=1), f(stratified).mean(axis=1)
        error = 4 * np.sqrt((mean_iid.var() + mean_stratified.var()) / 4000)
        assert abs(mean_iid.mean() - mean_stratified.mean()) < error
        assert mean_stratified.var() < mean_iid.var() / factor


def test_stratified_weight_k_comes_from_slice_k() -> None:
    lam = weights(2000, k=4, sampling="stratified")
    for k, low in enumerate([0.75, 0.5, 0.25, 0.0]):
        assert lam[:, k].min() >= low
        assert lam[:, k].max() <= low + 0.25


@pytest.mark.parametrize(("prob", "least", "most"), [(0.0, 0.0, 0.0), (0.3, 0.27, 0.33), (1.0, 1.0, 1.0)])
def test_a_pair_is_mixed_with_its_probability_else_all_its_weights_are_one(
    prob: float, least: float, most: float
) -> None:
    lam = weights(4000, prob=prob)
    mixed = np.any(lam < 1, axis=1)
    assert least <= mixed.mean() <= most
    assert np.all(lam[~mixed] == 1)
    assert np.array_equal(lam[mixed], weights(4000)[mixed])


@pytest.mark.parametrize("pairing", PAIRINGS)
@pytest.mark.parametrize("rows", [2, 3, 4, 5, 64, 257])
def test_no_row_is_its_own_partner(pairing: Pairing, rows: int) -> None:
    for start in range(20):
        partner = draw_partners(draw_words(0, Stream.PARTNER, 0, start * rows, rows, 1)[:, 0], pairing)
        assert partner.dtype == np.int64
        assert np.all(partner != np.arange(rows))
        if pairing != "flip" or rows % 2 == 0:
            assert np.array_equal(np.sort(partner), np.arange(rows))


def test_roll_takes_the_row_before_and_flip_the_batch_reversed() -> None:
    words = draw_words(0, Stream.PARTNER, 0, 0, 5, 1)[:, 0]
    assert draw_partners(words, "roll").tolist() == [4, 0, 1, 2, 3]
    assert draw_partners(words, "flip").tolist() == [4, 3, 0, 1, 0]
    assert draw_partners(words[:4], "flip").tolist() == [3, 2, 1, 0]


def test_a_derangements_partner_is_uniform_over_the_others() -> None:
    rows, batches = 6, 6000
    words = draw_words(0, Stream.PARTNER, 0, 0, rows * batches, 1).reshape(batches, rows)
    partners = np.array([draw_partners(batch, "derangement") for batch in words])
    for row in range(rows):
        counts = np.bincount(partners[:, row], minlength=rows)
        assert counts[row] == 0
        assert stats.chisquare(np.delete(counts, row)).pvalue > 0.001


@pytest.mark.parametrize("pairing", PAIRINGS)
def test_a_batch_of_one_is_not_mixed(pairing: Pairing) -> None:
    plan = draw_mixing(MultiMix(pairing=pairing), 0, 0, 17, 1)
    assert plan.partner.tolist() == [0]
    assert plan.lam.tolist() == [[1.0] * 5]


def test_without_mixing_each_row_stands_alone() -> None:
    plan = draw_mixing(None, 0, 0, 0, 3)
    assert plan.partner.tolist() == [0, 1, 2]
    assert plan.lam.tolist() == [[1.0]] * 3


def test_lam_per_batch_gives_one_set_of_weights_to_all_rows_and_another_to_the_next_batch() -> None:
    mix = MultiMix(lam_per="batch", alpha=0.4)
    first, second = draw_mixing(mix, 0, 0, 0, 16).lam, draw_mixing(mix, 0, 0, 16, 16).lam
    assert np.all(first == first[0])
    assert not np.array_equal(first[0], second[0])
