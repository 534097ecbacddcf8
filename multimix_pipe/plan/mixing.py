"""Draws a `MixPlan`: partners, weights and boxes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray

from multimix_pipe.errors import ConfigError
from multimix_pipe.mixing import Alpha, Members, MixPlan, MultiMix, Pairing
from multimix_pipe.mixing.method import Field
from multimix_pipe.plan.beta import inverse_beta
from multimix_pipe.plan.seeding import WORDS_PER_BLOCK, Stream, Words, draw_words, permutation, uniform


def draw_mixing(
    mix: MultiMix | None, seed: int, epoch: int, start: int, rows: int, size: tuple[int, int] = (1, 1)
) -> MixPlan:
    """Draw the mixing plan of the batch at positions [start, start + rows) of an epoch.

    `size` is the images' (height, width), which boxes are drawn for. With mix=None, or with a single row, each row is its own
    partner with weight 1.
    """
    if mix is None:
        return MixPlan.identity(rows)
    words = draw_words(seed, Stream.PARTNER, epoch, start, rows, 1)[:, 0]
    if mix.partners == "each":
        partner = partners_of_members(words, mix.k, partial(draw_words, seed, Stream.SHIFT, epoch, start))
    else:
        partner = draw_partners(words, mix.pairing)
    drawn = 1 if mix.lam_per == "batch" else rows
    words = draw_words(seed, Stream.LAM, epoch, start, drawn, 1 + mix.k)
    names, parts = draw_members(mix, words, partial(draw_words, seed, epoch=epoch, start=start), size)
    if drawn != rows:
        names, parts = np.repeat(names, rows), parts.each(lambda part: np.repeat(part, rows, axis=0))
    if rows == 1:
        parts = parts.each(np.zeros_like)._replace(lam=np.ones_like(parts.lam))
    return MixPlan(partner, parts.lam, names, parts.box, parts.factors)  # type: ignore[arg-type]


def draw_members(
    mix: MultiMix, words: Words, more: Callable[..., Words], size: tuple[int, int]
) -> tuple[NDArray[np.str_], Members]:
    """Draw the methods of n pairs, (n,) names, and their members. With a switch, each pair gets what its method alone draws.

    words: (n, 1 + K), as `ordered_weights` takes them. more(stream=, count=, per_position=): further words of the n pairs.
    """
    count = len(words)
    names, which = np.array([choice.name for choice in mix.choices]), np.zeros(count, dtype=np.intp)
    if len(names) > 1:
        u = uniform(more(stream=Stream.METHOD, count=count, per_position=1)[:, 0])
        which = np.searchsorted(np.cumsum([choice.prob for choice in mix.choices])[:-1], u, side="right")
    found: list[tuple[NDArray[np.bool_], Members]] = []
    for number, choice in enumerate(mix.choices):
        method, chosen = choice.method, which == number
        if not chosen.any() and len(names) > 1:
            continue
        needed = method.uniforms + mix.k * getattr(method, "member_uniforms", 0)
        # methods that need another number of blocks have words of their own: a switch may hold several
        blocks = max(needed - 1, 0) // WORDS_PER_BLOCK
        u = uniform(more(stream=Stream.FIELD, count=count, per_position=needed, attempt=blocks))[chosen]
        members = Members(*method.draw(u, ordered_weights(words[chosen], mix, choice.alpha), size))
        if members.box is None and method.field in (Field.BOX, Field.RESIZED):
            raise ConfigError(f"{method!r} must draw boxes, as its field is {method.field.name}; found None")
        found.append((chosen, members))
    if len(found) == 1:
        return names[which], found[0][1]
    return names[which], Members(*(_merge(found, name) for name in Members._fields))  # type: ignore[arg-type]


def _merge(found: list[tuple[NDArray[np.bool_], Members]], name: str) -> NDArray[np.generic] | None:
    """Return a field of the members of all pairs; zeros for pairs whose method does not have it, None if no method does."""
    merged: NDArray[np.generic] | None = None
    for chosen, members in found:
        part = getattr(members, name)
        if part is not None:
            merged = np.zeros((len(chosen), *part.shape[1:]), dtype=part.dtype) if merged is None else merged
            merged[chosen] = part
    return merged


def ordered_weights(words: Words, mix: MultiMix, alpha: Alpha | None = None) -> NDArray[np.float32]:
    """Draw K weights per row from Beta(alpha, alpha), or Beta(a, b), in non-increasing order.

    With F the distribution function and U_k uniform in (0, 1):

        iid          lam = F^-1(U_1), ..., F^-1(U_K), sorted
        stratified   lam_k = F^-1((K - 1 - k + U_k) / K), k = 0 ... K-1

    Under both, the mean over k of any function of lam has the same expectation; the stratified weights give it less variance.

    Args:
        words: (n, 1 + K) random words. The first one decides whether the row is mixed, with probability `mix.prob`.
        mix: the settings.
        alpha: a number or a pair (a, b) that replaces `mix.alpha`.

    Returns:
        (n, K) float32 in [0, 1]; all 1 in rows that are not mixed.
    """
    u = uniform(words[:, 1:])
    if mix.sampling == "stratified":
        u = (np.arange(mix.k - 1, -1, -1) + u) / mix.k
    lam = -np.sort(-inverse_beta(alpha or mix.alpha, u).astype(np.float32), axis=1)
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


def partners_of_members(words: Words, k: int, more: Callable[[int, int], Words]) -> NDArray[np.int64]:
    """Return another partner for each of the K members of n pairs, int64 (n, K), from a uniformly random cycle of all rows.

    Member k takes the row s_k places further along the cycle. The shifts s_k are a random permutation of 1 .. n - 1, and of
    further ones if K is larger, so each partner is uniform over the other rows, and none comes twice until all were used.

    Args:
        words: (n,) random words for the cycle, as in `draw_partners`.
        k: K.
        more: more(count, per_position) returns random words for the shifts.
    """
    n = len(words)
    if n == 1:
        return np.zeros((1, k), dtype=np.int64)
    rounds = more(n - 1, -(-k // (n - 1)))
    shift = 1 + np.concatenate([permutation(column) for column in rounds.T])[:k]
    cycle = permutation(words)
    partner = np.empty((n, k), dtype=np.int64)
    partner[cycle] = cycle[(np.arange(n)[:, None] + shift) % n]
    return partner
