"""Drawing a `MixPlan`: who is mixed with whom, how much, and where."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from multimix_pipe.mixing import METHODS, MixPlan, MultiMix, Pairing
from multimix_pipe.plan.beta import inverse_beta
from multimix_pipe.plan.seeding import Stream, Words, draw_words, permutation, uniform


def draw_mixing(
    mix: MultiMix | None, seed: int, epoch: int, start: int, rows: int, size: tuple[int, int] = (1, 1)
) -> MixPlan:
    """The mixing of a batch at positions [start, start + rows) of images of `size` = (height, width).

    Without mixing: each row with itself, weight 1. A row that has no other row to mix with (rows = 1) has weight 1 too.
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
    """K weights of Beta(alpha, alpha) in non-increasing order for each row of words: float32 (n, K).

    With F the distribution function of Beta(alpha, alpha) and U_k uniform in (0, 1):

        iid          lam = sort of F^-1(U_1) ... F^-1(U_K)
        stratified   lam_k = F^-1((K - 1 - k + U_k) / K), k = 0 ... K-1

    The mean over k of any function of lam has the same expectation under both; stratified weights have less variance. A row
    that is not mixed (`prob`) has all weights 1. words: (n, 1 + K).
    """
    u = uniform(words[:, 1:])
    if mix.sampling == "stratified":
        u = (np.arange(mix.k - 1, -1, -1) + u) / mix.k
    lam = -np.sort(-inverse_beta(mix.alpha, u).astype(np.float32), axis=1)
    mixed = uniform(words[:, :1]) < mix.prob
    return np.where(mixed, lam, np.float32(1.0))


def draw_partners(words: Words, pairing: Pairing) -> NDArray[np.int64]:
    """The row that each row is mixed with: int64 (n,). No row is its own partner for n >= 2.

    derangement   a uniformly random cycle through all rows: each row's partner is uniform over the others
    roll          the row before, the first row takes the last (torchvision)
    flip          the batch reversed (timm); with an odd n the middle row takes row 0
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
