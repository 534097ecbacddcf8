"""`MultiMix`: what a user decides about mixing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from multimix_pipe.config import check_choice, check_int, check_number, make_plain
from multimix_pipe.mixing.methods import METHODS

Sampling = Literal["iid", "stratified"]
LamPer = Literal["pair", "batch"]
Pairing = Literal["derangement", "roll", "flip"]


@dataclass(frozen=True)
class MultiMix:
    """K ordered interpolations of each sample pair (arXiv 2406.01417).

    For a pair (x, y), (x', y') with weights `lam_1 >= ... >= lam_K` drawn from Beta(alpha, alpha):

        x_k = lam_k * x + (1 - lam_k) * x'        y_k = lam_k * y + (1 - lam_k) * y'

    `lam` weights the row's own sample; K = 1 is plain mixup.

    >>> MultiMix(k=5, alpha=1.0, sampling="stratified")
    MultiMix(k=5, alpha=1.0, method='mixup', sampling='stratified', lam_per='pair', pairing='derangement', prob=1.0)
    """

    k: int = 5
    """Interpolations of each pair, 1..1024."""
    alpha: float = 1.0
    """Both parameters of the Beta distribution, in (0, 1000]; 1 is uniform, towards 0 the weights go to the ends."""
    method: str = "mixup"
    """How two images become one; `MultiMix.methods()` lists the names."""
    sampling: Sampling = "iid"
    """"iid": K independent weights, sorted. "stratified": weight k from the k-th of K equal slices of probability."""
    lam_per: LamPer = "pair"
    """"pair": own weights for each pair. "batch": one set for the whole batch."""
    pairing: Pairing = "derangement"
    """Who is mixed with whom: a random cycle through the batch, the row before ("roll"), the batch reversed ("flip")."""
    prob: float = 1.0
    """Probability that a pair (with lam_per="batch": a batch) is mixed; otherwise its K weights are 1."""

    def __post_init__(self) -> None:
        check_int("MultiMix.k", self.k, 1, 1024)
        check_number("MultiMix.alpha", self.alpha, 0.0, 1000.0, open_low=True)
        check_choice("MultiMix.method", self.method, tuple(METHODS))
        check_choice("MultiMix.sampling", self.sampling, get_args(Sampling))
        check_choice("MultiMix.lam_per", self.lam_per, get_args(LamPer))
        check_choice("MultiMix.pairing", self.pairing, get_args(Pairing))
        check_number("MultiMix.prob", self.prob, 0.0, 1.0)
        make_plain(self)

    @staticmethod
    def methods() -> tuple[str, ...]:
        """The names that `method` takes."""
        return tuple(METHODS)
