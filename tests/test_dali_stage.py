"""`multi_mix` and `class_id` inside anybody's own DALI pipeline, with DALI's own WebDataset reader."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers.methods import registered
from multimix_pipe import ConfigError, MultiMix
from multimix_pipe.mixing import reference
from multimix_pipe.plan import draw_mixing

dali = pytest.importorskip("nvidia.dali", reason="DALI does not import", exc_type=ImportError)

from nvidia.dali import Pipeline, fn, pipeline_def, types  # noqa: E402

from helpers.dali_pipelines import run, stage_on  # noqa: E402
from multimix_pipe.dali import class_id, multi_mix  # noqa: E402

B, K, CLASSES = 8, 3, 7


def from_reader(shard: Path, mixes: bool, **options: object) -> Pipeline:
    """A user's own pipeline over one tar: JPEG, PNG and WebP members, decoded whole, 16x16."""

    @pipeline_def(batch_size=B, num_threads=1, device_id=None)
    def pipeline() -> tuple[object, ...]:
        image, cls = fn.readers.webdataset(
            paths=[str(shard)],
            ext=["jpg;jpeg;png;webp", "cls"],
            missing_component_behavior="error",
        )
        images = fn.decoders.image(image, device="cpu", output_type=types.RGB)
        images = fn.crop_mirror_normalize(fn.resize(images, size=[16, 16]), dtype=types.FLOAT, std=[255.0] * 3)
        labels = class_id(cls)
        if not mixes:
            return images, labels
        return multi_mix(images, labels, num_classes=CLASSES, k=K, **options)  # type: ignore[arg-type]

    built = pipeline()
    built.build()
    return built


def test_the_stage_mixes_what_dalis_reader_reads(shards: Path) -> None:
    shard = shards / "set-001.tar"
    plain = from_reader(shard, mixes=False)
    mixed = from_reader(shard, mixes=True, alpha=0.5, seed=4, rank=1, world_size=2)
    for iteration in range(3):
        images, labels = run(plain)
        rows, targets = run(mixed)
        plan = draw_mixing(MultiMix(k=K, alpha=0.5), 4, 0, (iteration * 2 + 1) * B, B)
        assert labels.tolist() == [(4 * (iteration * B + row) + 1) % 100 % CLASSES for row in range(B)]
        assert rows.shape == (B, K, 3, 16, 16)
        oracle = reference.mix_images(images.numpy(), plan)
        assert np.allclose(rows.flatten(0, 1).numpy(), oracle, rtol=0, atol=1e-6)
        oracle = reference.mix_targets(labels.numpy().astype(np.int64), plan, CLASSES)
        assert np.allclose(targets.flatten(0, 1).numpy(), oracle, rtol=0, atol=1e-6)
        assert torch.allclose(targets.sum(2), torch.ones(B, K), rtol=0, atol=1e-6)


def test_processes_draw_different_weights_and_a_seed_repeats_them(shards: Path) -> None:
    shard = shards / "set-001.tar"

    def targets(**options: object) -> torch.Tensor:
        return run(from_reader(shard, mixes=True, **options))[1]

    assert targets(seed=1).equal(targets(seed=1))
    assert not targets(seed=1).equal(targets(seed=2))
    assert not targets(rank=0, world_size=2).equal(targets(rank=1, world_size=2))


@pytest.mark.parametrize("text", ["0", "7", "42\n", "999999999", "123 \r\n"])
def test_class_id_reads_the_number_of_a_cls_member(text: str) -> None:
    @pipeline_def(batch_size=2, num_threads=1, device_id=None)
    def pipeline() -> object:
        data = [np.frombuffer(text.encode(), np.uint8), np.frombuffer(b"5", np.uint8)]
        return class_id(fn.external_source(source=lambda: data, dtype=types.UINT8, ndim=1))

    built = pipeline()
    built.build()
    (output,) = built.run()
    assert np.asarray(output.as_tensor()).tolist() == [int(text), 5]


@pytest.mark.parametrize("layout", ["CHW", "HWC"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float16, np.float32, np.float64])
def test_images_of_any_number_type_and_layout_come_out_as_float32(layout: str, dtype: type) -> None:
    images = (np.random.default_rng(0).random((B, 4, 5, 6)) * 200).astype(dtype)

    labels = np.arange(B).reshape(B, 1)  # (1,) a sample, as some readers give them
    mixed, _ = next(stage_on(images, labels, layout, num_classes=B, k=K))
    assert mixed.dtype == torch.float32
    oracle = reference.mix_images(images.astype(np.float32), draw_mixing(MultiMix(k=K), 0, 0, 0, B))
    assert np.allclose(mixed.flatten(0, 1).numpy(), oracle, rtol=1e-6, atol=1e-4)


SWITCH = {"mixup": 0.4, "cutmix": 0.2, "smoothmix": 0.2, "split": 0.2}


@pytest.mark.parametrize("partners", ["same", "each"])
@pytest.mark.parametrize("layout", ["CHW", "HWC"])
@pytest.mark.parametrize("method", ["mixup", "cutmix", "smoothmix", "split", SWITCH], ids=str)
def test_every_method_mixes_in_the_graph(method: Any, layout: str, partners: str) -> None:
    images = np.random.default_rng(0).random((B, 3, 7, 5), dtype=np.float32)
    with registered("split"):
        plan = draw_mixing(MultiMix(k=K, method=method, partners=partners), 0, 0, 0, B, (7, 5))  # type: ignore[arg-type]
        given = images if layout == "CHW" else images.transpose(0, 2, 3, 1).copy()
        options = {"method": method, "partners": partners, "size": (7, 5), "layout": layout}
        mixed, targets = next(stage_on(given, np.arange(B), layout, num_classes=B, k=K, **options))
    found = mixed.flatten(0, 1).numpy()
    found = found if layout == "CHW" else found.transpose(0, 3, 1, 2)
    assert np.allclose(found, reference.mix_images(images, plan), rtol=0, atol=1e-6)
    expected = reference.mix_targets(np.arange(B), plan, B)
    assert np.allclose(targets.flatten(0, 1).numpy(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", [np.int32, np.int64, np.uint8])
def test_a_label_without_a_class_is_an_error_that_names_it(kind: type) -> None:
    labels = np.arange(B).astype(kind)
    labels[3] = wrong = B if kind is np.uint8 else -7
    with pytest.raises(RuntimeError, match=rf"slice_anchor=\{{{wrong}\}}"):
        next(stage_on(np.zeros((B, 3, 4, 4), np.uint8), labels, "CHW", num_classes=B, k=K))


def test_a_method_with_boxes_must_be_told_the_images_size_and_layout() -> None:
    with Pipeline(batch_size=B), pytest.raises(ConfigError, match=r"size must be an int or a pair .*; found \(16,\)"):
        multi_mix(None, None, num_classes=2, method="cutmix", size=(16,), layout="CHW")  # type: ignore[arg-type]
    with registered("split") as method, pytest.raises(ConfigError, match="method='split' needs size="):
        inside_a_pipeline(lambda x, y: multi_mix(x, y, num_classes=3, method=method))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "MultiMix.k must be an int"),
        ({"alpha": 0.0}, "MultiMix.alpha must be a finite number"),
        ({"pairing": "random"}, "MultiMix.pairing must be one of"),
        ({"num_classes": 0}, "num_classes must be an int >= 1"),
        ({"seed": -1}, "seed must be an int in"),
        ({"rank": 2, "world_size": 2}, "rank must be an int in"),
    ],
)
def test_wrong_arguments_are_refused_while_the_pipeline_is_defined(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        inside_a_pipeline(lambda x, y: multi_mix(x, y, **({"num_classes": CLASSES} | options)))  # type: ignore[arg-type]


def test_outside_a_pipeline_the_stage_says_where_it_belongs() -> None:
    with pytest.raises(ConfigError, match="while a DALI pipeline is being defined"):
        multi_mix(None, None, num_classes=3)  # type: ignore[arg-type]


def inside_a_pipeline(stage: Callable[..., object]) -> None:
    with Pipeline(batch_size=B, num_threads=1, device_id=None):
        stage(fn.external_source(name="x", ndim=3), fn.external_source(name="y", ndim=0))


@pytest.mark.parametrize("dtype", [np.float32, np.int64, np.uint8])
@pytest.mark.parametrize("partners", ["same", "each"])
def test_the_stage_mixes_several_labels(dtype: type[np.generic], partners: str) -> None:
    rng = np.random.default_rng(0)
    labels = rng.random((B, CLASSES)) < 0.4
    mix = MultiMix(k=K, partners=partners)  # type: ignore[arg-type]
    options = {"k": K, "partners": partners, "num_classes": CLASSES, "multilabel": True}
    images = rng.random((B, 3, 4, 4), dtype=np.float32)
    _, targets = next(stage_on(images, labels.astype(dtype), **options))
    oracle = reference.mix_targets(labels.astype(np.float32), draw_mixing(mix, 0, 0, 0, B), CLASSES)
    assert np.allclose(targets.flatten(0, 1).numpy(), oracle, rtol=0, atol=1e-6)
    for wrong in (labels.astype(dtype)[:, 1:], np.arange(B)):
        with pytest.raises(RuntimeError, match="reshape"):
            next(stage_on(images, wrong, **options))
    with pytest.raises(RuntimeError, match="reshape"):
        next(stage_on(images, labels.astype(dtype), **options | {"multilabel": False}))
