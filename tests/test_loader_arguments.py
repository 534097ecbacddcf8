"""Subsets, weights, and arguments that cannot work."""

from __future__ import annotations

import json
import logging
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers.backends import needs_dali
from helpers.batches import Open, all_same, keys, resumed
from helpers.images import plain_image
from helpers.samples import TINY, N
from helpers.tars import plain_members, write_tar
from multimix_pipe import (
    ConfigError,
    EvalTransform,
    MissingBackendError,
    MultiMix,
    StateMismatchError,
    TrainTransform,
    mix_batch,
)
from multimix_pipe.loader import backend as backends


def test_samples_and_exclude_choose_by_key_or_file(opened: Open, tmp_path: Path) -> None:
    options = {"backend": "torch", "mix": None, "last_batch": "partial", "transform": TINY}
    wanted = ["420-000", "444-001", "set-003.tar : gray-003"]
    listed = tmp_path / "keys.txt"
    listed.write_text("\n".join(wanted) + "\n")
    for samples in (wanted, listed, str(listed), iter(wanted)):
        assert sorted(keys(opened(samples=samples, **options))) == ["420-000", "444-001", "gray-003"]
    assert keys(opened(samples=wanted, exclude=wanted[:1], shuffle="none", **options)) == ["444-001", "gray-003"]
    assert len(keys(opened(exclude=wanted, **options))) == N - 3


@pytest.mark.parametrize("transform", [TrainTransform, EvalTransform])
def test_a_mean_of_pixels_up_to_255_is_refused_with_what_to_pass(transform: type[TrainTransform]) -> None:
    with pytest.raises(ConfigError, match=r"mean must be that of pixels in \[0, 1\].*mean=\(0\.485, 0\.456, 0\.406\)"):
        transform(mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375))
    with pytest.raises(ConfigError, match=r"std must be that of pixels in \[0, 1\].*std=\(0\.229, 0\.224, 0\.225\)"):
        transform(mean=(0.485, 0.456, 0.406), std=(58.395, 57.12, 57.375))


@pytest.mark.parametrize(
    ("argument", "hint"),
    [
        ({"num_workers": 8}, "num_threads= sets the decoding threads"),
        ({"drop_last": True}, 'use last_batch="drop"'),
        ({"pin_memory": True}, 'use device="cuda"'),
        ({"interpolation": "bicubic"}, "bilinearly"),
        ({"prefetch_factor": 2}, "prefetch="),
        ({"train": True}, "name the split's shards"),
        ({"workers": 8}, "num_threads= sets"),
        ({"auto_augment": "rand-m9"}, "augment the batches of expand=False"),
        ({"exclud": []}, r"did you mean exclude=\?"),
        ({"zzz": 1}, "help"),
        ({"shuffle": True}, r'shuffle must be "global" \(as shuffle=True\)'),
        ({"shuffle": False}, r'"none" \(as shuffle=False\)'),
        ({"prob": 0.5}, r"use mix=MultiMix\(prob=\)"),
        ({"crop_size": 224}, r"use transform=TrainTransform\(size=\) or EvalTransform\(size=\)"),
        ({"flip": 0.5}, r"use transform=TrainTransform\(flip=\)$"),
        ({"transform": lambda image: image}, "Apply other operations to the batch: docs/guides/augmentation.md"),
        ({"classes": 7}, "Their number is num_classes=7"),
        ({"dtype": torch.float64}, "dtype must be one of .*; found 'float64'"),
    ],
)
def test_the_names_of_other_loaders_arguments_lead_to_those_here(
    opened: Open, argument: dict[str, object], hint: str
) -> None:
    with pytest.raises(ConfigError, match=hint):
        opened(backend="torch", **argument)


def test_what_a_dataloader_has_leads_to_what_a_loader_has(opened: Open) -> None:
    loader = opened(backend="torch", transform=TINY)
    with pytest.raises(AttributeError, match=r"no attribute 'dataset'; loader\.num_samples is the number of samples"):
        loader.dataset  # noqa: B018
    assert not hasattr(loader, "dataset")
    wrapped = torch.utils.data.DataLoader(loader, batch_size=None)
    with pytest.raises(TypeError, match="It replaces a DataLoader; do not wrap it"):
        next(iter(wrapped))


@pytest.mark.parametrize("label", ["cls", "txt", "json:label"])
def test_without_any_label_it_is_not_class_names_that_are_missed(tmp_path: Path, opened: Open, label: str) -> None:
    path = write_tar(tmp_path / "x.tar", plain_members(3)[::2])
    with pytest.raises(ConfigError, match=r"at least one usable sample is required; 3 of 3 .*there is no label"):
        opened(path, backend="torch", label=label, num_classes=None)


def test_names_that_a_label_does_not_use_are_not_said_to_be_missing(tmp_path: Path, opened: Open) -> None:
    members = [("a.jpg", plain_image()), ("a.json", b'{"label": 0}')]
    path = write_tar(tmp_path / "x.tar", members)
    (tmp_path / "classes.json").write_text('{"0": "ant"}')
    with pytest.raises(ConfigError, match="num_classes= or classes= must be given, as label='json:label' does not use"):
        opened(path, backend="torch", label="json:label", num_classes=None)


def test_dtypes_of_torch_are_taken(opened: Open) -> None:
    loader = opened(backend="torch", transform=TINY, dtype=torch.bfloat16)
    assert next(iter(loader)).images.dtype == torch.bfloat16


def test_wrong_keys_are_named(opened: Open, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ConfigError, match="1 are not, the first: 'nobody'"):
        opened(backend="torch", samples=["420-000", "nobody"])
    with pytest.raises(ConfigError, match="there is no file 'nobody'"):
        opened(backend="torch", samples="nobody")
    with pytest.raises(ConfigError, match="leave none"):
        opened(backend="torch", samples=["420-000"], exclude=["420-000"])
    with caplog.at_level(logging.WARNING, "multimix_pipe"):
        opened(backend="torch", exclude=["nobody"])
    assert "exclude: 1 key is not in this data set, the first: 'nobody'" in caplog.text


def test_weights_draw_by_weight_and_resume(opened: Open) -> None:
    weights = np.zeros(N)
    weights[[3, 50]] = [1, 3]
    options = {"backend": "torch", "weights": weights, "transform": TINY, "mix": None}
    loader = opened(**options)
    iterator, state = iter(loader), loader.state_dict()
    drawn = Counter(key for batch in iterator for key in batch.keys)
    assert set(drawn) == set(loader.index.keys([3, 50]))
    assert 55 <= drawn[loader.index.key(50)] <= 95
    assert Counter(keys(resumed(opened, state, **options))) == drawn
    with pytest.raises(StateMismatchError, match=r"^subset: "):
        opened(**options | {"weights": np.ones(N)}).load_state_dict(state)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (np.ones(5), "each of the 100 samples"),
        (-np.ones(N), r"found values in \[-1, -1\]"),
        (np.zeros(N), r"in \[0, 0\]"),
    ],
)
def test_weights_that_cannot_work_are_refused(opened: Open, weights: np.ndarray, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        opened(backend="torch", weights=weights)


def test_weights_need_a_global_shuffle(opened: Open) -> None:
    with pytest.raises(ConfigError, match='needs shuffle="global"'):
        opened(backend="torch", weights=np.ones(N), shuffle="window")


def test_labels_must_fit_num_classes(opened: Open) -> None:
    with pytest.raises(
        ConfigError, match=r"labels must lie in \[0, num_classes=6\); 14 do not, .*set-00\d.tar : .* has 6"
    ):
        opened(backend="torch", num_classes=6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be an int >= 1"),
        ({"rank": 2, "world_size": 2}, r"rank must be an int in \[0, 1\]"),
        ({"rank": 0, "world_size": None}, "must be given together"),
        ({"device": "tpu"}, "device must be"),
        ({"device": "cuda:99"}, "GPU"),
        ({"mix": None, "targets": "pairs"}, "needs mix"),
        ({"mix": None, "expand": False}, "needs mix"),
        ({"dtype": "float64"}, "dtype must be one of"),
        ({"label": "text"}, 'label must be "cls"'),
        ({"max_bad": 3}, 'max_bad limits how many samples on_bad_sample="replace" replaces'),
    ],
)
def test_arguments_that_cannot_work_are_refused(opened: Open, options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        opened(backend="torch", **options)


def test_rank_and_world_come_from_torchrun(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert "rank 1 of 3" in repr(opened(backend="torch", rank=None, world_size=None))
    monkeypatch.setenv("WORLD_SIZE", "x")
    with pytest.raises(ConfigError, match="WORLD_SIZE must be a whole number; found 'x'"):
        opened(backend="torch", rank=None, world_size=None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"exif": "no"}, "exif must be True or False; found 'no'"),
        ({"channels_last": 1}, "channels_last must be True or False; found 1"),
        ({"label": 3}, 'label must be "cls", "txt", "folder", "json:KEY"'),
        ({"weights": "abc"}, 'weights must be "balanced" or hold a number'),
        ({"targets": "pairs", "expand": False}, 'targets="pairs" needs mix'),
        ({"batch_size": 2.5}, "batch_size must be an int >= 1; found 2.5"),
        ({"batch_size": True}, "batch_size must be an int >= 1; found True"),
    ],
)
def test_arguments_of_the_wrong_kind_are_named(opened: Open, options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        opened(backend="torch", **options)


def test_numpys_numbers_are_numbers(opened: Open, backend: str) -> None:
    sizes = {"batch_size": np.int64(8), "num_classes": np.int32(7), "seed": np.uint64(3), "prefetch": np.int8(1)}
    mix, transform = MultiMix(k=np.int64(2), alpha=np.float32(0.5)), TrainTransform(size=np.int64(16))
    loader = opened(backend=backend, **sizes, mix=mix, transform=transform)
    loader.set_epoch(np.int64(1))
    next(iter(loader))
    assert json.loads(json.dumps(loader.state_dict())) == loader.state_dict()


def test_an_evaluation_resizes_in_proportion_to_its_size_and_never_below_it() -> None:
    assert [EvalTransform(size=size).shorter_side for size in (224, 32, 384, (112, 224))] == [256, 37, 439, 128]
    with pytest.raises(ConfigError, match=r"EvalTransform.resize must be an int in \[224, "):
        EvalTransform(size=224, resize=200)


def test_mix_batch_names_what_is_wrong() -> None:
    images, labels = torch.rand(3, 3, 4, 4), torch.tensor([0, 1, 3])
    with pytest.raises(ConfigError, match="mix must be a MultiMix; found None"):
        mix_batch(images, labels, None, num_classes=4, step=0)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"labels must lie in \[0, num_classes=3\); found 0 .. 3"):
        mix_batch(images, labels, MultiMix(), num_classes=3, step=0)
    assert not mix_batch(images.requires_grad_(), labels, MultiMix(), num_classes=4, step=0).images.requires_grad


def test_an_epoch_without_steps_is_said(opened: Open, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "multimix_pipe"):
        assert len(opened(backend="torch", batch_size=N + 1, last_batch="drop")) == 0
    assert "an epoch has no steps" in caplog.text


def test_a_process_without_steps_is_no_warning_where_processes_may_differ(
    opened: Open, caplog: pytest.LogCaptureFixture
) -> None:
    options = {"batch_size": N, "last_batch": "partial", "world_size": 2}
    with caplog.at_level(logging.WARNING, "multimix_pipe"):
        assert [len(opened(backend="torch", rank=rank, **options)) for rank in (0, 1)] == [1, 0]
    assert not caplog.text


def test_a_dali_that_imports_but_does_not_run_on_the_gpu_is_not_taken(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """CUDA 13's DALI imports on a driver of CUDA 12, and fails at its first batch."""
    monkeypatch.setattr(backends, "dali_import_error", lambda: None)
    monkeypatch.setattr(backends, "_gpu_problem", lambda device_id: "CUDA driver version is insufficient")
    gpu = torch.device("cuda", 0)
    assert backends.choose_backend("auto", gpu) == "torch"
    assert "DALI does not run on cuda:0 (CUDA driver version is insufficient)" in caplog.text
    with pytest.raises(MissingBackendError, match="needs a DALI that runs on cuda:0; found: CUDA driver version"):
        backends.choose_backend("dali", gpu)
    assert backends.choose_backend("dali", torch.device("cpu")) == "dali"


@needs_dali
def test_without_a_gpu_dali_says_why_it_does_not_run_on_one() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    from multimix_pipe.dali.decode_check import gpu_problem

    assert gpu_problem(0)


def test_decode_is_checked_changes_nothing_on_a_cpu_and_is_not_in_the_state(opened: Open, backend: str) -> None:
    fast, exact = (opened(backend=backend, transform=TINY, decode=name) for name in ("fast", "exact"))
    assert all_same(list(fast), list(exact))
    exact.load_state_dict(fast.state_dict())
    with pytest.raises(ConfigError, match="decode must be one of 'fast', 'exact'; found 'quick'"):
        opened(backend=backend, decode="quick")


def test_a_batch_larger_than_the_data_set_is_said(opened: Open, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "multimix_pipe"):
        opened(backend="torch", batch_size=N)
        assert "repeatedly" not in caplog.text
        opened(backend="torch", batch_size=N + 1)
    assert f"there are {N}, batch_size times world_size is {N + 1}" in caplog.text


def test_a_loader_in_a_dataloader_says_what_it_is(opened: Open) -> None:
    loader = opened(backend="torch")
    with pytest.raises(TypeError, match=r"iterate over it\. It replaces a DataLoader; do not wrap it"):
        next(iter(torch.utils.data.DataLoader(loader, batch_size=2)))  # type: ignore[arg-type]


def test_probabilities_of_methods_in_the_place_of_epochs_say_where_they_go(opened: Open) -> None:
    with pytest.raises(ConfigError, match=r"mix as a mapping has epochs as keys.*use MultiMix\(method=\{\.\.\.\}\)"):
        opened(backend="torch", mix={"mixup": 0.5, "cutmix": 0.5})


@pytest.mark.parametrize("state", [{"model": {}, "loader": {}}, {}])
def test_a_dict_that_is_no_state_is_not_taken_for_an_old_one(opened: Open, state: dict[str, object]) -> None:
    with pytest.raises(StateMismatchError, match=r"what loader\.state_dict\(\) returned; found a dict of"):
        opened(backend="torch").load_state_dict(state)
