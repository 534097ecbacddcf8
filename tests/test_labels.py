"""Labels come from where the user says, and a message about one says what was found there."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
import torch

from helpers.batches import Open
from helpers.images import plain_image
from helpers.tars import index_of, plain_members, write_tar
from multimix_pipe import BadSampleError, ConfigError, MultiMix
from multimix_pipe.cli import main

IMAGE = plain_image()


def shard(path: Path, extension: str, *texts: str) -> Path:
    members = []
    for i, text in enumerate(texts):
        members += [(f"{i}.jpg", IMAGE), (f"{i}.{extension}", text.encode())]
    return write_tar(path, members)


@pytest.mark.parametrize("extension", ["cls", "txt", "json:y"])
def test_labels_may_be_names_of_classes(tmp_path: Path, extension: str) -> None:
    texts = ["dog", "1", "ant", "cow"]
    if extension == "json:y":
        texts = [json.dumps({"y": int(text) if text.isdigit() else text}) for text in texts]
    path = shard(tmp_path / "x.tar", extension.partition(":")[0], *texts)
    for classes in (["ant", "cat", "dog"], {"dog": 2, "ant": 0}):
        index = index_of(path, label=extension, classes=classes)
        assert index.label.tolist() == [2, 1, 0, -1]
        assert index.reason(3) == "the label is neither an integer nor one of the class names; found 'cow'"
    assert index_of(path, label=extension).label.tolist() == [-1, 1, -1, -1]
    assert index_of(path, label=extension, classes={"hound": 2, "dog": 2, "ant": 0}).classes == ("ant", "1", "hound")


def test_names_of_several_shards_are_kept_apart(tmp_path: Path) -> None:
    shard(tmp_path / "a.tar", "txt", "cow", "dog")
    shard(tmp_path / "b.tar", "txt", "dog", "0", "elk")
    for _ in range(2):  # the second reads the index files
        index = index_of(tmp_path, label="txt", classes=["cow", "dog"])
        assert index.label.tolist() == [0, 1, 1, 0, -1]
        assert index.reason(4).endswith("found 'elk'")


def test_folders_are_classes_in_sorted_order_or_in_the_given_one(tmp_path: Path, opened: Open) -> None:
    names = ["train/n02/a", "train/n01/b", "n10/c", "d"]
    path = write_tar(tmp_path / "x.tar", [(f"{name}.jpg", IMAGE) for name in names])
    index = index_of(path, label="folder")
    assert (index.label.tolist(), index.classes) == ([1, 0, 2, -1], ("n01", "n02", "n10"))
    assert index.reason(3) == "there is no label"
    index = index_of(path, label="folder", classes=["n10", "n02"])
    assert index.label.tolist() == [1, -1, 0, -1]
    loader = opened(path, label="folder", num_classes=None, batch_size=3, backend="torch", exclude=["d"])
    assert (loader.num_classes, loader.classes) == (3, ("n01", "n02", "n10"))


def test_an_offset_is_subtracted_from_numbers(tmp_path: Path, opened: Open) -> None:
    path = shard(tmp_path / "x.tar", "cls", "1", "3", "0")
    index = index_of(path, label_offset=1)
    assert index.label.tolist() == [0, 2, -1]
    assert index.reason(2).endswith("found 0, with label_offset=1")
    options = {"num_classes": 3, "batch_size": 2, "backend": "torch", "mix": None, "shuffle": "none"}
    loader = opened(path, label_offset=1, exclude=["2"], **options)
    assert next(iter(loader)).labels.tolist() == [0, 2]
    with pytest.raises(ConfigError, match="label_offset must be an int >= 0"):
        index_of(path, label_offset=-1)


def test_without_labels_labels_and_targets_are_minus_one(tmp_path: Path, opened: Open, backend: str) -> None:
    path = write_tar(tmp_path / "x.tar", plain_members(4)[::2])
    options = {"batch_size": 4, "num_classes": None, "label": None, "backend": backend}
    batch = next(iter(opened(path, **options)))
    assert batch.labels.dtype == torch.int64
    assert batch.labels.tolist() == batch.targets.tolist() == [-1] * 4
    with pytest.raises(ConfigError, match="label=None has nothing to mix"):
        opened(path, mix=MultiMix(), **options)
    for _ in range(2):
        assert index_of(path, label=None).label.tolist() == [-1] * 4
    assert index_of(path).label.tolist() == [-1] * 4


FOUND = {
    "a number with a point": ("cls", "3.0", "the label is not an integer; found '3.0'"),
    "a name": ("cls", "n01440764", "the label is not an integer; found 'n01440764'"),
    "nothing": ("cls", "", "the label is not an integer; found ''"),
    "a novel": ("txt", "word " * 1000, "found 'word word word"),
    "another field": ("json:foo", '{"label": 3, "name": "x"}', "there is no label; found the fields 'label', 'name'"),
    "a field that is no number": ("json:y", '{"y": [1, 2]}', "the label is not an integer; found '[1, 2]'"),
    "control characters": ("cls", "\x1b[31m", r"found '\x1b[31m'"),
}


@pytest.mark.parametrize("what", FOUND)
def test_a_label_that_fails_is_quoted(
    tmp_path: Path, opened: Open, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    label, text, reason = FOUND[what]
    path = shard(tmp_path / "x.tar", label.partition(":")[0], text, text)
    index = index_of(path, label=label)
    assert reason in index.reason(1)
    assert index.reason(1).isprintable()
    assert main(["index", str(path), "--quiet", "--label", label]) == 1
    assert reason in capsys.readouterr().out


def test_the_error_at_opening_says_what_was_found_and_how_to_name_classes(tmp_path: Path, opened: Open) -> None:
    path = write_tar(tmp_path / "x.tar", [*plain_members(3), ("a.jpg", IMAGE), ("a.cls", b"n01440764")])
    with pytest.raises(BadSampleError, match=r"x.tar : a: .*found 'n01440764', as in 1 of 4 samples\. .*classes="):
        opened(path, num_classes=3, backend="torch")


def test_an_index_without_a_usable_sample_ends_with_status_1(tmp_path: Path) -> None:
    path = write_tar(
        tmp_path / "x.tar", [("a.jpg", IMAGE), ("a.json", b"{}"), ("b.jpg", IMAGE), ("b.json", b'{"y": 1}')]
    )
    assert main(["index", str(path), "--quiet", "--label", "json:x"]) == 1
    assert main(["index", str(path), "--quiet", "--label", "json:y"]) == 0
    assert main(["index", str(path), "--quiet", "--label", "none"]) == 0
    assert main(["index", str(path), "--quiet", "--label", "folder"]) == 1


@pytest.mark.parametrize("classes", [{}, {"a": -1}, {"a": 1.5}, {3: 1}])
def test_a_mapping_that_is_none_is_refused(tmp_path: Path, classes: object) -> None:
    with pytest.raises(ConfigError, match="classes"):
        index_of(shard(tmp_path / "x.tar", "cls", "a"), classes=classes)


def test_shards_of_one_name_are_told_apart(tmp_path: Path, opened: Open) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        members = (
            plain_members(3)
            if folder == "a"
            else [("0000.jpg", b"junk"), ("0000.cls", b"0"), *plain_members(2, start=1)]
        )
        write_tar(tmp_path / folder / "s.tar", members)
    options = {"num_classes": 3, "batch_size": 6, "backend": "torch", "on_bad_sample": "replace"}
    sources = [tmp_path / "a", tmp_path / "b"]
    loader = opened(sources, **options)
    assert loader.index.full_key(0) == "a/s.tar : 0000"
    next(iter(loader))
    assert list(loader.bad_samples) == ["b/s.tar : 0000"]
    rest = opened(sources, exclude=list(loader.bad_samples), **options)
    assert [rest.index.full_key(i) for i in rest.context.plan.samples.sample_id][:3] == [
        f"a/s.tar : 000{i}" for i in range(3)
    ]
    assert len(rest.context.plan.samples) == 5
    assert main(["verify", *map(str, sources), "--quiet", "--write-bad", str(tmp_path / "bad.txt")]) == 1
    assert (tmp_path / "bad.txt").read_text() == "b/s.tar : 0000\n"


def test_the_error_names_the_member_that_holds_the_labels(
    tmp_path: Path, opened: Open, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"num_classes": 3, "batch_size": 2, "backend": "torch"}
    texts = shard(tmp_path / "a.tar", "txt", "0", "1")
    with pytest.raises(ConfigError, match=r'found the members \.jpg, \.txt; .*Perhaps label="txt" finds labels'):
        opened(texts, **options)
    assert main(["index", str(texts), "--quiet"]) == 1
    assert capsys.readouterr().out.endswith(f"next: multimix-pipe index {texts} --label txt\n")
    some = write_tar(tmp_path / "b.tar", [*plain_members(3), ("x/y.jpg", IMAGE), ("x/y.json", b'{"label": 1}')])
    with pytest.raises(BadSampleError, match=r'x/y: there is no label; .*with label="json:KEY" or label="folder"'):
        opened(some, **options)
    none = write_tar(tmp_path / "c.tar", [("x.jpg", IMAGE), ("y.jpg", IMAGE), ("y.npy", b"?")])
    index = index_of(none)
    assert [index.reason(i) for i in range(2)] == [
        "there is no label",
        "there is no label; found the members .jpg, .npy",
    ]


@pytest.mark.parametrize(
    ("label", "hint"),
    [
        ({"cat": 0}, "Pass a mapping from class names to ids as classes="),
        ("json", 'Name the field, as in "json:label"'),
        ("none", "pass None, not a string"),
    ],
)
def test_a_label_that_is_another_argument_says_which(tmp_path: Path, opened: Open, label: object, hint: str) -> None:
    with pytest.raises(ConfigError, match=f"label must be .*{hint}"):
        opened(shard(tmp_path / "a.tar", "cls", "0"), label=label, num_classes=3, batch_size=1, backend="torch")


def test_the_next_command_has_the_options_that_describe_the_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    members = [("a.jpg", plain_image((8, 8))), ("a.txt", b"2")]
    shard, cache = write_tar(tmp_path / "a b.tar", members), tmp_path / "cache"
    options = ["--label", "txt", "--label-offset", "1", "--cache-dir", str(cache)]
    assert main(["index", str(shard), *options, "--quiet"]) == 0
    following = capsys.readouterr().out.splitlines()[-1]
    assert following == f"next: multimix-pipe preview '{shard}' {' '.join(options)} -o grid.png"
    grid = str(tmp_path / "grid.png")
    assert main([*shlex.split(following.removeprefix("next: multimix-pipe "))[:-1], grid]) == 0
