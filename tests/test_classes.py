"""Class ids mean the same in every set that is opened, or opening it is an error."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from helpers.batches import Open
from helpers.images import plain_image
from helpers.tars import plain_members, write_tar
from multimix_pipe import ConfigError
from multimix_pipe.cli import main
from multimix_pipe.shards.pack import pack

CLASSES = ("ant", "cat", "dog")


@pytest.fixture
def packed(tmp_path: Path) -> dict[str, Path]:
    """Three sets that were packed apart: "train" has CLASSES, "same" too, "other" has only cat and dog."""
    folders = {}
    for name, classes in {"train": CLASSES, "same": CLASSES, "other": CLASSES[1:]}.items():
        for class_name in classes:
            (tmp_path / "images" / name / class_name).mkdir(parents=True)
            (tmp_path / "images" / name / class_name / f"{name}.jpg").write_bytes(plain_image())
        folders[name] = tmp_path / name
        pack(tmp_path / "images" / name, folders[name], progress=False)
    return folders


def open_set(opened: Open, source: object, **options: object) -> object:
    return opened(source, **{"batch_size": 2, "num_classes": None, "backend": "torch", **options})  # type: ignore[arg-type]


def test_the_names_and_their_number_come_with_the_shards(opened: Open, packed: dict[str, Path]) -> None:
    loader = opened(packed["train"], batch_size=2, num_classes=None, backend="torch")
    assert (loader.classes, loader.num_classes) == (CLASSES, 3)
    assert next(iter(loader)).targets.shape[1] == 3
    assert opened(packed["train"], batch_size=2, num_classes=9, backend="torch").num_classes == 9


def test_another_set_is_compared_by_name(opened: Open, packed: dict[str, Path]) -> None:
    open_set(opened, packed["same"], classes=CLASSES)
    found = r"class 0 is 'ant' in classes= and 'cat' in .*other/classes\.json\. .*--classes FILE"
    with pytest.raises(ConfigError, match=found):
        open_set(opened, packed["other"], classes=CLASSES)
    with pytest.raises(ConfigError, match=r"class 2 is 'elk' in classes= and no such class in .*other"):
        open_set(opened, packed["other"], classes=("cat", "dog", "elk"))


def test_a_list_of_sets_with_other_ids_is_refused(opened: Open, packed: dict[str, Path]) -> None:
    loader = opened([packed["train"], packed["same"]], batch_size=2, num_classes=None, backend="torch")
    assert loader.classes == CLASSES
    with pytest.raises(
        ConfigError, match=r"class 0 is 'ant' in .*train/classes\.json and 'cat' in .*other/classes\.json"
    ):
        open_set(opened, [packed["train"], packed["other"]])
    with pytest.raises(ConfigError, match="class 0 is 'ant'"):
        open_set(opened, [packed["train"], packed["other"]], num_classes=3)


def test_without_names_the_number_must_be_given(opened: Open, tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", plain_members(3))
    with pytest.raises(ConfigError, match=r"num_classes= or classes= must be given, as no classes\.json"):
        open_set(opened, path)
    assert opened(path, batch_size=2, num_classes=3, backend="torch").classes is None
    assert opened(path, batch_size=2, num_classes=None, classes=CLASSES, backend="torch").classes == CLASSES
    with pytest.raises(ConfigError, match="num_classes must be at least the number of names in classes, 3; found 2"):
        open_set(opened, path, num_classes=2, classes=CLASSES)
    # a model may know more classes than have names
    assert opened(path, batch_size=2, num_classes=4, classes=CLASSES, backend="torch").num_classes == 4


@pytest.mark.parametrize("classes", [["a", "a", "b"], [], ["a", 1], 3])
def test_names_that_are_none_are_refused(opened: Open, packed: dict[str, Path], classes: Sequence[str]) -> None:
    with pytest.raises(ConfigError, match="class"):
        open_set(opened, packed["train"], classes=classes)


@pytest.mark.parametrize("found", [list(CLASSES), {name: i for i, name in enumerate(CLASSES)}])
def test_classes_json_of_other_writers_is_read(opened: Open, packed: dict[str, Path], found: object) -> None:
    (packed["train"] / "classes.json").write_text(json.dumps(found))
    assert open_set(opened, packed["train"]).classes == CLASSES  # type: ignore[attr-defined]


@pytest.mark.parametrize("text", ["[", "3", '{"0": "a", "2": "b"}', '["a", 1]', "{}"])
def test_a_classes_json_that_is_none_is_ignored_with_a_warning(
    opened: Open, packed: dict[str, Path], text: str, caplog: pytest.LogCaptureFixture
) -> None:
    (packed["train"] / "classes.json").write_text(text)
    assert open_set(opened, packed["train"], num_classes=3).classes is None  # type: ignore[attr-defined]
    assert "classes.json is ignored" in caplog.text


def test_commands_refuse_sets_with_other_ids_too(
    packed: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train, other = str(packed["train"]), str(packed["other"])
    for words in (["preview", train, other, "-o"], ["demo", "--data", train, "--test-data", other, "--out"]):
        assert main([*words, str(tmp_path / "out"), "--quiet"]) == 2
        assert "class ids must mean the same" in capsys.readouterr().err
