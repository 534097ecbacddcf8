"""How much less does a gradient vary with K weights per pair, independent or stratified?

    python bench/gradient_variance.py

For B pairs with K independent weights each, the trace of the gradient's covariance is s_pair/B + (s_lam + s_both)/(B*K): a larger
K shrinks only the part that comes from the weights. It is measured on generated shapes with the demo's network after a short
training, with frozen batch statistics so that a gradient is a mean over rows. There are --sets sets of pairs, and --draws draws
of weights for each set. "weights" is the variance between draws of weights for the same pairs, "all" that between draws of both.
"""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from harness import parser, report
from multimix_pipe import MultiMix, MultiMixLoss, apply_mix, mix_batch
from multimix_pipe.cli.demo.net import small_net
from multimix_pipe.cli.demo.shapes import OUTLINES, draw_shape
from multimix_pipe.mixing import MixPlan
from multimix_pipe.plan import draw_mixing

PAIRS, IMAGES = 32, 1024


def shapes() -> tuple[Tensor, Tensor]:
    """Draw IMAGES images (N, 3, 32, 32) in [-1, 1] and return them with their labels."""
    names = list(OUTLINES)
    pixels = []
    for number in range(IMAGES):
        drawn = Image.open(io.BytesIO(draw_shape(names[number % len(names)], np.random.default_rng(number))))
        pixels.append(np.asarray(drawn.convert("RGB").resize((32, 32)), dtype=np.float32) / 127.5 - 1)
    labels = torch.arange(IMAGES) % len(names)
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous(), labels


def trained(images: Tensor, labels: Tensor, steps: int) -> nn.Module:
    torch.manual_seed(0)
    net = small_net(len(OUTLINES))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.02, momentum=0.9)
    for step in range(steps):
        rows = torch.from_numpy(np.random.default_rng(step).permutation(IMAGES)[:64])
        batch = mix_batch(images[rows], labels[rows], MultiMix(k=1), num_classes=len(OUTLINES), step=step)
        optimizer.zero_grad()
        MultiMixLoss()(net(batch.images), batch.targets).backward()
        optimizer.step()
    return net.eval()


def gradients(net: nn.Module, images: Tensor, labels: Tensor, mix: MultiMix, sets: int, draws: int) -> Iterator[Tensor]:
    """Yield, for each set of pairs, the gradients under `draws` draws of its weights: (draws, parameters)."""
    loss_function = MultiMixLoss()
    for number in range(sets):
        rows = torch.from_numpy(np.random.default_rng(10_000 + number).permutation(IMAGES)[:PAIRS])
        partner = draw_mixing(mix, 1, number, 0, PAIRS).partner
        of_set = []
        for draw in range(draws):
            plan = MixPlan(partner, draw_mixing(mix, 2, number * draws + draw, 0, PAIRS).lam)
            batch = apply_mix(images[rows], labels[rows], plan, num_classes=len(OUTLINES))
            net.zero_grad()
            loss_function(net(batch.images), batch.targets).backward()
            of_set.append(torch.cat([weight.grad.flatten() for weight in net.parameters() if weight.grad is not None]))
        yield torch.stack(of_set)


def variances(of_sets: list[Tensor]) -> dict[str, float]:
    """Return unbiased estimates of the covariance's trace: of the weights alone ("weights"), and of everything ("all")."""
    draws = of_sets[0].shape[0]
    within = float(np.mean([float(of_set.var(0).sum()) for of_set in of_sets]))
    between = float(torch.stack([of_set.mean(0) for of_set in of_sets]).var(0).sum()) - within / draws
    return {"weights": within, "all": between + within}


def main() -> None:
    args = parser(__doc__, sets=20, draws=6, train_steps=150).parse_args()
    images, labels = shapes()
    net = trained(images, labels, args.train_steps)
    results: dict[str, dict[str, float]] = {}
    for k in (1, 2, 5, 10):
        for sampling in ("iid", "stratified") if k > 1 else ("iid",):
            of_sets = list(gradients(net, images, labels, MultiMix(k=k, sampling=sampling), args.sets, args.draws))
            results[f"K={k} {sampling}"] = variances(of_sets)
    one = results["K=1 iid"]
    print(f"{PAIRS} pairs, Beta(1, 1); trace of the gradient's covariance, relative to that at K=1")
    for name, found in results.items():
        print(f"{name:16} weights {found['weights'] / one['weights']:6.3f}   all {found['all'] / one['all']:6.3f}")
    print(f"at K=1 the weights alone account for {one['weights'] / one['all']:.0%} of the variance")
    report(__doc__, {"pairs": PAIRS, "variance": results}, args.json)


if __name__ == "__main__":
    main()
