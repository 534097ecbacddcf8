"""Partners and weights: who is mixed with whom, and how much.

lam (n, K) float32 in [0, 1], non-increasing along k; lam[b, k] weights row b's own sample.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from multimix_pipe.config import MultiMix, Pairing
from multimix_pipe.plan.beta import inverse_beta
from multimix_pipe.plan.seeding import Words, permutation, uniform


def words_per_position(mix: MultiMix) -> int:
    """Words that `ordered_weights` takes a position: one for `prob`, one for each weight."""
    return 1 + mix.k


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
