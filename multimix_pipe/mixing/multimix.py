"""`MultiMix`, the settings of multi-mix."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, is_dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple, get_args

from multimix_pipe.config import check_alpha, check_choice, check_int, check_number, make_plain
from multimix_pipe.errors import ConfigError
from multimix_pipe.mixing.method import Method
from multimix_pipe.mixing.methods import METHODS, check_needs_no_model
from multimix_pipe.mixing.presets import PRESETS

Sampling = Literal["iid", "stratified"]
LamPer = Literal["pair", "batch"]
Partners = Literal["same", "each"]
Crops = Literal["same", "each"]
Pairing = Literal["derangement", "roll", "flip"]
Alpha = float | tuple[float, float]


class Choice(NamedTuple):
    """One of the methods that a pair may be mixed by."""

    name: str
    method: Method
    alpha: Alpha
    prob: float


@dataclass(frozen=True)
class MultiMix:
    """Settings of multi-mix: K ordered interpolations of each pair of samples.

    Each sample x with target y is paired with a partner x', y' from the same batch. K weights lam_1 >= ... >= lam_K are drawn
    from Beta(alpha, alpha), and the pair becomes K members, with a weight field w_k and an image z_k made of x':

        x_k = w_k * x + (1 - w_k) * z_k        lam_k = mean(w_k)        y_k = lam_k * y + (1 - lam_k) * y'

    With method="mixup", w_k = lam_k everywhere and z_k = x'. The loss is the mean over all members. K = 1 is the plain method.
    Raises ConfigError if a field is out of its range.

    Source: Shen et al. 2024, arXiv 2406.01417.

    >>> MultiMix(k=3, method={Mixup(alpha=0.8): 0.5, CutMix(alpha=1.0): 0.5}).k
    3
    """

    k: int = 5
    """K, the members of each pair, in [1, 1024]. The model sees K times as many rows."""
    alpha: Alpha = 1.0
    """Both parameters of the Beta distribution, or a pair (a, b) of them, each in (0, 1000]. 1 is uniform; smaller values draw
    weights closer to 0 and 1."""
    method: str | Method | Mapping[str | Method, float] = field(default="mixup", hash=False)
    """How two images are combined: a name in `MultiMix.methods()`; an object with the method's own options, such as
    `CutMix(alpha=1.0)`; or a mapping of names or objects to probabilities that sum to 1, one of which is drawn for each pair."""
    sampling: Sampling = "iid"
    """"iid": K independent weights, sorted. "stratified": one weight from each of K slices of equal probability."""
    lam_per: LamPer = "pair"
    """"pair": each pair draws its own K weights, method and boxes. "batch": all pairs of a batch share them."""
    partners: Partners = "same"
    """"same": a pair has one partner. "each": each member has another partner from the batch, until all were used; the paper
    does not do this. It needs pairing="derangement"."""
    crops: Crops = "same"
    """"same": all members of a pair show one crop of each image. "each": each member is made of its own crop and flip of both
    images, which are decoded once; the paper does not do this. With prob=0 that is batch augmentation without mixing."""
    pairing: Pairing = "derangement"
    """How partners are chosen. "derangement": a random cycle through the batch; "roll": the previous row; "flip": the batch in
    reverse. No sample is its own partner unless it is alone in its batch."""
    prob: float = 1.0
    """Probability that a pair is mixed (a batch, with lam_per="batch"). Otherwise its K weights are 1."""

    def __post_init__(self) -> None:
        check_int("MultiMix.k", self.k, 1, 1024)
        check_alpha("MultiMix.alpha", self.alpha)
        check_choice("MultiMix.sampling", self.sampling, get_args(Sampling))
        check_choice("MultiMix.lam_per", self.lam_per, get_args(LamPer))
        check_choice("MultiMix.partners", self.partners, get_args(Partners))
        check_choice("MultiMix.crops", self.crops, get_args(Crops))
        check_choice("MultiMix.pairing", self.pairing, get_args(Pairing))
        check_number("MultiMix.prob", self.prob, 0.0, 1.0)
        if self.partners == "each" and self.pairing != "derangement":
            raise ConfigError(
                f'MultiMix.partners="each" needs pairing="derangement", which gives each member another partner; '
                f"found pairing={self.pairing!r}"
            )
        make_plain(self)
        if isinstance(self.method, Mapping):
            object.__setattr__(self, "method", _plain_switch(self.method))
        _ = self.choices

    @cached_property
    def choices(self) -> tuple[Choice, ...]:
        """The methods that a pair may be mixed by, each with its alpha and probability. Not part of the public API.

        They are sorted by name and options, so that mappings that are equal draw the same.
        """
        switch = self.method.items() if isinstance(self.method, Mapping) else [(self.method, 1.0)]
        methods = sorted(
            [(*_named_method(method), prob) for method, prob in switch], key=lambda choice: (choice[0], repr(choice[1]))
        )
        return tuple(
            Choice(name, method, getattr(method, "alpha", None) or self.alpha, prob) for name, method, prob in methods
        )

    def at(self, epoch: int) -> MultiMix:
        """Return these settings, as they hold for every epoch. Not part of the public API."""
        return self

    @property
    def mixes(self) -> tuple[MultiMix, ...]:
        """These settings alone: see `MixSchedule`. Not part of the public API."""
        return (self,)

    @staticmethod
    def methods() -> tuple[str, ...]:
        """Return the names that `method` accepts."""
        return tuple(METHODS)

    @staticmethod
    def preset(name: str, **changes: Any) -> MultiMix:
        """Return published settings by name, with some of them changed: `MultiMix.preset("deit", k=5)`.

        All are those of their source and K = 1, except that probabilities hold for each step there and for each pair only if
        you pass lam_per="pair". Raises ConfigError for an unknown name.

            deit             mixup with alpha 0.8 or CutMix with alpha 1; facebookresearch/deit, main.py
            timm             the same: timm's Mixup (timm/data/mixup.py, mode="batch") with DeiT's values
            torchvision      mixup with alpha 0.2 or CutMix with alpha 1; pytorch/vision, references/classification
            openmixup-cifar  mixup with alpha 0.1, CutMix with alpha 1 or none; Westlake-AI/openmixup,
                             configs/classification/cifar100/mixups/basic/r18_mixups_CE_none_multi_mode.py
        """
        check_choice("preset", name, tuple(PRESETS))
        return MultiMix(**{"k": 1, "lam_per": "batch", **PRESETS[name], **changes})

    def settings(self) -> dict[str, Any]:
        """Return all settings as a JSON-serialisable dict, for states. Not part of the public API."""
        plain = {name: value for name, value in vars(self).items() if name not in ("method", "choices")}
        only = self.choices[0]
        if len(self.choices) == 1 and only.method == METHODS[only.name]:
            return {**plain, "method": only.name}
        named = [
            {"name": choice.name, **(asdict(choice.method) if is_dataclass(choice.method) else {}), "prob": choice.prob}
            for choice in self.choices
        ]
        return {**plain, "method": named}


def _plain_switch(switch: Mapping[Any, Any]) -> dict[Any, float]:
    for method, prob in switch.items():
        check_number(f"the probability of {method!r} in MultiMix.method", prob, 0.0, 1.0, open_low=True)
    if abs(sum(switch.values()) - 1) > 1e-6:
        raise ConfigError(
            f"the probabilities in MultiMix.method must sum to 1; found {sum(switch.values()):g}, the sum of "
            f"{', '.join(f'{prob:g}' for prob in switch.values())}. Use prob= to leave some pairs unmixed"
        )
    return {method: float(prob) for method, prob in switch.items()}


def _named_method(method: object) -> tuple[str, Method]:
    """Return a method's registered name and the object. Raises ConfigError for an unknown one, listing those that are known."""
    if isinstance(method, str):
        check_needs_no_model(method)
        check_choice("MultiMix.method", method, tuple(METHODS))
        return method, METHODS[method]
    for name, registered in METHODS.items():
        if type(method) is type(registered):
            return name, method
    raise ConfigError(
        f"MultiMix.method must be one of {', '.join(map(repr, METHODS))}, an object of their classes, or a mapping of these to "
        f"probabilities; found {method!r}. Register a method of your own in multimix_pipe.mixing.METHODS first"
    )
