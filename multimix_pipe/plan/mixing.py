"""Draws a `MixPlan`: partners, weights and boxes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from multimix_pipe.mixing import METHODS, MixPlan, MultiMix, Pairing
from multimix_pipe.plan.beta import inverse_beta
from multimix_pipe.plan.seeding import Stream, Words, draw_words, permutation, uniform


def draw_mixing(
    mix: MultiMix | None, seed: int, epoch: int, start: int, rows: int, size: tuple[int, int] = (1, 1)
) -> MixPlan:
    """Draw the mixing plan of the batch at positions [start, start + rows) of an epoch.

    `size` is the images' (height, width), which boxes are drawn for. With mix=None, or with a single row, each row is its own
    partner with weight 1.
    """
    if mix is None:
        return MixPlan.identity(rows)
    partner = draw_partners(draw_words(seed, Stream.PARTNER, epoch, start, rows, 1)[:, 0], mix.pairing)
    draws = 1 if mix.lam_per == "batch" else rows
    method = METHODS[mix.method]
    lam = ordered_weights(draw_words(seed, Stream.LAM, epoch, start, draws, 1 + mix.k), mix)
    u = uniform(draw_words(seed, Stream.FIELD, epoch, start, draws, method.uniforms))
    in_effect, box = (np.broadcast_to(part, (rows, *part.shape[1:])) for part in method.draw(u, lam, size))
    alone = partner == np.arange(rows)
    return MixPlan(
        partner=partner,
        lam=np.where(alone[:, None], np.float32(1.0), in_effect),
        method=np.full(rows, mix.method),
        box=np.where(alone[:, None, None], np.int32(0), box),
    )


def ordered_weights(words: Words, mix: MultiMix) -> NDArray[np.float32]:
    """Draw K weights per row from Beta(alpha, alpha), in non-increasing order.

    With F the distribution function of Beta(alpha, alpha) and U_k uniform in (0, 1):

        iid          lam = F^-1(U_1), ..., F^-1(U_K), sorted
        stratified   lam_k = F^-1((K - 1 - k + U_k) / K), k = 0 ... K-1

    Under both, the mean over k of any function of lam has the same expectation; the stratified weights give it less variance.

    Args:
        words: (n, 1 + K) random words. The first one decides whether the row is mixed, with probability `mix.prob`.
        mix: the settings.

    Returns:
        (n, K) float32 in [0, 1]; all 1 in rows that are not mixed.
    """
    u = uniform(words[:, 1:])
    if mix.sampling == "stratified":
        u = (np.arange(mix.k - 1, -1, -1) + u) / mix.k
    lam = -np.sort(-inverse_beta(mix.alpha, u).astype(np.float32), axis=1)
    mixed = uniform(words[:, :1]) < mix.prob
    return np.where(mixed, lam, np.float32(1.0))


def draw_partners(words: Words, pairing: Pairing) -> NDArray[np.int64]:
    """Return the partner of each of n rows, int64 (n,). For n >= 2 no row is its own partner.

    derangement   a uniformly random cycle through all rows, so each row's partner is uniform over the other rows
    roll          the previous row; row 0 takes the last row (as in torchvision)
    flip          the batch in reverse (as in timm); with an odd n the middle row takes row 0

    words: (n,) random words; "roll" and "flip" use only their number.
    """
    n = len(words)
    rows = np.arange(n, dtype=np.int64)
    if pairing == "roll":
        return np.roll(rows, 1)
    if pairing == "flip":
        partner = rows[::-1].copy()
        partner[partner == rows] = 0
        return partner
    cycle = permutation(words)
    partner = np.empty(n, dtype=np.int64)
    partner[cycle] = np.roll(cycle, -1)
    return partner
