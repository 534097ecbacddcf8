"""pack --multilabel: the classes of images that a file names, in any of its forms, come out of open_loader."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from helpers.images import plain_image
from multimix_pipe import ConfigError, EvalTransform, open_loader
from multimix_pipe.cli import main
from test_pack import quiet_pack, write_folder

IMAGE = plain_image()
LABELS = {"a": ["dog", "ant"], "b": [], "sub/c": ["traffic light"], "sub/a": ["ant"]}
CLASSES = ("ant", "dog", "traffic light")
LINES = "image,labels\na.jpg,dog;ant\nb.jpg,\nsub/c.jpg,traffic light\nsub/a.jpg,ant\n"
FORMS = {
    "json": ("x.json", json.dumps({f"{name}.jpg": classes for name, classes in LABELS.items()})),
    "json, one of a class": ("x.json", json.dumps(LABELS | {"sub/c": "traffic light", "sub/a": "ant"})),
    "lines": ("x.csv", LINES),
    "bars": ("x.csv", LINES.replace(";", "|")),
    "quoted commas": ("x.csv", LINES.replace("dog;ant", '"dog, ant"')),
    "a line for each label": ("x.csv", LINES.replace("a.jpg,dog;ant", "a.jpg,dog\na.jpg,ant\na.jpg,dog", 1)),
    "no extensions": ("x.csv", LINES.replace(".jpg", "")),
    "folders before": ("x.csv", LINES.replace("\n", "\n/data/images/").removesuffix("/data/images/")),
    "columns": ("x.csv", "name,ant,dog,traffic light\na.jpg,1,1,0\nb.jpg,0,0,0\nsub/c.jpg,0,0,1\nsub/a.jpg,1,0,0\n"),
    "columns of floats": (
        "x.csv",
        "\ufeffname,ant,dog,traffic light\na,1.0,1.0,0.0\nb,0,0,0\nsub/c,0,0,1\nsub/a,TRUE,0,0\n",
    ),
    "columns with tabs": (
        "x.tsv",
        "\tant\tdog\ttraffic light\na\t1\t1\t0\nb\t0\t0\t0\nsub/c\t0\t0\t1\nsub/a\t1\t0\t0\n",
    ),
    "text": ("x.txt", "a.jpg dog;ant\nb.jpg\nsub/c.jpg traffic light\nsub/a.jpg ant\n"),
}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "in", {f"{name}.jpg": IMAGE for name in LABELS})


def read(shards: Path) -> tuple[tuple[str, ...] | None, dict[str, list[str]]]:
    """Return the names of the classes, and those of each sample by its key."""
    options = {"batch_size": 8, "multilabel": True, "transform": EvalTransform(size=8), "device": "cpu"}
    with open_loader(shards, **options) as loader:  # type: ignore[arg-type]
        batch = next(iter(loader))
        names = loader.classes or ()
        rows = [[names[i] for i in row.nonzero().flatten().tolist()] for row in batch.labels]
        return loader.classes, dict(zip(batch.keys, rows, strict=True))


@pytest.mark.parametrize(("name", "text"), FORMS.values(), ids=FORMS)
def test_what_a_file_says_of_images_is_what_the_loader_gives(
    source: Path, tmp_path: Path, name: str, text: str
) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    report = quiet_pack(source, tmp_path / "out", labels=tmp_path / name, multilabel=True)
    assert report.classes == CLASSES
    assert not report.skipped
    assert read(tmp_path / "out") == (CLASSES, {key: sorted(classes) for key, classes in LABELS.items()})


def test_classes_may_be_ids_of_given_names(source: Path, tmp_path: Path) -> None:
    names = ["traffic light", "dog", "ant", "unused"]
    for form, text in {
        "x.csv": "a,1 2\nb,\nsub/c,0\nsub/a,2\n",
        "x.json": json.dumps({"a": [1, 2], "b": [], "sub/c": 0, "sub/a": [2]}),
        "y.csv": "a,dog ant\nb,\nsub/c,traffic light\nsub/a,ant\n",  # words of given names may be separated by spaces
    }.items():
        (tmp_path / form).write_text(text)
        quiet_pack(source, tmp_path / "out" / form, labels=tmp_path / form, multilabel=True, classes=names)
        assert read(tmp_path / "out" / form) == (
            tuple(names),
            {key: sorted(classes, key=names.index) for key, classes in LABELS.items()},
        )


def test_columns_give_the_ids_their_order(source: Path, tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("name,dog,zebra,ant\na,1,0,1\nb,0,0,0\n")
    report = quiet_pack(source, tmp_path / "out", labels=tmp_path / "x.csv", multilabel=True)
    assert report.classes == ("dog", "zebra", "ant")
    assert [(skipped.files, skipped.what) for skipped in report.skipped] == [(2, "image without labels")]


@pytest.mark.parametrize("space", ["\t", "  "])
def test_columns_in_a_text_are_never_taken_for_ids(source: Path, tmp_path: Path, space: str) -> None:
    (tmp_path / "x.txt").write_text("name dog ant\na 1 0\nb 0 0\nsub/c 0 1\n".replace(" ", space))
    options = {"labels": tmp_path / "x.txt", "multilabel": True, "classes": ["zebra", "ant", "dog"]}
    quiet_pack(source, tmp_path / "out", **options)
    assert read(tmp_path / "out")[1] == {"a": ["dog"], "b": [], "sub/c": ["ant"]}


def test_a_name_that_could_be_several_images_is_refused(source: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    options = {"labels": path, "multilabel": True}
    path.write_text("name,labels\na,dog\n")  # the whole path of one image
    report = quiet_pack(source, tmp_path / "out", **options)
    assert (report.samples, report.skipped[0].files) == (1, 3)
    write_folder(source, {"sub/b.png": IMAGE, "x/y.jpg": IMAGE, "z/y.jpg": IMAGE})
    for name, found in (("sub/b", None), ("b", None), ("y", "'y', which could be x/y.jpg or z/y.jpg")):
        path.write_text(f"name,labels\n{name},dog\n")
        if found is None:
            assert quiet_pack(source, tmp_path / name.replace("/", "-"), **options).samples == 1
        else:
            with pytest.raises(ConfigError, match=found):
                quiet_pack(source, tmp_path / "other", **options)
    write_folder(source, {"b.png": IMAGE})
    path.write_text("name,labels\nb,dog\n")
    with pytest.raises(ConfigError, match=r"'b', which could be b\.jpg or b\.png"):
        quiet_pack(source, tmp_path / "other", **options)


def test_splits_are_packed_apart_and_val_is_held_out(tmp_path: Path) -> None:
    names = [f"train/{i}" for i in range(8)] + [f"val/{i}" for i in range(2)]
    source = write_folder(tmp_path / "in", {f"{name}.jpg": IMAGE for name in names})
    (tmp_path / "x.json").write_text(
        json.dumps({f"{name}.jpg": ["ant", "dog"][: i % 3] for i, name in enumerate(names)})
    )
    assert main(["pack", str(source), str(tmp_path / "out"), "--labels", str(tmp_path / "x.json"), "--multilabel"]) == 0
    for split, count in (("train", 8), ("val", 2)):
        classes, labels = read(tmp_path / "out" / split)
        assert classes == ("ant", "dog")
        numbers = [names.index(f"{split}/{key}") for key in labels]
        assert sorted(numbers) == [names.index(f"{split}/{i}") for i in range(count)]
        assert [labels[key] for key in labels] == [["ant", "dog"][: number % 3] for number in numbers]
    with pytest.raises(ConfigError, match=r"one entry for each image; found 'train/0\.jpg'"):
        quiet_pack(source / "train", tmp_path / "half", labels=tmp_path / "x.json", multilabel=True)
    (tmp_path / "y.json").write_text(json.dumps({f"/data/{name}.jpg": ["ant"] for name in names[:8]}))
    quiet_pack(source / "train", tmp_path / "half", labels=tmp_path / "y.json", multilabel=True, val=0.25)
    train, val = read(tmp_path / "half/train")[1], read(tmp_path / "half/val")[1]
    assert (len(train), len(val)) == (6, 2)
    assert not train.keys() & val.keys()
    write_folder(source, {"extra/x.jpg": IMAGE})
    with pytest.raises(ConfigError, match="are splits, but beside them is 'extra'"):
        quiet_pack(source, tmp_path / "other", labels=tmp_path / "x.json", multilabel=True)


def test_the_same_call_starts_over_and_other_labels_are_another_run(source: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text(LINES)
    first = quiet_pack(source, tmp_path / "out", labels=path, multilabel=True).shards[0].read_bytes()
    assert quiet_pack(source, tmp_path / "out", labels=path, multilabel=True).shards[0].read_bytes() == first
    path.write_text(LINES.replace("dog;ant", "dog"))
    with pytest.raises(ConfigError, match="of another run"):
        quiet_pack(source, tmp_path / "out", labels=path, multilabel=True)


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("x.json", "[1]", "required .*found a list"),
        ("x.json", "{", "Expecting property name"),
        ("x.json", '{"a": [1.5]}', r"required names or ids of classes, found \[1.5\] for 'a'"),
        ("x.json", '{"a": ["dog", "dog"]}', "a class of 'a' is repeated"),
        ("x.json", '{"a": [0, 1]}', "name the classes with --classes FILE"),
        (
            "x.json",
            '{"z": ["dog"]}',
            r"labels must name images of the source; found 4 images \(a.jpg, ...\) and 1 name \(z, ...\)",
        ),
        ("x.json", '{"a.jpg": [], "b.jpg": []}', "labels must give some image a class; found none"),
        ("x.json", "{}", "found none in"),
        (
            "x.csv",
            "a,dog,ant\nb,ant\n",
            "row 2: required 0 or 1 .*, found 'ant'. .* required two: name and classes as in a;b",
        ),
        ("x.csv", "a,1,0\nb,0,1\n", "required a header with the names of different classes, found '1, 0'"),
        ("x.csv", "name,dog,dog\na,1,0\n", "required a header with the names of different classes, found 'dog, dog'"),
        ("x.csv", ",name,dog,ant\n0,a,1,0\n", "row 2: required 0 or 1 for each of 3 classes, found 'a'"),
        ("x.txt", "a 1 0 0 1\nb 0 0 0 0\n", "row 1: required classes as in a;b, each once; found '1 0 0 1'"),
        (
            "x.csv",
            "a,\"['dog', 'ant']\"\n",
            r"row 1: required classes as in a;b, each once; found \"\['dog', 'ant'\]\"",
        ),
        ("x.txt", "a 1\nb -1\n", "row 2: required classes as in a;b, each once; found '-1'"),
        ("x.csv", "a,ant dog\nb,ant\nsub/c,dog\n", "separate classes by ; or |; found 'ant dog'.* with --classes FILE"),
        ("x.json", '{"images": [1], "annotations": [], "categories": []}', "found annotations of COCO; docs/guides"),
        ("x.json", json.dumps({"a": [{"id": i} for i in range(99)]}), r"found \[{'id': 0}.{,60}\.\.\. for 'a'$"),
        ("x.csv", "name,dog,ant\na,1,0\nb,1,-1\n", "row 3: required 0 or 1 for each of 2 classes, found '-1'"),
        ("x.csv", "name,dog,ant\na,1,0\nb,1\n", "row 3: required 0 or 1 for each of 2 classes, found 1 cell"),
        ("x.csv", "name,dog,ant\nb,1,0\nb,1,1\n", "row 3: 'b' is repeated"),
        ("x.csv", "a.jpg,dog\n./a.jpg,ant\n", "one entry for each image; found 'a.jpg' and './a.jpg'"),
    ],
)
def test_labels_that_are_not_clear_are_refused(source: Path, tmp_path: Path, name: str, text: str, found: str) -> None:
    (source / "sub/a.jpg").rename(source / "sub/d.jpg")
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=found) as error:
        quiet_pack(source, tmp_path / "out", labels=tmp_path / name, multilabel=True)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_several_classes_without_multilabel_are_refused(source: Path, tmp_path: Path) -> None:
    for name, text, found in (
        ("x.csv", "a.jpg,dog\na.jpg,ant\n", "found 'dog' and 'ant' for a.jpg"),
        ("x.csv", "a.jpg,dog;ant\nb.jpg,ant\nc.jpg,ant\n", "found 'dog;ant'"),
        ("x.csv", "a.jpg,dog ant\nb.jpg,ant\nc.jpg,dog\na.jpg,dog ant\n", "found 'dog ant'"),
        ("x.txt", "a.jpg 0 3\nb.jpg 1\nc.jpg 2\n", "found '0 3'"),
        ("x.json", '{"a": ["dog"]}', "x.json"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(ConfigError, match=r"need multilabel=True \(--multilabel\)") as error:
            quiet_pack(source, tmp_path / "out", labels=tmp_path / name)
        assert found in str(error.value)
    with pytest.raises(ConfigError, match=r"multilabel=True \(--multilabel\) needs labels=FILE"):
        quiet_pack(source, tmp_path / "out", multilabel=True)
