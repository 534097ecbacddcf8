"""Subsets by key: which samples a key or a `shard.tar : key` means."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from helpers.images import plain_image
from helpers.tars import write_tar
from multimix_pipe.errors import ConfigError
from multimix_pipe.shards import Index, open_index
from multimix_pipe.shards.subset import select

# key `a` is in each shard; others hold what separates the parts of a name
KEYS = {"x.tar": ["a", "b/q", "c : d"], "y.tar": ["a", "x.tar : b/q"], "z : w.tar": ["a"]}


@pytest.fixture
def index(tmp_path: Path) -> Index:
    for shard, keys in KEYS.items():
        members = [[(f"{key}.jpg", plain_image()), (f"{key}.cls", b"0")] for key in keys]
        write_tar(tmp_path / shard, [member for sample in members for member in sample])
    return open_index(tmp_path, progress=False)


@pytest.mark.parametrize(
    ("entry", "ids"),
    [
        ("a", [0, 3, 5]),
        ("x.tar : a", [0]),
        ("y.tar : a", [3]),
        ("z : w.tar : a", [5]),
        ("c : d", [2]),
        ("x.tar : c : d", [2]),
        ("x.tar : b/q", [1, 4]),  # the name of one sample, the key of another
        ("y.tar : x.tar : b/q", [4]),
    ],
)
def test_an_entry_means_every_sample_of_that_key_or_name(index: Index, entry: str, ids: list[int]) -> None:
    assert select(index, [entry], None).tolist() == ids
    assert select(index, None, [entry]).tolist() == [i for i in range(6) if i not in ids]


def test_samples_and_exclude_together_keep_the_stored_order(index: Index) -> None:
    chosen = select(index, ["z : w.tar : a", "c : d", "a"], ["y.tar : a"])
    assert chosen.tolist() == [0, 2, 5]
    assert chosen.dtype == "int64"


@pytest.mark.parametrize("entry", ["w.tar : a", "y.tar : c : d", "x.tar :a", "x.tar : ", "absent", ""])
def test_an_entry_of_no_sample_is_an_error_to_keep_and_a_warning_to_leave_out(
    index: Index, entry: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ConfigError, match="2 are not, the first: 'none'"):
        select(index, ["a", "none", entry], None)
    with caplog.at_level(logging.WARNING, "multimix_pipe"):
        assert select(index, None, ["b/q", entry]).tolist() == [0, 2, 3, 4, 5]
    assert f"exclude: 1 key is not in this data set, the first: {entry!r}" in caplog.text


def test_a_file_of_keys_means_each_line_to_the_letter(tmp_path: Path) -> None:
    keys = ["blank ", " blank", "tab\t", "unit\x85", "line\u2028end", "form\x0cfeed", "plain"]
    members = [[(f"{key}.jpg", plain_image()), (f"{key}.cls", b"0")] for key in keys]
    index = open_index(
        write_tar(tmp_path / "x.tar", [member for sample in members for member in sample]), progress=False
    )
    names = tmp_path / "names.txt"
    for end in ("\n", "\r\n"):
        names.write_bytes(end.join([*(index.full_key(i) for i in range(6)), "", ""]).encode())
        assert select(index, None, names).tolist() == [6]
        assert select(index, names, None).tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("keys", [5, [3], [None, "a"]])
def test_what_is_no_list_of_keys_is_named(index: Index, keys: object) -> None:
    with pytest.raises(ConfigError, match="exclude must be a list of keys, each a str, or a text file"):
        select(index, None, keys)  # type: ignore[arg-type]


def test_nothing_left_is_an_error(index: Index) -> None:
    with pytest.raises(ConfigError, match="the shards hold 6"):
        select(index, [], None)


def test_names_are_built_only_where_they_may_be_meant(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    built = []
    name = Index.full_key
    monkeypatch.setattr(Index, "full_key", lambda self, i: built.append(i) or name(self, i))
    select(index, ["b/q", "x.tar : c : d"], ["a"])  # building all of them takes seconds of ImageNet
    assert built == [2]
