"""Promises of bench/: contenders of the race do the work that they were asked for, and whatever goes wrong is a row."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import end_to_end
from harness import Bar, draw_bars, in_turn
from helpers.images import encoded, picture
from helpers.samples import write_shards
from race import comparison, usage
from race.contenders import CONTENDERS, Contender
from race.contenders.steps import random_window
from race.runner import Row, race
from race.setting import RATIO, SCALE, Setting

ROOT = Path(__file__).resolve().parents[1]

PLANTED = {
    "raises": "raise RuntimeError('first line\\nlast line: it is broken')",
    "exits": "import os\n    print('so long', flush=True)\n    os._exit(3)",
    "dies": "import os, signal\n    os.kill(os.getpid(), signal.SIGSEGV)",
    "hangs": "import time\n    print('I wait', flush=True)\n    time.sleep(1000)",
    "ends": "return iter(())",
    "other_work": "import torch\n    yield torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.zeros(2)",
}


@pytest.fixture(scope="module")
def jpegs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shards of 24 small JPEG images."""
    samples = [(f"{n:03d}", "jpg", encoded(picture(n, 60 + n, 50), "JPEG", quality=90)) for n in range(24)]
    return write_shards(tmp_path_factory.mktemp("jpegs"), samples, shards=2)


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Contender]:
    """Contenders that go wrong, each in its way."""
    for name, code in PLANTED.items():
        (tmp_path / f"{name}.py").write_text(f"def batches(setting):\n    {code}\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return {
        **{name: Contender("planted", f"{name}:batches") for name in PLANTED},
        "needs": Contender("planted", "ends:batches", needs=("not_on_any_machine",)),
        "mixes_once": Contender("planted", "ends:batches", mixes=(None, 1)),
    }


def setting_for(shards: Path, **changes: object) -> Setting:
    fields: dict[str, object] = {"num_classes": 7, "batch_size": 8, "k": 2, "threads": 1, "size": 16}
    return Setting(sorted(map(str, shards.glob("*.tar"))), **(fields | changes))  # type: ignore[arg-type]


def test_contenders_that_fail_are_rows_that_say_so_and_the_others_still_come(
    jpegs: Path, planted: dict[str, Contender]
) -> None:
    del planted["hangs"]
    real = {"webdataset_pillow": CONTENDERS["webdataset_pillow"]}
    rows = race(planted | real, [setting_for(jpegs)], seconds=0.05, rounds=2)
    assert [row.name for row in rows] == [*planted, *real]
    said = {row.name: f"{row.status}: {row.message}" for row in rows}
    assert said.pop("other_work").startswith(
        "failed: ValueError: images must be ((16, 3, 16, 16), 'float32', 'cpu'); found"
    )
    assert said == {
        "raises": "failed: last line: it is broken",
        "exits": "failed: ended with status 3; its last line: so long",
        "dies": "failed: ended by SIGSEGV",
        "ends": "failed: it ran out of batches",
        "needs": "missing: not_on_any_machine is not installed",
        "mixes_once": "cannot: it only supports no mixing and K = 1",
        **dict.fromkeys(real, "ok: "),
    }
    assert len(rows[-1].rates) == 2
    assert 0 < min(rows[-1].rates) <= max(rows[-1].rates) < 1e6
    if Path("/proc/self/smaps_rollup").exists():
        assert len(rows[-1].cpu_seconds) == 2
        assert rows[-1].memory > 50e6


def test_a_contender_that_hangs_is_given_up_and_the_next_one_has_its_turn(
    jpegs: Path, planted: dict[str, Contender]
) -> None:
    contenders = {name: planted[name] for name in ("hangs", "raises")}
    hangs, raises = race(contenders, [setting_for(jpegs)], seconds=0.05, rounds=1, limit=2.0)
    assert (hangs.status, hangs.message) == ("failed", "no answer within 2 s; its last line: I wait")
    assert raises.message == "last line: it is broken"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can be asked for this")
def test_a_runner_that_is_killed_takes_its_contenders_with_it(jpegs: Path, planted: dict[str, Contender]) -> None:
    code = (
        "from race.contenders import Contender\nfrom race.runner import race\nfrom race.setting import Setting\n"
        f"setting = Setting(**{asdict(setting_for(jpegs))!r})\n"
        "race({'hangs': Contender('planted', 'hangs:batches')}, [setting], seconds=1, rounds=1)"
    )
    path = os.pathsep.join([str(ROOT), str(ROOT / "bench"), os.environ["PYTHONPATH"]])
    runner = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path})
    children = Path(f"/proc/{runner.pid}/task/{runner.pid}/children")
    wait_until(lambda: bool(children.read_text().split()))
    contender = int(children.read_text().split()[0])
    wait_until(lambda: os.getpgid(contender) == contender)  # it has read its first lines of code
    time.sleep(0.2)
    runner.send_signal(signal.SIGKILL)
    runner.wait()
    wait_until(lambda: not is_running(contender))


def wait_until(true: Callable[[], bool], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.mark.parametrize("name", CONTENDERS)
def test_each_contender_of_the_list_names_a_function_of_a_module_that_is_there(name: str) -> None:
    contender = CONTENDERS[name]
    assert 0 < len(contender.title) <= 40
    module, function = contender.batches.split(":")
    source = (ROOT / "bench" / Path(*module.split("."))).with_suffix(".py").read_text()
    assert f"\ndef {function}(setting: Setting)" in source


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="no /proc here")
def test_cpu_time_and_memory_of_a_group_are_those_of_its_processes() -> None:
    code = (
        "import time; data = bytearray(50_000_000); end = time.process_time() + 0.3\n"
        "while time.process_time() < end: pass\nprint(); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert 0.3 <= (usage.cpu_seconds(process.pid) or 0) < 2
        assert 50e6 < (usage.memory_bytes(process.pid) or 0) < 100e6
        process.kill()


def test_windows_are_those_of_random_resized_crop() -> None:
    draw = np.random.default_rng(0)
    windows = np.array([random_window(500, 375, draw) for _ in range(2000)])
    x, y, width, height = windows.T
    assert windows.min() >= 0
    assert (x + width).max() <= 500
    assert (y + height).max() <= 375
    area, ratio = width * height / (500 * 375), width / height
    assert SCALE[0] - 0.01 < area.min() < 0.1
    assert 0.8 < area.max() <= SCALE[1]
    assert RATIO[0] - 0.02 < ratio.min() < 0.8
    assert 1.25 < ratio.max() < RATIO[1] + 0.02
    assert abs(np.median(np.log(ratio))) < 0.1
    assert random_window(1000, 10, draw) == (493, 0, 13, 10)  # no window fits: the largest centred one


def rows_of_two_settings() -> list[Row]:
    return [
        Row("webdataset_pillow", "Pillow", 5, rates=[100.0, 120.0, 90.0], cpu_seconds=[8.0, 9.0, 10.0], memory=10**9),
        Row("own_torch", "ours", 5, rates=[400.0, 360.0, 450.0], cpu_seconds=[2.0, 2.0, 3.0], memory=2 * 10**9),
        Row("timm_loader", "timm", 5, "missing", "timm is not installed"),
        Row("own_torch", "ours", None, rates=[500.0]),
        Row("webdataset_pillow", "Pillow", None, "failed", "ended by SIGKILL"),
    ]


def test_ratios_are_within_a_round_and_each_k_has_its_own_block() -> None:
    blocks = comparison.table(rows_of_two_settings()).split("\n\n")
    assert [block.split("  ")[0] for block in blocks] == ["K = 5", "no mixing"]
    ours, pillow, timm = (line.split() for line in blocks[0].splitlines()[1:4])
    assert " ".join(ours) == "ours 400 360 .. 450 2,000 1.00 2.00 2,000 MB"
    assert " ".join(pillow) == "Pillow 100 90 .. 120 500 0.25 9.00 1,000 MB"
    assert " ".join(timm) == "timm missing: timm is not installed"
    assert "failed: ended by SIGKILL" in blocks[1]
    to_pillow = comparison.table(rows_of_two_settings(), peer="webdataset_pillow").split("\n\n")
    assert to_pillow[0].splitlines()[1].split()[6] == "4.00"
    assert to_pillow[1].splitlines()[1].split()[6] == "-"  # the peer has no figures there


def test_the_summary_is_json_that_gives_every_row_and_its_setting_back(jpegs: Path) -> None:
    settings = [setting_for(jpegs, k=k) for k in (5, None)]
    assert [Setting(**json.loads(json.dumps(asdict(setting)))) for setting in settings] == settings
    found = json.loads(json.dumps(comparison.summary(rows_of_two_settings(), settings)))
    assert [(row["name"], row["k"], row["status"]) for row in found["rows"]] == [
        ("own_torch", 5, "ok"),
        ("webdataset_pillow", 5, "ok"),
        ("timm_loader", 5, "missing"),
        ("own_torch", None, "ok"),
        ("webdataset_pillow", None, "failed"),
    ]
    assert found["rows"][1]["rates"] == [100.0, 120.0, 90.0]
    assert found["rows"][1]["ratio"] == 0.25
    assert found["setting"]["k"] == [5, None]


def test_bars_are_as_long_as_their_medians(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    bars = [Bar("a", [100.0], own=True), Bar("b", [25.0, 50.0, 75.0]), Bar("c", (), "missing")]
    draw_bars(tmp_path / "chart.png", "Which?", ["here"], {"K = 5": bars}, "images/s")
    with Image.open(tmp_path / "chart.png") as chart:
        pixels = np.asarray(chart.convert("RGB"))
    blue, orange = ((pixels == colour).all(axis=2).sum(axis=1).max() for colour in ((31, 119, 180), (230, 120, 30)))
    assert abs(orange / blue - 0.5) < 0.05


def test_in_turn_leaves_the_first_round_out_and_tells_the_cores_in_use() -> None:
    turns = {"a": 0, "b": 0}

    def work(name: str) -> float:
        turns[name] += 1
        end = time.process_time() + 0.05
        while time.process_time() < end:
            pass
        return float(turns[name] * (2 if name == "a" else 1))

    figures = in_turn({name: lambda name=name: work(name) for name in turns}, unit="ms", peer="b", rounds=3)
    assert figures.values == {"a": [4.0, 6.0, 8.0], "b": [2.0, 3.0, 4.0]}
    assert figures.ratio("a") == 2.0
    assert all(0 < cores < 1.5 for values in figures.cores.values() for cores in values)


def test_end_to_end_prints_a_table_and_writes_figures(
    jpegs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = ["--shards", str(jpegs), "--contenders", "own_torch", "--k", "3", "--batch-size", "8", "--size", "16"]
    argv += ["--threads", "1", "--seconds", "0.05", "--rounds", "2", "--json", str(tmp_path / "a.json")]
    monkeypatch.setattr(sys, "argv", [str(ROOT / "bench" / "end_to_end.py"), *argv])
    assert end_to_end.main() == 0
    printed = capsys.readouterr().out
    assert "K = 3 " in printed
    assert "multimix_pipe, torch" in printed
    found = json.loads((tmp_path / "a.json").read_text())
    assert found["command"].startswith("python bench/end_to_end.py --shards ")
    assert found["machine"]["cores"] >= 1
    assert "torch" in found["machine"]["versions"]
    assert [row["status"] for row in found["rows"]] == ["ok"]
    assert len(found["rows"][0]["rates"]) == 2


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--batch-size", "64"], "--batch-size must be at most the number of usable samples, 24 of 24; found 64"),
        (["--k", "0"], "--k must be an int in [1, 1024]; found 0"),
        (["--k", "many"], "must be a whole number or none; found 'many'"),
        (["--k", "5", "5"], "--k must not repeat a value"),
        (["--rounds", "0"], "--rounds must be an int >= 1; found 0"),
        (["--seconds", "0"], "--seconds must be a finite number"),
        (["--threads", "-1"], "--threads must be an int in [0, 1024]; found -1"),
        (["--contenders", "nobody"], "invalid choice: 'nobody'"),
        (["--contenders", "own_torch", "--peer", "timm_loader"], "--peer must be one of the contenders"),
        (["--device", "abacus"], "device must be"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_said_before_anything_starts(
    jpegs: Path, options: list[str], says: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["end_to_end.py", "--shards", str(jpegs), *options])
    with pytest.raises(SystemExit, match="2"):
        end_to_end.main()
    printed = capsys.readouterr()
    assert printed.out == ""
    assert says in printed.err
