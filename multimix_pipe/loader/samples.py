"""Chooses the samples of an epoch and checks them."""

from __future__ import annotations

import logging

import numpy as np
from numpy.typing import NDArray

from multimix_pipe.errors import BadSampleError, ConfigError, counted
from multimix_pipe.plan import Samples
from multimix_pipe.runtime.context import LoaderConfig
from multimix_pipe.shards.index import LABEL_PROBLEMS, Index
from multimix_pipe.shards.subset import select

logger = logging.getLogger("multimix_pipe")


def choose_samples(index: Index, config: LoaderConfig) -> Samples:
    """Return the samples of an epoch: those of `config.samples`, without those of `config.exclude`.

    Samples with unusable images are included: like images that turn out to be broken when they are decoded, they are an error,
    or are replaced, at their step.

    Raises BadSampleError if a sample has no valid label and bad samples are not replaced, and ConfigError if no sample is usable,
    a label is not in [0, num_classes), or the weights are invalid.
    """
    for path, problem in index.damage:
        logger.warning(
            "%s. The samples %s are used", problem, "before that" if path in index.shards else "that are there"
        )
    sample_id = select(index, config.samples, config.exclude)
    _check_usable(index, sample_id, config)
    if config.label is not None:
        _check_labels(index, sample_id, config.num_classes)
    width, height = index.width[sample_id], index.height[sample_id]
    if config.exif:
        turned = index.orientation[sample_id] >= 5
        width, height = np.where(turned, height, width), np.where(turned, width, height)
    return Samples(sample_id, index.shard[sample_id], width, height, _weights(config, index.label[sample_id]))


def _check_usable(index: Index, sample_id: NDArray[np.int64], config: LoaderConfig) -> None:
    """Warn of the samples that indexing found to be bad, or raise if training cannot start with them."""
    bad = sample_id[index.problem[sample_id] != 0]
    if not len(bad):
        return
    first = int(bad[0])
    found = (
        f"{len(bad):,} of {counted(len(sample_id), 'sample')} cannot be used, the first: {index.name(first)}: "
        f"{index.reason(first)}; `multimix-pipe verify` lists all of them"
    )
    others = " or ".join(f'label="{label}"' for label in index.other_labels(first))
    if len(bad) == len(sample_id):
        raise ConfigError(
            f"at least one usable sample is required; {found}{f'. Perhaps {others} finds labels' * bool(others)}"
        )
    unlabelled = bad[np.isin(index.problem[bad], LABEL_PROBLEMS)]
    if len(unlabelled) and config.on_bad_sample == "raise":
        first = int(unlabelled[0])
        others = " or ".join(f'label="{label}"' for label in index.other_labels(first)) or "label="
        raise BadSampleError(
            f"{index.name(first)}: {index.reason(first)}, as in {len(unlabelled):,} of {counted(len(sample_id), 'sample')}. "
            f"Leave them out with exclude=, read other labels with {others}, name the classes with classes=, or train on other "
            'samples instead with on_bad_sample="replace"'
        )
    logger.warning("%s", found)


def _check_labels(index: Index, sample_id: NDArray[np.int64], num_classes: int) -> None:
    usable = sample_id[index.problem[sample_id] == 0]
    label = index.label[usable]
    wrong = (label < 0) | (label >= num_classes) if index.sets is None else np.isin(label, index.sets.outside())
    outside = usable[wrong]
    if len(outside):
        first = int(outside[0])
        found = index.label[first] if index.sets is None else index.sets[int(index.label[first])]
        raise ConfigError(
            f"labels must lie in [0, num_classes={num_classes}); {len(outside)} do not, the first: "
            f"{index.name(first)} has {found}. Raise num_classes, or leave these samples out with exclude="
        )


def _weights(config: LoaderConfig, labels: NDArray[np.int64]) -> NDArray[np.float64] | None:
    """Return the weight of each sample, or None if all are shown equally often."""
    if config.weights is None:
        return None
    count = len(labels)
    if config.shuffle != "global":
        raise ConfigError(f'weights= draws samples at random and needs shuffle="global"; found {config.shuffle!r}')
    if isinstance(config.weights, str) and config.weights == "balanced":
        if config.multilabel:
            raise ConfigError(
                'weights="balanced" needs one label per sample; found multilabel=True. Pass a number for each sample'
            )
        if config.label is None:
            raise ConfigError('weights="balanced" needs labels; found label=None')
        frequency = np.bincount(labels[labels >= 0], minlength=1)
        return np.where(labels >= 0, 1 / np.maximum(frequency[labels], 1), 0.0)
    required = (
        f'weights must be "balanced" or hold a number >= 0 for each of the {count} samples used, and not all may be 0'
    )
    try:
        weights = np.asarray(config.weights, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{required}; {error}") from error
    if weights.shape != (count,):
        raise ConfigError(f"{required}; found shape {weights.shape}")
    if not np.isfinite(weights).all() or (weights < 0).any() or not weights.any():
        raise ConfigError(f"{required}; found values in [{weights.min():g}, {weights.max():g}]")
    return weights
