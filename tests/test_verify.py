"""verify finds what cannot be decoded and names it so that the loader can leave it out."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from helpers.backends import needs_dali
from helpers.images import plain_image
from helpers.processes import environment, start
from helpers.tars import plain_members, write_tar
from multimix_pipe import ConfigError, ShardError
from multimix_pipe.cli import main
from multimix_pipe.shards import open_index
from multimix_pipe.shards.subset import select
from multimix_pipe.verify import verify
from test_pack import command


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    whole = plain_image((200, 200), quality=95)
    png = plain_image((50, 50), kind="PNG")
    write_tar(tmp_path / "a.tar", plain_members(70))
    write_tar(
        tmp_path / "b.tar",
        [
            *plain_members(2),
            ("cut.jpg", whole[: len(whole) // 2]),
            ("cut.cls", b"0"),
            ("flipped.png", png[:60] + b"\xff" + png[61:]),
            ("flipped.cls", b"0"),
            ("nolabel.jpg", whole),
        ],
    )
    return tmp_path


BAD = ["b.tar : cut", "b.tar : flipped", "b.tar : nolabel"]


def test_bad_samples_are_named_with_their_reasons(folder: Path, backend: str) -> None:
    found: list[object] = []
    report = verify(folder, backend=backend, progress=False, workers=2, found=found.append)  # type: ignore[arg-type]
    assert (report.samples, report.shards, report.backend) == (75, 2, backend)
    assert [sample.name for sample in report.bad] == BAD
    assert [(sample.shard, sample.key) for sample in report.bad] == [
        ("b.tar", key) for key in ("cut", "flipped", "nolabel")
    ]
    assert "truncated" in report.bad[0].reason
    assert report.bad[2].reason == "there is no label"
    assert tuple(found) == report.bad


@needs_dali
def test_what_only_dali_refuses_is_said_to_be_so(tmp_path: Path) -> None:
    whole = plain_image((64, 48))
    odd = whole[:2] + b"\xff\x00" + whole[2:]  # no marker: libjpeg-turbo passes over it, DALI's parser does not
    path = write_tar(tmp_path / "a.tar", [("odd.jpg", odd), ("odd.cls", b"0"), *plain_members(3)])
    assert verify(path, backend="torch", progress=False).bad == ()
    (bad,) = verify(path, backend="dali", progress=False).bad
    assert bad.key == "odd"
    assert bad.reason.startswith("no header that DALI can parse")
    assert bad.reason.endswith("(the torch backend can)")


def test_many_bad_samples_among_good_ones_are_all_found(tmp_path: Path, backend: str) -> None:
    whole = plain_image((200, 200), quality=95)
    bad = [number for number in range(50) if number % 7 in (2, 3)]
    members = [
        (f"{number:03}.{kind}", data)
        for number in range(50)
        for kind, data in (("jpg", whole[:-100] if number in bad else whole), ("cls", b"0"))
    ]
    report = verify(write_tar(tmp_path / "a.tar", members), backend=backend, progress=False)
    assert [int(sample.key) for sample in report.bad] == bad


def test_good_shards_have_none(folder: Path) -> None:
    assert verify(folder / "a.tar", progress=False).bad == ()


def test_a_shard_changed_under_a_fresh_index_is_seen(folder: Path, backend: str) -> None:
    path = folder / "a.tar"
    open_index(path, progress=False)
    stat = path.stat()
    data = path.read_bytes()
    path.write_bytes(data.replace(plain_image((12, 8), colour=2), plain_image((8, 12), colour=2), 1))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # as a failing disk does it: same time, other bytes
    (bad,) = verify(path, backend=backend, progress=False).bad
    assert "8x12" in bad.reason
    assert "12x8" in bad.reason


def test_samples_lost_under_a_fresh_index_are_bad(folder: Path, backend: str) -> None:
    path = folder / "a.tar"
    index, stat = open_index(path, progress=False), path.stat()
    os.truncate(path, int(index.offset[50]))
    os.truncate(path, stat.st_size)  # zeros from there on
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    report = verify(path, backend=backend, progress=False)
    assert [int(sample.key) for sample in report.bad] == list(range(50, 70))


# shards that cannot be indexed


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """Eight shards of five samples each; the third is no tar, the sixth has a sample that is cut."""
    whole = plain_image((200, 200), quality=95)
    for number in range(8):
        write_tar(tmp_path / f"s-{number}.tar", plain_members(5))
    (tmp_path / "s-2.tar").write_bytes(b"not a tar" * 1000)
    write_tar(tmp_path / "s-5.tar", [*plain_members(4), ("cut.jpg", whole[:-200]), ("cut.cls", b"0")])
    return tmp_path


def test_a_damaged_shard_is_listed_and_the_others_are_verified(many: Path, backend: str) -> None:
    found: list[object] = []
    report = verify(many, backend=backend, progress=False, found=found.append)  # type: ignore[arg-type]
    assert [Path(shard.shard).name for shard in report.bad_shards] == ["s-2.tar"]
    assert "is not a whole tar file" in report.bad_shards[0].reason
    assert [sample.name for sample in report.bad] == ["s-5.tar : cut"]
    assert (report.shards, report.samples) == (7, 35)
    assert found == [*report.bad_shards, *report.bad]


def test_of_a_shard_that_is_cut_short_what_comes_before_is_verified(many: Path, backend: str) -> None:
    with tarfile.open(many / "s-5.tar") as tar:
        header = tar.getmember("cut.jpg").offset
    os.truncate(many / "s-5.tar", header + 600)
    report = verify(many, backend=backend, progress=False)
    assert [Path(shard.shard).name for shard in report.bad_shards] == ["s-2.tar", "s-5.tar"]
    assert "s-5.tar is cut short: member 'cut.jpg'" in report.bad_shards[1].reason
    assert (report.shards, report.samples, report.bad) == (6, 34, ())


@pytest.mark.parametrize("source", ["s-{0..9}.tar", ["s-{0..7}.tar", "s-8.tar", "s-{9..9}.tar"]], ids=["one", "list"])
def test_missing_shards_of_a_pattern_or_a_list_are_listed(
    many: Path, source: str | list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(many)
    report = verify(source, progress=False)
    assert [Path(shard.shard).name for shard in report.bad_shards] == ["s-8.tar", "s-9.tar", "s-2.tar"]
    assert "missing" in report.bad_shards[0].reason
    assert (report.shards, report.samples) == (7, 35)


def test_where_nothing_named_is_there_it_is_an_error(many: Path) -> None:
    with pytest.raises(ShardError, match="missing"):
        verify(many / "t-{0..3}.tar", progress=False)


# the command


def test_the_report_as_json_has_everything(
    many: Path, backend: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "report.json"
    assert command("verify", many, "--quiet", "--backend", backend, "--json", out) == 1
    report = json.loads(out.read_text())
    assert {name: report[name] for name in ("backend", "samples", "shards", "without_image")} == {
        "backend": backend,
        "samples": 35,
        "shards": 7,
        "without_image": 0,
    }
    (bad,) = report["bad"]
    assert (bad["shard"], bad["key"]) == ("s-5.tar", "cut")
    assert "truncated" in bad["reason"]
    (shard,) = report["bad_shards"]
    assert shard["shard"] == str(many / "s-2.tar")
    assert list(report["reasons"].values()) == [1]
    assert {"python", "pillow", "simplejpeg"} <= report["versions"].keys()
    told = capsys.readouterr().out
    assert f"s-5.tar : cut: {bad['reason']}" in told.splitlines()
    assert "35 samples, 1 bad in 7 shards; 1 more shard missing or damaged" in told


def test_json_to_stdout_is_all_there_is_on_it(many: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("verify", many, "--quiet", "--json", "-") == 1
    assert json.loads(capsys.readouterr().out)["samples"] == 35


def test_reasons_are_counted_without_the_numbers_in_them(
    many: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = plain_image((200, 200), quality=95)
    cut = [(f"c{n}.{kind}", data) for n in range(3) for kind, data in (("jpg", whole[: -200 - n]), ("cls", b"0"))]
    path = write_tar(tmp_path / "cut.tar", [*cut, ("n.jpg", whole)])
    assert command("verify", path, "--quiet", "--backend", "torch", "--json", tmp_path / "report.json") == 1
    reasons = json.loads((tmp_path / "report.json").read_text())["reasons"]
    assert list(reasons.values()) == [3, 1]
    assert "truncated (N bytes" in next(iter(reasons))
    assert f"3  {next(iter(reasons))}" in capsys.readouterr().out


def test_where_a_report_cannot_be_written_is_said_before_anything_is_verified(
    many: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for option in ("--json", "--write-bad"):
        assert main(["verify", str(many), "--quiet", option, str(tmp_path / "no" / "report")]) == 2
        told = capsys.readouterr()
        assert f"{option} must name a writable file" in told.err
        assert told.out == ""


def test_the_exit_status_says_good_bad_or_impossible(many: Path) -> None:
    assert main(["verify", str(many / "s-0.tar"), "--quiet"]) == 0
    assert main(["verify", str(many / "s-5.tar"), "--quiet"]) == 1
    assert main(["verify", str(many / "s-2.tar"), "--quiet"]) == 1
    assert main(["verify", str(many / "nothing.tar"), "--quiet"]) == 2
    assert main(["verify", str(many), "--backend", "opencv"]) == 2
    assert main(["verify", str(many), "--quiet", "--workers", "0"]) == 2


def test_a_full_disk_is_no_fault_of_the_shards(many: Path) -> None:
    verifying = f"ulimit -f 0; exec {sys.executable} -m multimix_pipe verify {many} --quiet"  # no file may get a byte
    ended = subprocess.run(["bash", "-c", verifying], capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 2
    assert re.search(r"the index .*\.index cannot be written: .*File too large", ended.stderr)
    assert not ended.stdout


def test_an_interrupt_ends_it_in_a_line_after_what_was_found(tmp_path: Path) -> None:
    slow = plain_image((2500, 2500))
    members = [(f"{n:03}.{kind}", data) for n in range(300) for kind, data in (("jpg", slow), ("cls", b"0"))]
    path = write_tar(tmp_path / "a.tar", [("cut.jpg", slow[:-200]), ("cut.cls", b"0"), *members])
    out = tmp_path / "report.json"
    words = ["verify", path, "--backend", "torch", "--workers", "1", "--quiet", "--json", out]
    buffered = {name: value for name, value in environment().items() if name != "PYTHONUNBUFFERED"}
    with start([sys.executable, "-m", "multimix_pipe", *map(str, words)], env=buffered) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        assert child.stdout.readline().startswith("a.tar : cut: ")
        child.send_signal(signal.SIGINT)
        try:
            _, told = child.communicate(timeout=240)
        finally:
            child.kill()  # one that hangs
        assert child.returncode == 130
    assert told.rstrip().endswith("multimix-pipe: interrupted")
    assert "Traceback" not in told
    assert not out.exists()


@pytest.mark.parametrize("options", [["--write-bad", "-"], ["--json", "both.txt", "--write-bad", "both.txt"]])
def test_the_list_of_bad_samples_is_a_file_of_its_own(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="--write-bad must name a file of its own"):
        command("verify", folder, "--quiet", *options)
    assert not Path(options[-1]).exists()


def test_written_names_are_what_exclude_takes(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("verify", folder, "--quiet", "--write-bad", tmp_path / "bad.txt") == 1
    assert "75 samples, 3 bad" in capsys.readouterr().out
    index = open_index(folder, progress=False)
    left = select(index, None, tmp_path / "bad.txt")
    assert len(left) == 72
    assert not {index.name(i) for i in left} & set(BAD)
    assert command("verify", folder / "a.tar", "--quiet") == 0
