"""`MultiMix`, the settings of multi-mix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from multimix_pipe.config import check_choice, check_int, check_number, make_plain
from multimix_pipe.mixing.methods import METHODS, check_needs_no_model

Sampling = Literal["iid", "stratified"]
LamPer = Literal["pair", "batch"]
Pairing = Literal["derangement", "roll", "flip"]


@dataclass(frozen=True)
class MultiMix:
    """Settings of multi-mix: K ordered interpolations of each pair of samples.

    Each sample x with target y is paired with a partner x', y' from the same batch. K weights lam_1 >= ... >= lam_K are drawn
    from Beta(alpha, alpha), and the pair becomes K members (with method="mixup"):

        x_k = lam_k * x + (1 - lam_k) * x'        y_k = lam_k * y + (1 - lam_k) * y'

    The loss is the mean over all members. K = 1 is plain mixup. Raises ConfigError if a field is out of its range.

    Source: Shen et al. 2024, arXiv 2406.01417.

    >>> MultiMix(k=5, alpha=1.0, sampling="stratified")
    MultiMix(k=5, alpha=1.0, method='mixup', sampling='stratified', lam_per='pair', pairing='derangement', prob=1.0)
    """

    k: int = 5
    """K, the members of each pair, in [1, 1024]. The model sees K times as many rows."""
    alpha: float = 1.0
    """Both parameters of the Beta distribution, in (0, 1000]. 1 is uniform; smaller values draw weights closer to 0 and 1."""
    method: str = "mixup"
    """How two images are combined: one of the names in `MultiMix.methods()`."""
    sampling: Sampling = "iid"
    """"iid": K independent weights, sorted. "stratified": one weight from each of K slices of equal probability."""
    lam_per: LamPer = "pair"
    """"pair": each pair draws its own K weights. "batch": all pairs of a batch share them."""
    pairing: Pairing = "derangement"
    """How partners are chosen. "derangement": a random cycle through the batch; "roll": the previous row; "flip": the batch in
    reverse. No sample is its own partner unless it is alone in its batch."""
    prob: float = 1.0
    """Probability that a pair is mixed (a batch, with lam_per="batch"). Otherwise its K weights are 1."""

    def __post_init__(self) -> None:
        check_int("MultiMix.k", self.k, 1, 1024)
        check_number("MultiMix.alpha", self.alpha, 0.0, 1000.0, open_low=True)
        check_needs_no_model(self.method)
        check_choice("MultiMix.method", self.method, tuple(METHODS))
        check_choice("MultiMix.sampling", self.sampling, get_args(Sampling))
        check_choice("MultiMix.lam_per", self.lam_per, get_args(LamPer))
        check_choice("MultiMix.pairing", self.pairing, get_args(Pairing))
        check_number("MultiMix.prob", self.prob, 0.0, 1.0)
        make_plain(self)

    @staticmethod
    def methods() -> tuple[str, ...]:
        """Return the names that `method` accepts."""
        return tuple(METHODS)
