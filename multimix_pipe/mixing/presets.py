"""Published settings by name: see `MultiMix.preset`."""

from __future__ import annotations

from typing import Any

from multimix_pipe.mixing.cutmix import CutMix
from multimix_pipe.mixing.mixup import Mixup

# timm/data/mixup.py: mode="batch", pairs with the batch in reverse, switch_prob=0.5
_TIMM = {"method": {Mixup(alpha=0.8): 0.5, CutMix(alpha=1.0): 0.5}, "pairing": "flip"}

PRESETS: dict[str, dict[str, Any]] = {
    "deit": _TIMM,
    "timm": _TIMM,
    # references/classification/transforms.py: RandomChoice([MixUp(0.2), CutMix(1.0)]) on a batch; v2 rolls it by one
    "torchvision": {"method": {Mixup(alpha=0.2): 0.5, CutMix(alpha=1.0): 0.5}, "pairing": "roll"},
    # alpha=[0.1, 1, 1], mix_mode=["mixup", "cutmix", "vanilla"], mix_prob=None: equally likely, a permutation as partners
    "openmixup-cifar": {"method": {Mixup(alpha=0.1): 0.5, CutMix(alpha=1.0): 0.5}, "prob": 2 / 3},
}
"""Arguments of `MultiMix`, beside K = 1 and weights, methods and boxes that a batch shares."""
