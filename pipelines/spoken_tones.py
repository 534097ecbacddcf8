"""Train on sounds with multi-mix: ten vowels, which this recipe synthesises, as waveforms or as spectrograms.

    python pipelines/spoken_tones.py                  # mixes waveforms (B, T)
    python pipelines/spoken_tones.py --mix spectrogram  # mixes log spectrograms (B, F, T)
    python pipelines/spoken_tones.py --mix none

The first takes a minute of CPU time (one thread of an Intel Xeon) and ends at 91% accuracy. The sounds do not come from shards:
`mix_batch` mixes the tensors of any loader, here of a plain loop. `step` differs in every call, so each step draws new partners
and weights.
"""

from __future__ import annotations

import argparse
import time

import torch
from torch import Tensor, nn

from multimix_pipe import MultiMix, MultiMixLoss, mix_batch

RATE, SAMPLES = 8000, 2048
VOWELS = {
    "i": (270, 2290, 3010),
    "I": (390, 1990, 2550),
    "e": (530, 1840, 2480),
    "ae": (660, 1720, 2410),
    "a": (730, 1090, 2440),
    "o": (570, 840, 2410),
    "U": (440, 1020, 2240),
    "u": (300, 870, 2240),
    "V": (640, 1190, 2390),
    "er": (490, 1350, 1690),
}
"""Mean formants of ten vowels in Hz (Peterson and Barney 1952)."""


def synthesise(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return waveforms (count, SAMPLES), of mean square 1 before the noise, and the vowels' numbers (count,).

    Each is a sum of harmonics of a gliding pitch, shaped by the vowel's formants, which differ from speaker to speaker, in noise.
    """

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(count, *shape, generator=generator)

    labels = torch.arange(count) % len(VOWELS)
    formants = torch.tensor(list(VOWELS.values()), dtype=torch.float32)[labels] * uniform(0.9, 1.15, 1)
    seconds = torch.arange(SAMPLES) / RATE
    pitch = uniform(90, 260, 1) * (1 + uniform(-0.3, 0.3, 1) * seconds)
    phase = 2 * torch.pi * pitch.cumsum(1) / RATE
    sound = torch.zeros(count, SAMPLES)
    for harmonic in range(1, 31):
        frequency = harmonic * pitch
        gain = sum(1 / (1 + ((frequency - formants[:, n, None]) / 90) ** 2) / (n + 1) for n in range(3))
        audible = (frequency < RATE / 2).float()
        sound += gain * audible * torch.sin(harmonic * phase + uniform(0, 6.28, 1))
    sound /= sound.square().mean(1, keepdim=True).sqrt()
    return sound + uniform(0.3, 1.5, 1) * torch.randn(sound.shape, generator=generator), labels


def spectrogram(waves: Tensor) -> Tensor:
    """Return log spectrograms (B, 65, 33) of waveforms (B, SAMPLES)."""
    window = torch.hann_window(128)
    return (torch.stft(waves, 128, hop_length=64, window=window, return_complex=True).abs() + 1e-2).log()


def network() -> nn.Module:
    """Return a small convolutional network for spectrograms (B, F, T)."""

    def block(inner: int, outer: int) -> list[nn.Module]:
        return [nn.Conv2d(inner, outer, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(outer), nn.ReLU()]

    layers = [*block(1, 16), *block(16, 32), *block(32, 64)]
    return nn.Sequential(
        nn.Unflatten(1, (1, -1)), *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, len(VOWELS))
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mix", choices=("waveform", "spectrogram", "none"), default="waveform", help="what is mixed")
    parser.add_argument("--k", type=int, default=5, help="members of each pair")
    parser.add_argument("--alpha", type=float, default=0.4, help="weights from Beta(alpha, alpha)")
    parser.add_argument("--sounds", type=int, default=2000, help="sounds to train on")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--batch-size", type=int, default=50, help="pairs per step")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    start = time.perf_counter()
    generator = torch.Generator().manual_seed(args.seed)
    waves, labels = synthesise(args.sounds, generator)
    test_waves, test_labels = synthesise(1000, generator)
    torch.manual_seed(args.seed)
    model, loss_function = network(), MultiMixLoss()
    mix = MultiMix(k=args.k, alpha=args.alpha)
    steps = len(waves) // args.batch_size
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=steps * args.epochs)
    for epoch in range(args.epochs):
        model.train()
        order = torch.randperm(len(waves), generator=generator)
        for number in range(steps):
            rows = order[number * args.batch_size : (number + 1) * args.batch_size]
            step = epoch * steps + number
            if args.mix == "waveform":  # (B, T) -> (B*K, T)
                mixed, targets = mix_batch(waves[rows], labels[rows], mix, num_classes=len(VOWELS), step=step)
                logits = model(spectrogram(mixed))
            elif args.mix == "spectrogram":  # (B, F, T) -> (B*K, F, T)
                plain = spectrogram(waves[rows])
                mixed, targets = mix_batch(plain, labels[rows], mix, num_classes=len(VOWELS), step=step)
                logits = model(mixed)
            else:
                logits, targets = model(spectrogram(waves[rows])), labels[rows]
            loss = loss_function(logits, targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        model.eval()
        with torch.inference_mode():
            accuracy = (model(spectrogram(test_waves)).argmax(1) == test_labels).float().mean().item()
        print(f"epoch {epoch + 1:2}: loss {loss.item():.3f}, test accuracy {accuracy:.1%}", flush=True)
    print(f"{args.mix}: {accuracy:.1%} of {len(test_labels)} test sounds after {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
