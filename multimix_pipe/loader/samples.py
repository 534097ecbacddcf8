"""Which samples of the shards a loader shows: the subset, checked, as columns for the plan."""

from __future__ import annotations

import logging

import numpy as np
from numpy.typing import NDArray

from multimix_pipe.errors import BadSampleError, ConfigError
from multimix_pipe.plan import Samples
from multimix_pipe.runtime.context import LoaderConfig
from multimix_pipe.shards.index import LABEL_PROBLEMS, PROBLEMS, Index
from multimix_pipe.shards.subset import select

logger = logging.getLogger("multimix_pipe")


def choose_samples(index: Index, config: LoaderConfig) -> Samples:
    """The samples that an epoch shows: those of `samples=` less those of `exclude=`, checked against `num_classes`.

    A label that is missing or no number is an error here, unless bad samples are replaced. An image that cannot be used stays:
    like one that turns out to be broken when it is decoded, it is an error, or replaced, at the step that comes to it.
    """
    for _, found in index.damage:
        logger.warning("%s. The samples before that are used", found)
    number = select(index, config.samples, config.exclude)
    good = index.problem[number] == 0
    usable, bad = number[good], number[~good]
    if len(bad):
        first = int(bad[0])
        found = (
            f"{len(bad)} of {len(number)} samples cannot be used, the first: {index.name(first)}: "
            f"{PROBLEMS[int(index.problem[first])]}; `multimix-pipe verify` names all"
        )
        if not len(usable):
            raise ConfigError(f"at least one usable sample is required; {found}")
        unlabelled = bad[np.isin(index.problem[bad], LABEL_PROBLEMS)]
        if len(unlabelled) and config.on_bad_sample == "raise":
            first = int(unlabelled[0])
            raise BadSampleError(
                f"{index.name(first)}: {PROBLEMS[int(index.problem[first])]}, as in {len(unlabelled)} of {len(number)} samples. "
                "Leave them out with exclude=, choose another field with label=, or train on others in their place with "
                'on_bad_sample="replace"'
            )
        logger.warning("%s", found)
    outside = usable[(index.label[usable] < 0) | (index.label[usable] >= config.num_classes)]
    if len(outside):
        first = int(outside[0])
        raise ConfigError(
            f"labels must lie in [0, num_classes={config.num_classes}); {len(outside)} do not, the first: "
            f"{index.name(first)} has {index.label[first]}. Raise num_classes, or leave these samples out"
        )
    width, height = index.width[number], index.height[number]
    if config.exif:
        turned = index.orientation[number] >= 5
        width, height = np.where(turned, height, width), np.where(turned, width, height)
    return Samples(number, index.shard[number], width, height, _check_weights(config, len(number)))


def _check_weights(config: LoaderConfig, count: int) -> NDArray[np.float64] | None:
    if config.weights is None:
        return None
    if config.shuffle != "global":
        raise ConfigError(f'weights draws samples at random; it needs shuffle="global", found {config.shuffle!r}')
    try:
        weights = np.asarray(config.weights, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"weights must hold a number for each of the {count} samples used; {error}") from error
    if weights.shape != (count,):
        raise ConfigError(
            f"weights must hold a number for each of the {count} samples used; found shape {weights.shape}"
        )
    if not np.isfinite(weights).all() or (weights < 0).any() or not weights.any():
        raise ConfigError("weights must be finite and >= 0, and not all 0")
    return weights
