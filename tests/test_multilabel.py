"""multilabel=True: any number of labels per sample, from the shards to the loss, refused wherever one label is meant."""

from __future__ import annotations

import json
import pickle  # noqa: TID251
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from helpers.batches import Open, all_same, resumed
from helpers.images import plain_image
from helpers.samples import TINY, sample_set
from helpers.tars import index_of, resealed, write_tar
from multimix_pipe import (
    BadSampleError,
    Batch,
    ConfigError,
    EvalTransform,
    ManifoldMix,
    MixedAccuracy,
    MultiMix,
    MultiMixLoss,
    PuzzleMix,
    StateMismatchError,
    apply_mix,
    mix_batch,
    mixed_accuracy,
)
from multimix_pipe.cli import main
from multimix_pipe.mixing import reference
from multimix_pipe.shards.index import scan
from multimix_pipe.shards.index.problems import LABEL_NOT_INT
from multimix_pipe.shards.index.sets import translate_sets
from multimix_pipe.training.evaluation import evaluate

C = 5
IMAGE = plain_image()
NAMES = ["ant", "bee", "traffic light", "cow, calf", "7"]


def label_of(number: int) -> list[int]:
    """The class ids of sample `number` of the fixture `several`: none, one, two or all."""
    return [[], [number % C], sorted({number % C, 7 * number % C}), list(range(C))][number % 4]


def hot(*ids: int) -> list[float]:
    return [float(i in ids) for i in range(C)]


@pytest.fixture(scope="session")
def several(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shards of 24 samples; key i has the labels `label_of(i)`."""
    folder = tmp_path_factory.mktemp("several")
    for shard in range(2):
        members = []
        for number in range(shard, 24, 2):
            _, extension, data = sample_set(4)[number]
            members += [(f"{number}.{extension}", data)]
            members += [(f"{number}.cls", " ".join(map(str, label_of(number))).encode())]
        write_tar(folder / f"{shard}.tar", members)
    return folder


def shard(folder: Path, label: str, *values: object) -> Path:
    """Write a shard whose samples have `values` as their labels."""
    extension, _, key = label.partition(":")
    texts = [json.dumps({key: value}) if key else str(value) for value in values]
    members = [[(f"{i}.jpg", IMAGE), (f"{i}.{extension}", text.encode())] for i, text in enumerate(texts)]
    return write_tar(folder / "x.tar", [member for pair in members for member in pair])


@pytest.fixture
def open_several(several: Path, opened: Open) -> Open:
    def make(source: Path = several, **options: object) -> Any:
        return opened(source, **{"num_classes": C, "multilabel": True, "transform": TINY, "batch_size": 6} | options)

    return make


# reading


@pytest.mark.parametrize("label", ["cls", "txt", "json:y"])
@pytest.mark.parametrize("classes", [None, NAMES, {**{name: i for i, name in enumerate(NAMES)}, "calf": 3}])
def test_every_form_of_several_labels_is_read(tmp_path: Path, label: str, classes: Any) -> None:
    forms: list[tuple[object, tuple[int, ...]]]
    if label == "json:y":
        forms = [([4, 0], (0, 4)), ([], ()), (3, (3,)), ([2], (2,)), ([0, 1, 1, 0, 0], (1, 2)), ([0] * C, ())]
        forms += [([1] * C, tuple(range(C))), ([False, True, False, False, True], (1, 4)), ([0.0, 0, 1.0, 0, 0], (2,))]
        forms += [([0, 1], (0, 1)), ([1], (1,))]
        forms += [(["bee", 4, "traffic light"], (1, 2, 4)), ("cow, calf", (3,)), (["7"], (4,))] if classes else []
    else:
        forms = [("4 0", (0, 4)), ("", ()), (" \n", ()), ("3", (3,)), ("1,2", (1, 2)), ("4, 1; 0\n", (0, 1, 4))]
        forms += [("0\n3\n", (0, 3)), ("0\t1", (0, 1))]
        forms += [("bee ant", (0, 1)), ("traffic light, 4 bee", (1, 2, 4)), ("cow, calf", (3,))] if classes else []
    path = shard(tmp_path, label, *(value for value, _ in forms))
    for _ in range(2):  # the second time from the index file
        index = index_of(path, label=label, classes=classes, multilabel=True, num_classes=C)
        assert not index.problem.any()
        rows = index.labels(np.arange(len(index)))
        assert rows.dtype == np.float32
        assert rows.tolist() == [hot(*ids) for _, ids in forms]
        assert index.class_counts(C).tolist() == rows.sum(0).tolist()


@pytest.mark.parametrize(
    ("label", "value", "found"),
    [
        ("cls", "3 3", "found '3 3': a class is repeated"),
        ("cls", "0 1 0 0 1", "a class is repeated"),
        ("cls", "1.5", "'1.5' is neither a class id nor a known class name"),
        ("cls", "-1 2", "-1 is no class id"),
        ("cls", "cow", "'cow' is neither a class id nor a known class name"),
        ("cls", "1" * 100, "is neither a class id"),
        ("cls", "1 " * 2**16, "found more than 65,536 bytes"),
        ("json:y", [2, 2], "a class is repeated"),
        ("json:y", [0, 1, 0], "a vector of 0 and 1 must have num_classes=5 numbers"),
        ("json:y", [True, False], "a vector of 0 and 1 must have num_classes=5 numbers"),
        ("json:y", [0.5, 0, 0, 0, 0], "0.5 is neither a class id"),
        ("json:y", [0, 2, 0, 0, 0], "a class is repeated"),
        ("json:y", None, "None is neither a class id"),
        ("json:y", True, "True is neither a class id"),
        ("json:y", "3", "'3' is neither a class id"),
        ("json:y", [[0]], "found a JSON list of lists"),
        ("json:y", [{"category_id": 1}], "found a JSON list of objects"),
        ("json:y", {"a": 1}, "found a JSON object"),
        ("json:y", 10**30, "is no class id"),
    ],
)
def test_labels_that_are_not_different_classes_are_named(
    open_several: Open, tmp_path: Path, label: str, value: object, found: str
) -> None:
    path = shard(tmp_path, label, [0] if label == "json:y" else "0", value)
    with pytest.raises(BadSampleError, match=r"x\.tar : 1: the labels are not different class ids") as error:
        open_several(path, label=label)
    assert found in str(error.value)
    loader = open_several(path, label=label, on_bad_sample="replace", batch_size=2)
    assert next(iter(loader)).labels.tolist() == [hot(0)] * 2


@pytest.mark.parametrize(("classes", "value"), [(2, [0, 1]), (2, [1, 0]), (1, [0]), (1, [1])])
def test_a_list_that_could_be_ids_or_a_vector_is_refused(
    open_several: Open, tmp_path: Path, classes: int, value: list[int]
) -> None:
    path = shard(tmp_path, "json:y", [bool(i) for i in value], value)
    with pytest.raises(
        BadSampleError, match="could be class ids or a vector of 0 and 1; write names, or true and false"
    ):
        open_several(path, label="json:y", num_classes=classes)
    loader = open_several(path, label="json:y", num_classes=classes, exclude=["1"], batch_size=1, mix=None)
    assert next(iter(loader)).labels.tolist() == [[float(i) for i in value]]


def test_an_id_beyond_the_classes_is_an_error_even_if_bad_samples_are_replaced(
    open_several: Open, tmp_path: Path
) -> None:
    path = shard(tmp_path, "cls", "1 2", "0", "3 7")
    for policy in ("raise", "replace"):
        with pytest.raises(ConfigError, match=r"\[0, num_classes=5\); 1 do not, the first: x\.tar : 2 has \[3, 7\]"):
            open_several(path, on_bad_sample=policy)
    assert open_several(path, exclude=["2"], batch_size=2, shuffle="none", mix=None, transform=EvalTransform(size=8))
    assert open_several(path, num_classes=8).num_classes == 8


def test_an_offset_is_subtracted_from_ids_alone(tmp_path: Path) -> None:
    path = shard(tmp_path, "json:y", [1, 5], ["bee", 1], [0, 1, 0, 0, 1], [0])
    index = index_of(path, label="json:y", classes=NAMES, label_offset=1, multilabel=True)
    assert index.labels(np.arange(3)).tolist() == [hot(0, 4), hot(0, 1), hot(1, 4)]
    assert index.reason(3).endswith("found '[0]': 0 is no class id with label_offset=1")


def test_several_labels_without_multilabel_are_refused_in_one_line(opened: Open, tmp_path: Path) -> None:
    for label, value in (("cls", "1 2"), ("cls", ""), ("txt", "1,2"), ("json:y", [1, 2]), ("json:y", [])):
        path = shard(tmp_path, label, 0 if label == "json:y" else "0", value)
        with pytest.raises(BadSampleError, match=r"several labels, or none, need multilabel=True") as error:
            opened(path, label=label)
        assert "\n" not in str(error.value)
        path.unlink()
    path = shard(tmp_path, "cls", "bee", "bee ant")
    with pytest.raises(BadSampleError, match=r"found 'bee ant' \(several labels, or none, need multilabel=True\)"):
        opened(path, classes=NAMES, num_classes=None)


@pytest.mark.parametrize("options", [{"label": None, "mix": None}, {"label": "folder"}, {"multilabel": 1}])
def test_arguments_that_contradict_several_labels(open_several: Open, options: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="multilabel"):
        open_several(**options)


def test_the_names_of_the_classes_give_their_number(open_several: Open, tmp_path: Path) -> None:
    path = shard(tmp_path, "cls", "0 1", "")
    with pytest.raises(ConfigError, match="num_classes= or classes= must be given"):
        open_several(path, num_classes=None)
    (tmp_path / "classes.json").write_text(json.dumps(dict(enumerate(NAMES))))
    loader = open_several(path, num_classes=None, batch_size=2, mix=None, shuffle="none")
    assert (loader.num_classes, loader.classes) == (C, tuple(NAMES))
    assert next(iter(loader)).labels.tolist() == [hot(0, 1), hot()]


def test_there_may_be_more_sets_of_labels_than_notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan, "MAX_NOTES", 2)
    path = shard(tmp_path, "cls", "0 1", "0 2", "0 3", "0 4", "1 2")
    assert index_of(path, multilabel=True, num_classes=C).labels(np.arange(5)).tolist()[-2:] == [hot(0, 4), hot(1, 2)]
    assert index_of(path).note.tolist() == [0, 1, -1, -1, -1]


def test_bad_samples_have_a_row_of_zeros_and_only_their_texts_are_kept(tmp_path: Path) -> None:
    path = shard(tmp_path, "cls", "3 3", "0 4", "", "ant", "0 4")
    index = index_of(path, multilabel=True, num_classes=C)
    assert index.labels(np.arange(5)).tolist() == [hot(), hot(0, 4), hot(), hot(), hot(0, 4)]
    assert index.label[1] == index.label[4]
    assert len(index.notes) == 2
    assert index.reason(0).endswith("found '3 3': a class is repeated")
    assert index.reason(3).endswith("found 'ant': 'ant' is neither a class id nor a known class name")


@pytest.mark.parametrize("label", ["cls", "json:y"])
def test_labels_without_an_image_are_a_bad_sample(tmp_path: Path, label: str) -> None:
    extension, text = ("cls", b"0 1") if label == "cls" else ("json", b'{"y": [0, 1]}')
    write_tar(tmp_path / "x.tar", [("0.jpg", IMAGE), (f"0.{extension}", text), (f"1.{extension}", text)])
    index = index_of(tmp_path / "x.tar", label=label, multilabel=True, num_classes=C)
    assert [index.reason(i) for i in np.flatnonzero(index.problem)] == [
        f"there is no image; found the members .{extension}"
    ]


def test_different_sets_take_little_memory(tmp_path: Path) -> None:
    samples, labels = 3000, 20
    one = index_of(shard(tmp_path, "cls", "0 1"))
    texts = [" ".join(str(10 * j + i // 10 ** (j % 4) % 10) for j in range(labels)) for i in range(samples)]
    many = replace(
        one,
        offset=np.zeros(samples, np.int64),
        problem=np.full(samples, LABEL_NOT_INT, np.uint8),
        note=np.arange(samples, dtype=np.int32),
        notes=tuple(texts),
    )
    tracemalloc.start()
    try:
        sets = translate_sets(many, False, 10 * labels, None, 0).sets
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert sets[samples - 1] == [int(word) for word in texts[-1].split()]
    assert peak < 30 * samples * labels  # bytes; the int of a Python list takes 36


@pytest.mark.parametrize("text", [b"[4,0 ", b"[[4]]", b"{}   ", b"NaN  ", b"1e999"])
def test_an_index_file_that_no_scan_wrote_makes_bad_samples(tmp_path: Path, text: bytes) -> None:
    path = shard(tmp_path, "json:y", [4, 0], [2])
    index_of(path, label="json:y", multilabel=True, num_classes=C)
    (file,) = tmp_path.glob("*.index")
    data = file.read_bytes()
    assert data.count(b"[4,0]") == 1
    file.write_bytes(resealed(data.replace(b"[4,0]", text)))
    index = index_of(path, label="json:y", multilabel=True, num_classes=C)
    assert index.labels(np.arange(1, 2)).tolist() == [hot(2)]
    assert index.reason(0).startswith("the labels are not different class ids or class names; found")


# batches


MIXES = {
    "K = 1": MultiMix(k=1),
    "K = 5": MultiMix(k=5),
    "partners": MultiMix(k=3, partners="each"),
    "crops": MultiMix(k=3, crops="each"),
    "both": MultiMix(k=3, crops="each", partners="each"),
    "switch": MultiMix(k=2, method={"cutmix": 0.5, "mixup": 0.3, "smoothmix": 0.2}),
    "not all": MultiMix(k=2, prob=0.5),
    "none": None,
}


def expected_labels(batch: Batch) -> list[list[float]]:
    return [hot(*label_of(int(key))) for key in batch.keys]


@pytest.mark.parametrize("mix", MIXES.values(), ids=MIXES)
def test_targets_are_the_oracles_with_both_backends(open_several: Open, mix: MultiMix | None, backend: str) -> None:
    loader = open_several(mix=mix, backend=backend)
    for batch in loader:
        assert batch.labels.dtype == batch.targets.dtype == torch.float32
        assert batch.labels.tolist() == expected_labels(batch)
        if mix is None:
            assert batch.targets.equal(batch.labels)
        else:
            oracle = reference.mix_targets(batch.labels.numpy(), batch.plan.mix, C)
            assert batch.targets.shape == (6 * mix.k, C)
            assert batch.targets.equal(torch.from_numpy(oracle))


@pytest.mark.parametrize("mix", [mix for mix in MIXES.values() if mix is not None], ids=list(MIXES)[:-1])
def test_pairs_have_the_labels_of_both(open_several: Open, mix: MultiMix, backend: str) -> None:
    rows, pairs = (next(iter(open_several(mix=mix, backend=backend, targets=form))) for form in ("rows", "pairs"))
    own, other, _ = pairs.targets
    assert own is pairs.labels
    assert other.equal(own[torch.from_numpy(pairs.plan.partner)])
    logits = torch.randn(rows.targets.shape, generator=torch.Generator().manual_seed(0))
    loss = MultiMixLoss(multilabel=True, reduction="none")
    assert torch.allclose(loss(logits, rows.targets), loss(logits, pairs.targets), rtol=0, atol=1e-6)
    parts = [loss(part, chunk.targets) for part, chunk in zip(logits.chunk(3), pairs.chunks(3), strict=True)]
    assert torch.allclose(torch.cat(parts), loss(logits, pairs.targets), rtol=0, atol=1e-6)


@pytest.mark.parametrize("crops", ["same", "each"])
def test_plain_batches_have_a_row_of_labels_for_each_image(open_several: Open, crops: str, backend: str) -> None:
    mix = MultiMix(k=3, crops=crops)
    plain = next(iter(open_several(mix=mix, expand=False, backend=backend)))
    mixed = next(iter(open_several(mix=mix, backend=backend)))
    each = 3 if crops == "each" else 1
    assert len(plain.images) == len(plain.targets) == 6 * each
    assert plain.targets.tolist() == [row for row in expected_labels(plain) for _ in range(each)]
    plan = plain.plan.mix.of_crops() if crops == "each" else plain.plan.mix
    again = apply_mix(plain.images, plain.targets, plan, num_classes=C)
    assert again.targets.equal(mixed.targets)
    assert torch.allclose(again.images, mixed.images, rtol=0, atol=1e-6)


def test_epochs_with_and_without_mixing_have_targets_of_one_form(open_several: Open) -> None:
    loader = open_several(mix={0: MultiMix(k=2), 1: None})
    for batch in loader:
        assert batch.targets.shape == (12, C)
    for batch in loader:
        assert batch.targets.tolist() == expected_labels(batch)


def test_a_resumed_run_has_exactly_the_batches_that_remained(open_several: Open, backend: str) -> None:
    options = {"mix": MultiMix(k=3, partners="each"), "backend": backend}
    loader = open_several(**options)
    iterator = iter(loader)
    list(islice(iterator, 2))
    state = loader.state_dict()
    remained = [*iterator, *loader]
    again = resumed(open_several, state, **options)
    assert all_same([*again, *again], remained)


def test_a_state_of_single_labels_is_refused(open_several: Open, opened: Open, tmp_path: Path) -> None:
    path = shard(tmp_path, "cls", *range(C))
    state = opened(path, num_classes=C, batch_size=2).state_dict()
    with pytest.raises(StateMismatchError, match="data"):
        open_several(path, batch_size=2).load_state_dict(state)


def test_another_number_of_processes_sees_the_same_labels(open_several: Open) -> None:
    options = {"mix": MultiMix(k=2), "batch_size": 4, "last_batch": "partial"}
    alone = list(open_several(**options))
    first = open_several(**options, rank=0, world_size=2)
    batches = [next(iter(open_several(**options, rank=rank, world_size=2))) for rank in range(2)]
    next(iter(first))
    shares = [list(resumed(open_several, first.state_dict(), **options, rank=r, world_size=3)) for r in range(3)]
    batches += [share[step] for step in range(len(shares[0])) for share in shares if step < len(share)]
    assert all_same(batches, alone)


def test_a_replaced_sample_brings_its_own_labels(
    open_several: Open, several: Path, tmp_path: Path, backend: str
) -> None:
    data = (several / "0.tar").read_bytes()
    at = data.index(b"\xff\xd8")
    (tmp_path / "0.tar").write_bytes(data[: at + 2] + bytes(30) + data[at + 32 :])
    options = {"on_bad_sample": "replace", "backend": backend, "mix": MultiMix(k=2)}
    loader = open_several(tmp_path, **options)
    for batch in loader:
        assert batch.labels.tolist() == expected_labels(batch)
        assert batch.targets.equal(torch.from_numpy(reference.mix_targets(batch.labels.numpy(), batch.plan.mix, C)))
    assert len(loader.bad_samples) == 1


def test_a_batch_survives_pickling(open_several: Open) -> None:
    batch = next(iter(open_several(mix=MultiMix(k=2), expand=False)))
    again = pickle.loads(pickle.dumps(batch))
    assert all_same([batch], [again])
    assert again.targets is again.labels


# the loss


def logits_and_rows(rows: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(rows, C, generator=generator), torch.rand(rows, C, generator=generator)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weight", [None, torch.tensor([1.0, 0.0, 2.0, 0.5, 3.0])])
def test_the_loss_is_torchs_of_smoothed_rows(smoothing: float, weight: torch.Tensor | None) -> None:
    logits, rows = logits_and_rows()
    target = rows * (1 - smoothing) + 0.5 * smoothing
    each = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    expected = each.mean(1) if weight is None else (each * weight).sum(1) / weight.sum()
    for reduction, value in (("none", expected), ("sum", expected.sum()), ("mean", expected.mean())):
        loss = MultiMixLoss(weight, smoothing, reduction, multilabel=True)
        assert torch.allclose(loss(logits, rows), value, rtol=0, atol=1e-6)
    if weight is None and not smoothing:
        plain = F.binary_cross_entropy_with_logits(logits, rows)
        assert torch.allclose(MultiMixLoss(multilabel=True)(logits, rows), plain, rtol=0, atol=1e-6)


def test_the_loss_of_16_bit_logits_is_computed_in_float32() -> None:
    logits, rows = logits_and_rows()
    loss, weighted = MultiMixLoss(multilabel=True), MultiMixLoss(torch.arange(1.0, C + 1), multilabel=True)
    half = logits.bfloat16()
    assert loss(half, rows).equal(loss(half.float(), rows))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert weighted(logits, rows).equal(weighted(logits.clone(), rows))
        assert torch.allclose(
            weighted(logits, rows), weighted.double()(logits.double(), rows).float(), rtol=0, atol=1e-6
        )


@pytest.mark.parametrize(
    "targets",
    [
        torch.zeros(7, dtype=torch.int64),
        torch.zeros(7, C, dtype=torch.int64),
        torch.zeros(7, C - 1),
        torch.zeros(6, C),
        (torch.zeros(7, dtype=torch.int64), torch.zeros(7, dtype=torch.int64), torch.ones(7, 1)),
        (torch.zeros(7, C), torch.zeros(6, C), torch.ones(7, 1)),
        (torch.zeros(7, C), torch.zeros(7, 2, C), torch.ones(7, 1)),
        (torch.zeros(7, C), torch.zeros(7, C), torch.ones(7, 2)),
        (torch.zeros(7, C), torch.zeros(7, C), torch.ones(7)),
    ],
)
def test_the_loss_refuses_targets_of_one_label_and_of_other_shapes(targets: Any) -> None:
    with pytest.raises(ConfigError, match="with multilabel=True, targets must be floating-point rows") as error:
        MultiMixLoss(multilabel=True)(torch.zeros(7, C), targets)
    first = targets[0] if isinstance(targets, tuple) else targets
    assert f"found {str(first.dtype).removeprefix('torch.')} {tuple(first.shape)}" in str(error.value)
    assert ("open_loader" in str(error.value)) == (first.dtype == torch.int64)


# what is meant for one label


SINGLE: dict[str, Callable[..., object]] = {
    "loss": MultiMixLoss(),
    "accuracy": mixed_accuracy,
    "metric": lambda logits, targets: MixedAccuracy().update(logits, targets),
}


@pytest.mark.parametrize("single", SINGLE.values(), ids=SINGLE)
def test_what_is_meant_for_one_label_refuses_several(open_several: Open, single: Callable[..., object]) -> None:
    for options in ({"mix": MultiMix(k=2)}, {"mix": None}, {"mix": MultiMix(k=2), "targets": "pairs"}):
        batch = next(iter(open_several(**options)))
        with pytest.raises(ConfigError, match=r"For several labels per sample see MultiMixLoss\(multilabel=True\)"):
            single(torch.zeros(len(batch.images), C), batch.targets)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_rows_of_one_label_are_accepted_in_16_bits_too(dtype: torch.dtype) -> None:
    labels = torch.arange(1000)
    rows = mix_batch(torch.rand(1000, 1), labels, MultiMix(k=2), num_classes=1000, step=0).targets
    rows = (rows * 0.9 + 0.1 / 1000).to(dtype)
    assert MultiMixLoss()(torch.zeros(2000, 1000), rows).isfinite()
    assert mixed_accuracy(torch.zeros(2000, 1000), rows).isfinite()


def test_where_a_check_would_wait_rows_of_several_labels_give_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    # as on a GPU and in compiled code
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    logits, rows = logits_and_rows()
    one = rows.softmax(1)
    assert MultiMixLoss()(logits, rows).isnan()
    assert mixed_accuracy(logits, rows).isnan()
    assert MultiMixLoss()(logits, one).isfinite()
    assert mixed_accuracy(logits, one).isfinite()


def test_balanced_weights_need_one_label(open_several: Open) -> None:
    with pytest.raises(ConfigError, match='weights="balanced" needs one label per sample; found multilabel=True'):
        open_several(weights="balanced")
    loader = open_several(weights=[float("5" in str(i)) for i in range(24)])
    assert {key for batch in loader for key in batch.keys} <= {str(i) for i in range(24)}


def test_evaluate_says_where_several_labels_are_measured(open_several: Open) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, C))
    with pytest.raises(ConfigError, match=r"class ids \(B,\) int64.*docs/guides/multilabel\.md"):
        evaluate(model, open_several(transform=EvalTransform(size=8)))


# tensors of other loaders, and mixing at the model


@pytest.mark.parametrize("mix", [MultiMix(k=1), MultiMix(k=4), MultiMix(k=3, partners="each", method="cutmix")])
def test_mix_batch_takes_rows_of_labels(mix: MultiMix) -> None:
    _, labels = logits_and_rows(6)
    labels = labels.round()
    batch = mix_batch(torch.rand(6, 3, 4, 4), labels, mix, num_classes=C, step=3)
    assert batch.labels is labels
    assert batch.targets.numpy().tolist() == reference.mix_targets(labels.numpy(), batch.plan, C).tolist()


@pytest.mark.parametrize(
    "labels", [torch.zeros(6, C, dtype=torch.int64), torch.zeros(6, C + 1), torch.zeros(5, C), torch.zeros(6)]
)
def test_mix_batch_names_labels_that_do_not_fit(labels: torch.Tensor) -> None:
    with pytest.raises(ConfigError, match=r"or float32 \(B, num_classes=5\) if samples have several; found images"):
        mix_batch(torch.rand(6, 3, 4, 4), labels, MultiMix(), num_classes=C, step=0)


@pytest.mark.parametrize("k", [1, 3])
def test_mixing_at_the_model(open_several: Open, k: int) -> None:
    plain = next(iter(open_several(mix=MultiMix(k=k), expand=False)))
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, C))
    oracle = torch.from_numpy(reference.mix_targets(plain.labels.numpy(), plain.plan.mix, C))
    for batch in (plain, pickle.loads(pickle.dumps(plain)), plain.to("cpu")):
        logits, targets = ManifoldMix(model, ["input", "1"])(batch)
        assert logits.shape == targets.shape == (6 * k, C)
        assert targets.equal(oracle)
    mixed = PuzzleMix(model, blocks=2)(plain)
    assert mixed.targets.equal(torch.from_numpy(reference.mix_targets(plain.labels.numpy(), mixed.plan.mix, C)))


def test_puzzlemix_looks_at_what_the_binary_loss_looks_at(open_several: Open) -> None:
    torch.manual_seed(0)
    plain = next(iter(open_several(mix=MultiMix(k=3), expand=False)))
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, C))
    own = PuzzleMix(model, blocks=8, beta=0.0)(plain)
    for loss, same in ((F.binary_cross_entropy_with_logits, True), (F.cross_entropy, False)):
        images = plain.images.clone().requires_grad_()
        loss(model(images), plain.labels, reduction="sum").backward()  # type: ignore[operator]
        given = PuzzleMix(model, blocks=8, beta=0.0)(plain, saliency=images.grad, num_classes=C)
        assert given.images.equal(own.images) == same


def test_methods_at_the_model_refuse_mixed_batches_and_models_of_other_classes(open_several: Open) -> None:
    model, smaller = (nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, outputs)) for outputs in (C, C - 1))
    mixed = next(iter(open_several(mix=MultiMix(k=1))))
    plain = next(iter(open_several(mix=MultiMix(k=1), expand=False)))
    for method in (lambda net: ManifoldMix(net, "input"), lambda net: PuzzleMix(net, blocks=2)):
        with pytest.raises(ConfigError, match="a batch before its mixing"):
            method(model)(mixed)
        with pytest.raises(ConfigError, match="labels must be rows of the model's 4 outputs; found 5 classes"):
            method(smaller)(plain)
        with pytest.raises(ConfigError, match="found a chunk"):
            method(model)(next(plain.chunks(2)))


# commands


def test_commands_read_and_show_several_labels(
    several: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, quiet = str(several), ["--multilabel", "--quiet"]
    assert main(["index", source, *quiet]) == 0
    out = capsys.readouterr().out
    assert "24 samples, 2 shards, 5 classes" in out
    assert f"next: multimix-pipe preview {source} --multilabel -o grid.png" in out
    assert main(["verify", source, *quiet]) == 0
    assert main(["preview", source, *quiet, "-o", str(tmp_path / "x.png"), "--size", "16", "--pairs", "2"]) == 0
    assert main(["report", source, *quiet, "-o", str(tmp_path / "x.html"), "--samples", "24"]) == 0
    page = (tmp_path / "x.html").read_text()
    for number in range(24):
        assert f"<br>{', '.join(map(str, label_of(number)))}<br>" in page
    count = sum(0 in label_of(number) for number in range(24))
    assert f'<td class="n">0</td><td class="n">0</td><td class="n">{count}</td>' in page
    assert main(["evaluate", "net.pt", source, "--model", "a:b", *quiet]) == 2
    assert "evaluate measures models of one label per sample; found --multilabel" in capsys.readouterr().err


def test_commands_find_the_number_of_classes_in_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = shard(tmp_path, "json:y", [0, 0, 1, 0], [0, 1, 0, 0], [1, 1, 0, 0], [3])
    page = tmp_path / "x.html"
    assert main(["report", str(path), "--multilabel", "--quiet", "--label", "json:y", "-o", str(page)]) == 0
    assert "4 samples, 1 shard, 4 classes" in page.read_text()
