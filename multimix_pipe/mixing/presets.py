"""Published settings by name: see `MultiMix.preset`."""

from __future__ import annotations

from multimix_pipe.mixing.cutmix import CutMix
from multimix_pipe.mixing.mixup import Mixup
from multimix_pipe.mixing.multimix import MultiMix

# timm/data/mixup.py: mode="batch", pairs with the batch in reverse, switch_prob=0.5
_TIMM = MultiMix(k=1, method={Mixup(alpha=0.8): 0.5, CutMix(alpha=1.0): 0.5}, lam_per="batch", pairing="flip")

PRESETS: dict[str, MultiMix] = {
    "deit": _TIMM,
    "timm": _TIMM,
    # references/classification/transforms.py: RandomChoice([MixUp(0.2), CutMix(1.0)]) on a batch; v2 rolls it by one
    "torchvision": MultiMix(
        k=1, method={Mixup(alpha=0.2): 0.5, CutMix(alpha=1.0): 0.5}, lam_per="batch", pairing="roll"
    ),
    # alpha=[0.1, 1, 1], mix_mode=["mixup", "cutmix", "vanilla"], mix_prob=None: equally likely, a permutation as partners
    "openmixup-cifar": MultiMix(
        k=1, method={Mixup(alpha=0.1): 0.5, CutMix(alpha=1.0): 0.5}, lam_per="batch", prob=2 / 3
    ),
}
