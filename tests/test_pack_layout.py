"""pack takes folders for classes or splits only where that is no guess, and understands ImageNet's own forms."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import scipy.io

from helpers.images import plain_image
from helpers.tars import write_tar
from multimix_pipe.cli import main
from multimix_pipe.errors import ConfigError, ShardError
from multimix_pipe.shards.pack.imagefolder import open_image_folder
from test_pack import contents, quiet_pack, write_folder, write_zip

IMAGE = plain_image()


def places(source: Path, **options: object) -> set[tuple[str, str, str]]:
    """(split, class, name) of the images in `source`."""
    folder = open_image_folder(source, **options)  # type: ignore[arg-type]
    with folder.files:
        return {(image.split, image.class_name, image.name) for image in folder.images}


def tree(root: Path, *names: str) -> Path:
    return write_folder(root, dict.fromkeys(names, IMAGE))


# splits and classes


@pytest.mark.parametrize("split", ["train", "Train", "TESTING", "dev", "validation"])
def test_a_folder_named_like_a_split_is_one_in_any_case(tmp_path: Path, split: str) -> None:
    source = tree(tmp_path / "in", f"{split}/cat/a.jpg", f"{split}/dog/b.jpg", "val/cat/c.jpg")
    assert places(source) == {(split, "cat", "a"), (split, "dog", "b"), ("val", "cat", "c")}


def test_a_stray_image_in_a_split_does_not_make_classes_of_the_splits(tmp_path: Path) -> None:
    source = tree(tmp_path / "in", "train/cat/a.jpg", "train/dog/b.jpg", "train/stray.jpg", "val/cat/c.jpg", "x.jpg")
    report = quiet_pack(source, tmp_path / "out")
    assert report.classes == ("cat", "dog")
    assert report.samples == 3
    assert [(skipped.files, skipped.what) for skipped in report.skipped] == [(2, "image in no class folder")]


def test_a_stray_image_beside_the_folder_around_everything_does_not_make_a_class_of_it(tmp_path: Path) -> None:
    source = tree(tmp_path / "in", "data/cat/a.jpg", "data/dog/b.jpg", "data/cat/d.jpg", "stray.jpg", "data/stray.jpg")
    assert {class_name for _, class_name, _ in places(source)} == {"cat", "dog"}


def test_a_split_without_a_class_of_the_others_gets_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    quiet_pack(tree(tmp_path / "in", "train/cat/a.jpg", "train/dog/b.jpg", "val/images/c.jpg"), tmp_path / "out")
    assert "the split 'val' has the classes 'images', none of which another split has" in caplog.text


def test_a_folder_around_the_classes_within_each_split_is_no_class(tmp_path: Path) -> None:
    names = [f"{split}/images/{name}/a.jpg" for split in ("train", "val") for name in ("cat", "dog")]
    source = tree(tmp_path / "in", *names)
    assert places(source) == {(split, name, "a") for split in ("train", "val") for name in ("cat", "dog")}


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["train/a.jpg", "val/b.jpg"], "found the image train/a.jpg directly in train/"),
        (["train/cat/a.jpg", "val/b.jpg", "val/c.jpg"], r"found 2 images \(val/b.jpg, ...\) directly in val/"),
        (["train/cat/a.jpg", "val/cat/b.jpg", "extra/cat/c.jpg"], "'train', 'val' are splits, but beside them is 'extra'"),
        (["train/a.jpg", "car/b.jpg", "bus/b.jpg"], "'train' are splits, but beside them is 'bus', 'car'"),
        (["a/cat/x.jpg", "a/dog/x.jpg", "b/cat/y.jpg"], "'a', 'b' could be splits or classes: they share 'cat'"),
        (
            ["a17/cat/x.jpg", "a17/dog/x.jpg", "a17/stray.jpg", "b17/cat/y.jpg", "b17/dog/y.jpg"],
            "'a17', 'b17' could be splits or classes: they share 'cat', 'dog'",
        ),
        (
            ["a_set/cat/x.jpg", "b_set/cat/y.jpg", "misc/x/z.jpg"],
            "'a_set', 'b_set' could be splits or classes: they share 'cat'",
        ),
        (["a.jpg", "b.jpg", "thumbnails/c.jpg"], r"2 images \(a.jpg, ...\) in no folder at all"),
    ],
)  # fmt: skip
def test_a_layout_that_would_be_a_guess_is_refused_with_what_was_found(
    tmp_path: Path, names: list[str], found: str
) -> None:
    with pytest.raises(ConfigError, match=found) as error:
        quiet_pack(tree(tmp_path / "in", *names), tmp_path / "out")
    assert "--classes FILE" in str(error.value) or "--labels FILE" in str(error.value)
    assert not (tmp_path / "out").exists()


def test_one_split_can_be_packed_beside_other_folders(tmp_path: Path) -> None:
    source = tree(tmp_path / "in", "train/cat/a.jpg", "val/dog/b.jpg", "extra/fox/c.jpg")
    report = quiet_pack(source, tmp_path / "out", split="train")
    assert (report.samples, report.classes) == (1, ("cat", "dog"))


def test_images_of_one_class_are_packed_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    quiet_pack(tree(tmp_path / "in", "images/a.jpg", "images/b.jpg"), tmp_path / "out")
    assert "all images are of one class, 'images'" in caplog.text


# --classes


def test_named_classes_decide_the_ids_and_what_is_a_class(tmp_path: Path) -> None:
    source = tree(tmp_path / "in", "fold1/train/a.jpg", "fold1/car/b.jpg", "fold2/car/c.jpg", "fold2/x.jpg")
    (tmp_path / "names.txt").write_text("train\n\ncar\nbus\n")
    report = quiet_pack(source, tmp_path / "out", classes=tmp_path / "names.txt")
    assert report.classes == ("train", "car", "bus")
    assert {key: label for key, (label, _) in contents(tmp_path / "out/fold1").items()} == {"train/a": 0, "car/b": 1}
    assert {key: label for key, (label, _) in contents(tmp_path / "out/fold2").items()} == {"car/c": 1}
    assert [skipped[1:] for skipped in report.skipped] == [("image in no class folder", "fold2/x.jpg")]


def test_a_set_packed_with_the_classes_of_another_has_its_ids(tmp_path: Path) -> None:
    quiet_pack(tree(tmp_path / "a", "ant/a.jpg", "cat/b.jpg", "dog/c.jpg"), tmp_path / "first")
    command = ["pack", tree(tmp_path / "b", "dog/x.jpg"), tmp_path / "second", "--quiet"]
    assert main([*map(str, command), "--classes", str(tmp_path / "first/classes.json")]) == 0
    assert contents(tmp_path / "second") == {"dog/x": (2, IMAGE)}
    assert (tmp_path / "second/classes.json").read_bytes() == (tmp_path / "first/classes.json").read_bytes()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["cat", "cat"], "found 'cat' twice"),
        (["dog"], "must be among the 1 names of --classes, such as 'dog'; found 'cat'"),
        ([], "classes must be class names"),
        ("missing.txt", "missing.txt"),
    ],
)
def test_classes_that_do_not_fit_are_refused(tmp_path: Path, names: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        quiet_pack(tree(tmp_path / "in", "cat/a.jpg", "dog/b.jpg"), tmp_path / "out", classes=names)


# --labels and ImageNet

WNIDS = ("n01440764", "n02084071", "n09999999")
VAL = {f"ILSVRC2012_val_{i:08d}.JPEG": WNIDS[(2, 0, 1, 1)[i - 1]] for i in range(1, 5)}
TRAIN = {f"{wnid}/{wnid}_{i}.JPEG": IMAGE for wnid in WNIDS for i in range(2)}
KAGGLE_CSV = "ImageId,PredictionString\n" + "".join(
    f"{name.removesuffix('.JPEG')},{wnid} 1 2 3 4 \n" for name, wnid in sorted(VAL.items(), reverse=True)
)


def devkit() -> dict[str, bytes]:
    """The devkit's two files. Its numbers are not in the order of the WordNet ids, and it has synsets without images."""
    numbers = {"n09999999": 1, "n01440764": 2, "n02084071": 3, "n00001740": 1001}
    synsets = np.zeros((len(numbers), 1), dtype=[("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O")])
    for row, (wnid, number) in enumerate(numbers.items()):
        synsets[row, 0] = (float(number), wnid, "some, words")
    meta = io.BytesIO()
    scipy.io.savemat(meta, {"synsets": synsets})
    truth = "".join(f"{numbers[VAL[name]]}\n" for name in sorted(VAL))
    folder = "ILSVRC2012_devkit_t12/data"
    return {f"{folder}/meta.mat": meta.getvalue(), f"{folder}/ILSVRC2012_validation_ground_truth.txt": truth.encode()}


def devkit_archive() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, data in devkit().items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def assert_is_imagenet(out: Path) -> None:
    assert list(json.loads((out / "train/classes.json").read_text()).values()) == list(WNIDS)
    train, val = contents(out / "train"), contents(out / "val")
    assert {key: label for key, (label, _) in train.items()} == {
        name.removesuffix(".JPEG"): WNIDS.index(name[:9]) for name in TRAIN
    }
    assert {key.rpartition("/")[2]: label for key, (label, _) in val.items()} == {
        name.removesuffix(".JPEG"): WNIDS.index(wnid) for name, wnid in VAL.items()
    }
    assert all(data == IMAGE for _, data in [*train.values(), *val.values()])


@pytest.mark.parametrize("as_zip", [True, False])
def test_imagenet_as_kaggle_ships_it(tmp_path: Path, as_zip: bool) -> None:
    root = "ILSVRC/Data/CLS-LOC"
    files = {f"{root}/train/{name}": data for name, data in TRAIN.items()}
    files |= {f"{root}/val/{name}": IMAGE for name in VAL} | {
        f"{root}/test/ILSVRC2012_test_{i}.JPEG": IMAGE for i in "12"
    }
    files |= {"LOC_val_solution.csv": KAGGLE_CSV.encode(), "ILSVRC/Annotations/CLS-LOC/val/x.xml": b"<x/>"}
    source = write_zip(tmp_path / "in.zip", files) if as_zip else write_folder(tmp_path / "in", files)
    report = quiet_pack(source, tmp_path / "out")
    assert_is_imagenet(tmp_path / "out")
    assert {(skipped.files, skipped.what) for skipped in report.skipped} == {
        (2, "image in test/ without labels"),
        (1, ".csv"),
        (1, ".xml"),
    }
    inner = tmp_path / "in" / root
    if not as_zip:
        with pytest.raises(ConfigError, match=r"4 images .* directly in val/; give their classes with --labels FILE"):
            quiet_pack(inner, tmp_path / "other")
        labels = tmp_path / "in/LOC_val_solution.csv"
        assert main(["pack", str(inner), str(tmp_path / "other"), "--labels", str(labels), "--quiet"]) == 0
        assert_is_imagenet(tmp_path / "other")


@pytest.mark.parametrize("unpacked", [True, False])
def test_imagenet_as_its_site_ships_it(tmp_path: Path, unpacked: bool) -> None:
    source = tmp_path / "in"
    source.mkdir()
    tars = []
    for wnid in WNIDS:
        inner = [(name[10:], data) for name, data in TRAIN.items() if name.startswith(wnid)]
        tars.append((f"{wnid}.tar", write_tar(tmp_path / "inner.tar", inner).read_bytes()))
    write_tar(source / "ILSVRC2012_img_train.tar", tars)
    write_tar(source / "ILSVRC2012_img_val.tar", [(name, IMAGE) for name in VAL])
    write_folder(source, devkit() if unpacked else {"ILSVRC2012_devkit_t12.tar.gz": devkit_archive()})
    quiet_pack(source, tmp_path / "out")
    assert_is_imagenet(tmp_path / "out")
    quiet_pack(source / "ILSVRC2012_img_train.tar", tmp_path / "alone")
    assert contents(tmp_path / "alone") == contents(tmp_path / "out/train")


def test_a_table_of_ids_counts_in_the_order_of_the_sorted_classes(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "in", {f"train/{name}": data for name, data in TRAIN.items()})
    write_folder(source, {f"val/{name}": IMAGE for name in VAL})
    table = "".join(f"{name} {WNIDS.index(wnid)}\n" for name, wnid in VAL.items())
    (tmp_path / "val.txt").write_text(table)
    quiet_pack(source, tmp_path / "out", labels=tmp_path / "val.txt")
    assert_is_imagenet(tmp_path / "out")
    (tmp_path / "val.txt").write_text(table.replace(" 2", " 3"))
    with pytest.raises(ConfigError, match=r"positions in the 3 classes; found 3; name the classes with --classes FILE"):
        quiet_pack(source, tmp_path / "other", labels=tmp_path / "val.txt")


def test_a_flat_folder_takes_its_classes_from_a_table(tmp_path: Path) -> None:
    source = tree(tmp_path / "in", "a.jpg", "b.jpg", "c.jpg")
    with open(tmp_path / "labels.csv", "w", newline="") as file:
        csv.writer(file).writerows([("file", "class"), ("a.jpg", "polar bear"), ("images/b.jpg", "ant, red")])
    report = quiet_pack(source, tmp_path / "out", labels=tmp_path / "labels.csv")
    assert report.classes == ("ant, red", "polar bear")
    assert [(skipped.what, skipped.example) for skipped in report.skipped] == [("image in no class folder", "c.jpg")]


@pytest.mark.parametrize("text", ["", "a.jpg\n"])
def test_labels_without_any_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "labels.txt").write_text(text)
    with pytest.raises(ConfigError, match=r"labels must name a file .*found none"):
        quiet_pack(tree(tmp_path / "in", "a.jpg"), tmp_path / "out", labels=tmp_path / "labels.txt")


def test_a_devkit_that_is_not_one_is_named(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "in", {"val/x.jpg": IMAGE, "ILSVRC2012_devkit_t12.tar.gz": b"junk"})
    with pytest.raises(ShardError, match=r"ILSVRC2012_devkit_t12\.tar\.gz: required"):
        quiet_pack(source, tmp_path / "out")


def test_a_tar_that_is_cut_is_refused(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", [("cat/a.jpg", IMAGE), ("dog/b.jpg", bytes(4000))])
    assert quiet_pack(path, tmp_path / "whole").samples == 2
    path.write_bytes(path.read_bytes()[:-5_000])
    with pytest.raises(ShardError, match=r"x\.tar is not a whole plain tar"):
        quiet_pack(path, tmp_path / "out")


# --val


def test_images_are_held_out_by_class_and_the_same_each_time(tmp_path: Path) -> None:
    counts = {"many": 30, "few": 4, "two": 2, "one": 1}
    source = tree(tmp_path / "in", *(f"{name}/{i}.jpg" for name, count in counts.items() for i in range(count)))
    for name, options in {"a": {}, "b": {"workers": 1}, "c": {"shuffle_seed": 1}}.items():
        quiet_pack(source, tmp_path / name, val=0.1, **options)
    train, val = contents(tmp_path / "a/train"), contents(tmp_path / "a/val")
    assert Counter(key.partition("/")[0] for key in val) == {"many": 3, "few": 1, "two": 1}
    assert len(train) + len(val) == 37
    assert not set(train) & set(val)
    assert (tmp_path / "a/train/classes.json").read_bytes() == (tmp_path / "a/val/classes.json").read_bytes()
    assert val == contents(tmp_path / "b/val")
    assert val.keys() != contents(tmp_path / "c/val").keys()


def test_a_train_folder_alone_can_be_split(tmp_path: Path) -> None:
    source = tree(tmp_path / "in", "train/cat/a.jpg", "train/cat/b.jpg")
    assert main(["pack", str(source), str(tmp_path / "out"), "--val", "0.5", "--quiet"]) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["train", "val"]


def test_labels_that_are_not_there_are_not_looked_for_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "LOC_val_solution.csv").write_text("ImageId,PredictionString\na,cat 1 2 3 4\n")
    with pytest.raises(ConfigError, match=r"labels must name a file .*; found nothing at \S*typo.csv"):
        quiet_pack(tree(tmp_path / "in", "a.jpg"), tmp_path / "out", labels=tmp_path / "typo.csv")


@pytest.mark.parametrize(
    ("names", "val", "message"),
    [
        (["train/cat/a.jpg", "val/cat/b.jpg"], 0.1, "without other splits; found train, val"),
        (["cat/a.jpg", "dog/b.jpg"], 0.5, "a class with at least two images; found 2 classes of one image each"),
        (["cat/a.jpg"], 0.0, "val must be"),
        (["cat/a.jpg"], 10, "val must be"),
    ],
)
def test_a_fraction_that_cannot_be_held_out_is_refused(
    tmp_path: Path, names: list[str], val: float, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        quiet_pack(tree(tmp_path / "in", *names), tmp_path / "out", val=val)


def test_an_archive_in_the_source_is_named_with_what_to_do(tmp_path: Path) -> None:
    source = tree(tmp_path / "in", "inner.zip", "notes.txt")
    with pytest.raises(ConfigError, match=r"found 1 \.zip .*\. Unpack inner\.zip first"):
        quiet_pack(source, tmp_path / "out")


# OUT


@pytest.mark.parametrize("out", ["in", "in/shards", "in/cat/../new"])
def test_shards_are_not_written_into_the_source(tmp_path: Path, out: str) -> None:
    source = tree(tmp_path / "in", "cat/a.jpg", "dog/b.jpg")
    with pytest.raises(ConfigError, match="OUT must lie outside the source"):
        quiet_pack(source, tmp_path / out)
    assert sorted(path.name for path in source.iterdir()) == ["cat", "dog"]
