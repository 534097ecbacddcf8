"""By how much does mixing each pair K times reduce the variance of the minibatch gradient?

    python pipelines/evidence/gradient_variance.py [SHARDS] [--alpha 1] [--crops] --out FOLDER

SHARDS is a folder that `multimix-pipe pack` wrote; without it, the images are generated shapes. The script trains a small
convolutional network, with and without BatchNorm, by mixup, and measures the gradient at its initial weights, half-way and at the
end. It writes gradient_variance.json, which it continues if it was stopped, and gradient_variance.png (needs matplotlib).

The gradient of a minibatch of B pairs with K members each is the mean of row gradients,

    G = 1/(B K) sum_b sum_k g(p_b, u_bk)        p = (x, x') a pair, u its weight

Its variance is the trace of its covariance, a sum over all parameters. By the law of total variance, given the pairs P,

    tr Var G = tr Var(E[G | P]) + E tr Var(G | P)                                  "pairs" + "weights"

Write g - E g = a(p) + l(u) + m(p, u), where a and l are the conditional means and the three are uncorrelated, and let s_pair,
s_lam, s_both be the traces of their covariances. If pairs are independent of each other, the first term is s_pair/B, as the mean
over u leaves a alone. Given P, the weights are independent, so the second term is (s_lam + s_both)/(B K):

    K iid weights            s_pair/B + (s_lam + s_both)/(B K)
    one set for the batch    s_pair/B + s_lam/K + s_both/(B K)                     the same l(u) in all pairs
    K identical weights      as K = 1
    B*K fresh pairs          (s_pair + s_lam + s_both)/(B K)

A loader forms its pairs from the B images of a batch, in a cycle, so pairs are not independent: each image is in two of them.
With s_image the trace of the covariance between E[g | x] and E[g | x'], of the same image in its two places, each image adds
2 s_image to B times the variance: s_pair becomes s_pair + 2 s_image in all four lines. In the second line s_both becomes
s_both + s_cycle, with the covariance of m(p, u) and m(p', u) of two pairs with one image in common and one weight: that image
has the weight u in one and 1 - u in the other, so s_cycle is negative if g is nearly linear in u. With another partner for each
member, an image is in 2 K rows, and only what is specific to two images, s_pair - 2 s_image, is averaged over B K pairs:

    another partner each     4 s_image/B + (s_pair - 2 s_image + s_lam + s_both)/(B K)

The parts are estimated at K = 1 from a nested design: --sets sets of images, drawn with replacement, and for each of them
several draws of the weights. The variance within a set, times B, gives s_lam + s_both (one weight for each pair), B s_lam +
s_both (one for the batch, pairs of 2 B images) and B s_lam + s_both + s_cycle (one for the batch, pairs in a cycle); the
variance between sets, times B, gives s_pair + 2 s_image (pairs in a cycle) and s_pair (pairs of 2 B images). All arms use the
same sets, so their ratios are more exact than their values. Intervals are percentiles of a bootstrap over the sets. With
BatchNorm a row's gradient depends on the other rows, so the formulas need not hold; the gradient is then that of training, with
the batch's own statistics.

--crops trains and measures with random crops and flips. The crop of an image is then a part of its pair, except in the arms with
another crop each. Given the images of a batch and who is mixed with whom, the batches that the members k = 1 .. K make are
independent, so with "images" for tr Var(E[G | images]) and "crops" for what the choice of the crops adds,

    one crop for all members    images + crops + weights/K
    another crop each           images + (crops + weights)/K

where "images" and "crops" + "weights" are estimated from K = 1 with several draws of crops and weights for each set of images.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from evidence import Float, Results, checksum, interval, one_line_errors, read_images, resample, show
from gradient_crops import SCALE, random_crops, resize
from multimix_pipe import MixPlan, MultiMix, MultiMixLoss, apply_mix, mix_batch

KS = (1, 2, 3, 5, 10)
FAMILY = ("cutmix", "resizemix", "smoothmix")
STAGES = {"initial": 0.0, "half-way": 0.5, "end": 1.0}
HELD_OUT = 2000


@dataclass(frozen=True)
class Arm:
    """One way to make a minibatch of B*K rows."""

    name: str
    mix: MultiMix | None
    made: str = "loader"
    """"loader": as the loader does. "identical": the weight of K = 1, K times. "fresh": B*K pairs with one weight each.
    "disjoint": each pair of two images of its own. "none": the B images themselves."""
    draws: int = 2
    """Draws of the weights for each set of pairs."""

    @property
    def k(self) -> int:
        return self.mix.k if self.mix else 1

    @property
    def crops_each(self) -> bool:
        return self.mix is not None and self.mix.crops == "each"


def arms(alpha: float, draws: int, ks: tuple[int, ...] = KS, crops: bool = False) -> list[Arm]:
    """Return all arms; those of K = 1, of which the parts are estimated, have `draws` draws of their weights.

    With `crops`, there are those with another crop each in the place of the other methods.
    """
    at_one = [
        Arm("no mixing", None, "none", 1),
        Arm("K=1", MultiMix(k=1, alpha=alpha), draws=draws),
        Arm("K=1 per batch", MultiMix(k=1, alpha=alpha, lam_per="batch"), draws=draws),
        Arm("K=1 disjoint", MultiMix(k=1, alpha=alpha), "disjoint", draws),
        Arm("K=1 disjoint per batch", MultiMix(k=1, alpha=alpha, lam_per="batch"), "disjoint", draws),
    ]
    more = [arm for k in ks[1:] for arm in (
        Arm(f"K={k} iid", MultiMix(k=k, alpha=alpha)),
        Arm(f"K={k} stratified", MultiMix(k=k, alpha=alpha, sampling="stratified")),
        Arm(f"K={k} iid per batch", MultiMix(k=k, alpha=alpha, lam_per="batch")),
        Arm(f"K={k} identical", MultiMix(k=1, alpha=alpha), f"identical {k}"),
        Arm(f"K={k} partners each", MultiMix(k=k, alpha=alpha, partners="each")),
        Arm(f"K={k} partners each, stratified", MultiMix(k=k, alpha=alpha, partners="each", sampling="stratified")),
        Arm(f"K={k} fresh", MultiMix(k=1, alpha=alpha), f"fresh {k}"),
    )]  # fmt: skip
    family = [arm for method in FAMILY for arm in (
        Arm(f"{method} K=1", MultiMix(k=1, alpha=alpha, method=method)),
        Arm(f"{method} K=2 stratified", MultiMix(k=2, alpha=alpha, method=method, sampling="stratified")),
        Arm(f"{method} K=5 iid", MultiMix(k=5, alpha=alpha, method=method)),
    )]  # fmt: skip
    each = [Arm("K=1 crops anew", MultiMix(k=1, alpha=alpha, crops="each"), draws=draws)] + [arm for k in ks[1:] for arm in (
        Arm(f"K={k} crops each", MultiMix(k=k, alpha=alpha, crops="each")),
        Arm(f"K={k} crops each, stratified", MultiMix(k=k, alpha=alpha, crops="each", sampling="stratified")),
        Arm(f"K={k} crops and partners each", MultiMix(k=k, alpha=alpha, crops="each", partners="each")),
        Arm(f"no mixing, {k} crops each", MultiMix(k=k, prob=0.0, crops="each")),
    )]  # fmt: skip
    return at_one + more + (each if crops else family)


# gradients


def batches(
    arm: Arm, images: Tensor, labels: Tensor, classes: int, pairs: int, number: int, crop: int | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield `arm.draws` minibatches (rows, targets) of set `number`: the same images and partners, new weights.

    `crop` is the size of random crops; they are new, too, with another crop each. None: the images are not cropped.
    """
    made, _, times = arm.made.partition(" ")
    repeats = int(times or 1)
    count = {"fresh": repeats * pairs, "disjoint": 2 * pairs}.get(made, pairs)
    drawn = torch.from_numpy(np.random.default_rng([1, number]).integers(len(images), size=count))
    x, y = images[drawn], labels[drawn]
    if crop is not None and not arm.crops_each:
        x = random_crops(x, 1, crop, [3, number])
    if arm.mix is None:
        yield x, y
        return
    mix, side = replace(arm.mix, crops="same"), x.shape[2:] if crop is None else (crop, crop)
    blank, size = torch.zeros(count, 1, *side), torch.zeros(count, dtype=torch.int64)
    partner = mix_batch(blank, size, mix, num_classes=1, seed=1, step=number).plan.partner
    if made == "disjoint":
        partner = np.roll(np.arange(count), pairs)
    for draw in range(arm.draws):
        found = mix_batch(blank, size, mix, num_classes=1, seed=2, step=1000 * number + draw).plan.mix
        lam = np.repeat(found.lam, repeats, axis=1) if made == "identical" else found.lam
        box = None if lam.shape != found.lam.shape else found.box
        plan = MixPlan(partner, lam, found.method, box, found.factors)
        if crop is not None and arm.crops_each:
            crops = random_crops(x, arm.k, crop, [3, number, 1 + draw])
            batch = apply_mix(crops, y.repeat_interleave(arm.k), plan.of_crops(), num_classes=classes)
        else:
            batch = apply_mix(x, y, plan, num_classes=classes)
        rows = (
            pairs if made == "disjoint" else len(batch.images)
        )  # the second half are the same pairs the other way round
        yield batch.images[:rows], batch.targets[:rows]


def gradient(net: nn.Module, rows: Tensor, targets: Tensor) -> Tensor:
    """Return the gradient of the mean loss over all parameters, (P,)."""
    parts = torch.autograd.grad(MultiMixLoss()(net(rows), targets), list(net.parameters()))
    return torch.cat([part.flatten() for part in parts])


# estimates


class Spread:
    """The variance of an arm's gradient, from a nested sample: R sets of pairs with D draws of weights each.

    Each estimate is an array with one value for each row of `counts` (M, R), see `resample`. All are unbiased if each set counts
    once. Sources: the one-way random-effects analysis of variance; E<G, G'> = |E G|^2 for independent G and G'.
    """

    def __init__(self, square: Float, within: Float, means: Float, counts: Float) -> None:
        """square: (R,) mean of |G|^2 over the draws; within: (R,) the variance between them; means: (R, P) their mean."""
        n = counts.sum(1)
        gram = means @ means.T
        unequal = np.einsum("mr,rs,ms->m", counts, gram, counts, optimize=True) - counts**2 @ np.diag(gram)
        self.mean_square: Float = unequal / (n**2 - (counts**2).sum(1))
        """|E G|^2."""
        self.total: Float = counts @ square / n - self.mean_square
        """tr Var G."""
        self.weights: Float = counts @ within / n
        """E tr Var(G | P): the part of the weights."""
        self.pairs: Float = self.total - self.weights
        """tr Var(E[G | P]): the part of the pairs."""

    def averaged(self, k: int) -> Float:
        """Return the variance of the mean of k gradients of the same pairs with independent draws."""
        return self.pairs + self.weights / k

    @classmethod
    def of(cls, sets: Iterator[Float] | list[Float], counts: Float) -> Spread:
        """sets: for each set the gradients (D, P) under its draws of weights."""
        square, within, means = [], [], []
        for drawn in sets:
            square.append(float((drawn.astype(np.float64) ** 2).sum(1).mean()))
            within.append(float(drawn.var(0, ddof=1, dtype=np.float64).sum()) if len(drawn) > 1 else 0.0)
            means.append(drawn.mean(0, dtype=np.float64))
        return cls(np.array(square), np.array(within), np.stack(means), counts)


@dataclass(frozen=True)
class Parts:
    """The parts of the variance of one row's gradient, see the top of this file; arrays (M,)."""

    pair: Float
    image: Float
    lam: Float
    both: Float
    cycle: Float

    @classmethod
    def of(cls, spreads: dict[str, Spread], pairs: int) -> Parts:
        """Estimate them from the four arms of K = 1 with `pairs` pairs; pair + 2 image + lam + both is the whole of "K=1"."""
        one, disjoint = spreads["K=1"], spreads["K=1 disjoint"]
        lam = (spreads["K=1 disjoint per batch"].weights - disjoint.weights) * pairs / (pairs - 1)
        pair, both = pairs * disjoint.pairs, pairs * one.weights - lam
        cycle = pairs * spreads["K=1 per batch"].weights - pairs * lam - both
        return cls(pair, (pairs * one.pairs - pair) / 2, lam, both, cycle)

    def predict(self, arm: Arm, pairs: int) -> Float | None:
        """Return the variance that the formulas give for an arm of mixup; None where there is no formula."""
        made, _, times = arm.made.partition(" ")
        weights, in_cycle = self.lam + self.both, self.pair + 2 * self.image
        if (
            made == "none"
            or arm.mix is None
            or arm.mix.sampling != "iid"
            or arm.mix.method != "mixup"
            or arm.crops_each
        ):
            return None
        if made == "disjoint" and arm.mix.lam_per == "batch":
            return (self.pair + self.both) / pairs + self.lam
        if made == "disjoint":
            return (self.pair + weights) / pairs
        if made == "fresh":
            return (in_cycle + weights) / (pairs * int(times))
        if arm.mix.partners == "each":
            return 4 * self.image / pairs + (self.pair - 2 * self.image + weights) / (pairs * arm.k)
        if arm.mix.lam_per == "batch":
            return in_cycle / pairs + self.lam / arm.k + (self.both + self.cycle) / (pairs * arm.k)
        return in_cycle / pairs + weights / (pairs * arm.k)


def measure(
    net: nn.Module, images: Tensor, labels: Tensor, classes: int, args: argparse.Namespace
) -> dict[str, object]:
    """Measure all arms at the network's present weights."""
    counts = resample(args.sets)
    spreads: dict[str, Spread] = {}
    every, crop = arms(args.alpha, args.draws, args.ks, args.crops), args.size if args.crops else None
    for arm in every:
        made = (batches(arm, images, labels, classes, args.pairs, number, crop) for number in range(args.sets))
        spreads[arm.name] = Spread.of(
            (np.stack([gradient(net, *batch).numpy() for batch in of_set]) for of_set in made), counts
        )
    one = spreads["K=1"]
    parts = Parts.of(spreads, args.pairs)
    found: dict[str, object] = {
        "parts": {
            field: interval(getattr(parts, field) / (args.pairs * one.total)) for field in Parts.__dataclass_fields__
        },
        "headline": compare(spreads),
    }
    anew = spreads.get("K=1 crops anew")
    if anew is not None:
        shares = {"images": anew.pairs, "crops": anew.weights - one.weights, "weights": one.weights}
        found["crops"] = {name: interval(value / anew.total) for name, value in shares.items()}
    measured: dict[str, dict[str, list[float]]] = {}
    for arm in every:
        spread, predicted = spreads[arm.name], parts.predict(arm, args.pairs)
        if anew is not None and arm.name == f"K={arm.k} crops each":
            predicted = anew.averaged(arm.k)
        at = measured[arm.name] = {
            "relative": interval(spread.total / spread.mean_square),
            "total": interval(spread.total / one.total),
            "weights": interval(spread.weights / one.weights),
        }
        if predicted is not None:
            at["predicted"] = interval(predicted / spread.total)
    return found | {"arms": measured}


def compare(spreads: dict[str, Spread]) -> dict[str, list[float]]:
    """Return ratios of two stratified weights to five iid ones, and how many iid weights K stratified ones are worth."""
    two, five, one = spreads["K=2 stratified"], spreads["K=5 iid"], spreads["K=1"]
    found = {"total": interval(two.total / five.total), "weights": interval(two.weights / five.weights)}
    for k in KS[1:]:
        if f"K={k} stratified" in spreads:
            found[f"worth of K={k}"] = interval(one.weights / spreads[f"K={k} stratified"].weights)
    return found


# training


def network(classes: int, norm: bool) -> nn.Module:
    """Return a network of about 76,000 parameters for images (N, 3, 16, 16) and larger."""

    def block(inner: int, outer: int, kernel: int = 3, stride: int = 1) -> list[nn.Module]:
        conv = nn.Conv2d(inner, outer, kernel, stride, padding=1, bias=not norm)
        nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
        return [conv, *([nn.BatchNorm2d(outer)] if norm else []), nn.ReLU()]

    layers = [*block(3, 32, 4, 2), *block(32, 64), nn.MaxPool2d(2), *block(64, 96)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(96, classes))


def train(
    net: nn.Module, images: Tensor, labels: Tensor, classes: int, args: argparse.Namespace
) -> Iterator[tuple[str, float]]:
    """Train by mixup and yield at each of STAGES its name and the accuracy on the first HELD_OUT images, which are not used."""
    held_out, crop = min(HELD_OUT, len(images) // 5), args.size if args.crops else None
    at = {round(share * args.updates): name for name, share in STAGES.items()}
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.05, total_steps=max(args.updates, 2))
    for step in range(args.updates + 1):
        if step in at:
            net.eval()
            with torch.no_grad():
                whole = images[:held_out] if crop is None else resize(images[:held_out], crop)
                accuracy = (net(whole).argmax(1) == labels[:held_out]).float().mean().item()
            net.train()
            yield at[step], accuracy
        if step < args.updates:
            rows = torch.from_numpy(np.random.default_rng([0, step]).integers(held_out, len(images), size=64))
            mix = MultiMix(k=1, alpha=args.alpha)
            x = images[rows] if crop is None else random_crops(images[rows], 1, crop, [4, step])
            mixed, targets = mix_batch(x, labels[rows], mix, num_classes=classes, step=step)
            optimizer.zero_grad()
            MultiMixLoss()(net(mixed), targets).backward()
            optimizer.step()
            schedule.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("shards", nargs="?", help="folder of shards; default: generated shapes")
    add("--out", type=Path, required=True, metavar="FOLDER", help="folder for the results")
    add("--alpha", type=float, default=1.0, help="weights from Beta(alpha, alpha); default: %(default)s")
    add("--size", type=int, default=16, help="height and width of the images; default: %(default)s")
    add("--images", type=int, default=50_000, help="use at most this many; generated: a tenth; default: %(default)s")
    add("--pairs", type=int, default=32, help="B; default: %(default)s")
    add("--sets", type=int, default=64, help="sets of images; default: %(default)s")
    add("--draws", type=int, default=8, help="draws of the weights for each set at K = 1; default: %(default)s")
    add("--updates", type=int, default=3000, help="updates of the training; default: %(default)s")
    add("--ks", type=int, nargs="+", default=KS, metavar="K", help="1, 2, 5 and others; default: %(default)s")
    add(
        "--crops", action="store_true", help="random crops of images of twice the size, and arms with another crop each"
    )
    add("--quick", action="store_true", help="very little of everything: does it run?")
    args = parser.parse_args()
    args.ks = tuple(sorted(args.ks))
    if args.quick:
        args.images, args.sets, args.draws, args.updates, args.pairs, args.size, args.ks = 400, 8, 2, 4, 3, 8, (1, 2, 5)
    if args.ks[0] != 1 or not {2, 5} <= set(args.ks):
        parser.error(f"--ks must be numbers from 1 on, with 1, 2 and 5 among them; found {' '.join(map(str, args.ks))}")
    if min(args.pairs, args.sets, args.draws) < 2 or args.updates < 2 or args.images < 10 or args.size < 8:
        parser.error("--pairs, --sets, --draws and --updates must be at least 2, --images 10, --size 8")

    arms(args.alpha, args.draws)  # an error of its own if alpha is out of range
    size, count = args.size * (2 if args.crops else 1), args.images if args.shards else args.images // 10
    images, labels, classes = read_images(args.shards, size, count)
    settings = {name: getattr(args, name) for name in ("alpha", "size", "pairs", "sets", "draws", "updates", "ks")}
    settings |= {"images": len(images), "classes": len(classes), "checksum": checksum(images, labels)}
    settings |= {"crops": SCALE} if args.crops else {}
    results = Results(args.out / "gradient_variance.json", settings)
    held_out = min(HELD_OUT, len(images) // 5)
    for norm in (False, True):
        named = "BatchNorm" if norm else "no BatchNorm"
        if all(f"{named}, {stage}" in results.parts for stage in STAGES):
            continue
        torch.manual_seed(0)
        net = network(len(classes), norm).train()
        for stage, accuracy in train(net, images, labels, len(classes), args):
            name, start = f"{named}, {stage}", time.perf_counter()
            if name not in results.parts:
                found = measure(net, images[held_out:], labels[held_out:], len(classes), args)
                seconds = round(time.perf_counter() - start)
                results.add(name, {"accuracy": round(accuracy, 4), "seconds": seconds, **found})
                print(f"{name}: accuracy {accuracy:.1%}, two stratified / five iid "
                      f"{show(results.parts[name]['headline']['total'])}, {seconds} s", flush=True)  # fmt: skip
    print_tables(results.parts)
    from gradient_figure import draw

    draw(results.parts, args.out / "gradient_variance.png")


def print_tables(parts: dict[str, dict[str, dict[str, dict[str, list[float]]]]]) -> None:
    """Print the variances relative to K = 1 as a table in Markdown, one column for each network and stage."""
    print("\n| | " + " | ".join(parts) + " |\n|---|" + "---|" * len(parts))
    for name in next(iter(parts.values()))["arms"]:
        print(f"| {name} | " + " | ".join(show(part["arms"][name]["total"]) for part in parts.values()) + " |")
    for kind in ("parts", "crops", "headline"):
        for name in next(iter(parts.values())).get(kind, ()):
            print(f"| {kind}: {name} | " + " | ".join(show(part[kind][name]) for part in parts.values()) + " |")


if __name__ == "__main__":
    with one_line_errors():
        main()
