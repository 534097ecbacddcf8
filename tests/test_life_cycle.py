"""What a loader leaves behind: early ends, errors, interrupts, threads, forks, the interpreter's end. Both backends."""

from __future__ import annotations

import gc
import importlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.batches import Open, all_same
from helpers.processes import start
from helpers.samples import CLASSES, TINY
from multimix_pipe import Batch, ConfigError, Loader, MultiMixError, ShardError, TrainTransform, open_loader
from multimix_pipe.loader import epoch
from multimix_pipe.loader.backend import make_executor
from multimix_pipe.shards.index import open_index
from multimix_pipe.shards.reader import ShardReader

needs_proc = pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs /proc")


# Early ends


def test_a_second_iterator_ends_the_first(opened: Open, backend: str) -> None:
    loader = opened(backend=backend)
    first = iter(loader)
    next(first)
    second = iter(loader)
    next(first), next(second)
    with pytest.raises(MultiMixError, match="one epoch at a time"):
        next(first)
    loader.set_epoch(1)
    with pytest.raises(MultiMixError, match="open a second loader"):
        next(second)
    third, fresh = iter(loader), opened(backend=backend)
    fresh.set_epoch(1)
    assert all_same([next(third)], [next(iter(fresh))])
    assert len(list(third)) == len(loader) - 1
    next(iter(loader))
    assert next(third, None) is None, "one that was over stays over"


def test_a_new_iteration_after_a_broken_one_gives_the_right_batches(opened: Open, backend: str) -> None:
    loader, fresh = opened(backend=backend), opened(backend=backend)
    for taken in (0, 1, 3):
        iterator = iter(loader)
        for _ in range(taken):
            next(iterator)
    fresh.set_epoch(2)
    assert all_same(list(loader), list(fresh)), "an iterator that was never advanced is no epoch begun"


def test_a_closed_loader_opens_again(opened: Open, backend: str) -> None:
    loader = opened(backend=backend)
    with loader:
        expected = list(loader)
    loader.set_epoch(0)
    assert all_same(list(loader), expected)


def test_an_error_in_the_loop_leaves_a_loader_that_can_go_on(opened: Open, backend: str) -> None:
    loader, whole = opened(backend=backend), list(opened(backend=backend))
    with suppress(ZeroDivisionError):
        for step, _ in enumerate(loader):
            step // (step - 2)
    assert loader.state_dict()["steps"] == 3
    loader.set_epoch(0)
    assert all_same(list(loader), whole)


def test_batches_outlive_their_loader(opened: Open, backend: str) -> None:
    expected = list(opened(backend=backend))
    with opened(backend=backend) as loader:
        batches = list(loader)
    list(loader)
    loader.close()
    del loader
    gc.collect()
    assert all_same(batches, expected)


def test_an_error_of_the_readers_leaves_a_loader_that_can_go_on(own_shards: Path, opened: Open, backend: str) -> None:
    loader, whole = opened(own_shards, backend=backend), list(opened(own_shards, backend=backend))
    shard = sorted(own_shards.glob("*.tar"))[1]
    away = shard.rename(own_shards / "away")
    for _ in range(2):
        with pytest.raises(ShardError, match=f"{shard.name} : .* the shard must be readable; No such file"):
            list(loader)
    loader.close()
    away.rename(shard)
    loader.set_epoch(0)
    assert all_same(list(loader), whole)


def test_an_interrupt_in_mid_epoch_leaves_a_loader_that_can_go_on(
    opened: Open, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader, whole = opened(backend=backend), list(opened(backend=backend))
    executor = importlib.import_module(f"multimix_pipe.{'dali' if backend == 'dali' else 'native'}.executor")
    kind, name = (executor.DaliExecutor, "_outputs") if backend == "dali" else (executor.NativeExecutor, "_finish")
    real, calls = getattr(kind, name), 0

    def interrupted(self: object, *arguments: object) -> object:
        nonlocal calls
        calls += 1
        result = real(self, *arguments)
        if calls == 4:  # the result is taken, and nobody has noted it yet
            raise KeyboardInterrupt
        return result

    monkeypatch.setattr(kind, name, interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(loader)
    assert loader.state_dict()["steps"] == 3
    loader.set_epoch(0)
    assert all_same(list(loader), whole)


# Threads


def test_two_loaders_at_once_give_what_each_gives_alone(opened: Open, backend: str) -> None:
    settings: tuple[dict[str, object], ...] = ({"seed": 1}, {"seed": 2, "batch_size": 9})
    alone = [list(opened(backend=backend, **options)) for options in settings]
    together: list[list[Batch]] = [[], []]
    for pair in zip(*(opened(backend=backend, **options) for options in settings), strict=False):
        for batches, batch in zip(together, pair, strict=True):
            batches.append(batch)
    assert all_same(together[0][:12], alone[0][:12])
    assert all_same(together[1], alone[1])


def in_threads(*calls: Callable[[], object]) -> list[BaseException]:
    """Call each in a thread of its own, all at once; what they raised."""
    errors: list[BaseException] = []

    def run(call: Callable[[], object]) -> None:
        try:
            call()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(call,), daemon=True) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert not any(thread.is_alive() for thread in threads)
    return errors


def test_any_thread_may_use_a_loader(opened: Open, backend: str) -> None:
    loader, whole = opened(backend=backend), list(opened(backend=backend))
    first = next(iter(loader))
    loader.set_epoch(0)
    got: list[Batch] = []
    assert not in_threads(lambda: got.extend(loader))
    assert not in_threads(loader.close)
    loader.set_epoch(0)
    assert all_same(got, whole)
    assert all_same([first, next(iter(loader))], [whole[0]] * 2)


def test_a_thread_that_asks_for_states_never_sees_them_go_back(opened: Open) -> None:
    loader = opened(backend="torch", batch_size=50, transform=TINY)
    seen, over = [], threading.Event()

    def ask() -> None:
        while not over.is_set():
            state = loader.state_dict()
            seen.append((state["epoch"], state["samples"]))

    thread, before = threading.Thread(target=ask), sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        thread.start()
        for _ in range(100):
            for _ in loader:
                pass
    finally:
        sys.setswitchinterval(before)
        over.set()
        thread.join()
    assert seen == sorted(seen)
    assert len(set(seen)) > 20


def test_a_signal_handler_that_closes_a_loader_in_its_own_next_is_told_so(
    opened: Open, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = opened(backend=backend)
    expected = list(loader)
    loader.set_epoch(0)
    before = signal.signal(signal.SIGTERM, lambda number, frame: loader.close())
    try:
        with monkeypatch.context() as patch:
            patch.setattr(
                "multimix_pipe.loader.loader.mix_targets", lambda *arguments: signal.raise_signal(signal.SIGTERM)
            )
            with pytest.raises(MultiMixError, match="while the same thread waits for its next batch"):
                next(iter(loader))
    finally:
        signal.signal(signal.SIGTERM, before)
    loader.set_epoch(0)
    assert all_same(list(loader), expected)


def test_threads_that_share_an_iteration_get_each_batch_once(opened: Open, backend: str) -> None:
    loader, whole = opened(backend=backend, batch_size=3), list(opened(backend=backend, batch_size=3))
    iterator = iter(loader)
    got: list[Batch] = []
    assert not in_threads(*[lambda: got.extend(iterator)] * 4)
    got.sort(key=lambda batch: batch.plan.start)
    assert all_same(got, whole)


def test_of_threads_that_each_iterate_the_last_goes_on(opened: Open, backend: str) -> None:
    loader = opened(backend=backend, batch_size=3)
    finished: list[list[Batch]] = []
    errors = in_threads(*[lambda: finished.append(list(loader))] * 3)
    assert all(type(error) is MultiMixError and "one epoch at a time" in str(error) for error in errors)
    assert len(finished) + len(errors) == 3
    assert finished
    assert {len(batches) for batches in finished} == {len(loader)}
    loader.set_epoch(0)
    assert all_same(list(loader), list(opened(backend=backend, batch_size=3)))


def test_closing_in_another_thread_ends_an_iteration_with_an_error(opened: Open, backend: str) -> None:
    loader, begun = opened(backend=backend, batch_size=2), threading.Event()

    def consume() -> None:
        while True:
            for _ in iterator:
                begun.set()

    def close() -> None:
        begun.wait(120)
        loader.close()

    iterator = iter(loader)
    (error,) = in_threads(consume, close)
    assert "ended by the first batch of a newer one, or by set_epoch, load_state_dict or close" in str(error)


# Nothing grows, nothing stays


def open_files() -> Counter[str]:
    found = Counter[str]()
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            found[os.readlink(descriptor)] += 1
        except OSError:
            continue
    return Counter({name: count for name, count in found.items() if name.endswith(".tar")})


@needs_proc
@pytest.mark.parametrize("how", ["closed", "left", "dropped"])
def test_nothing_stays_behind(opened: Open, shards: Path, backend: str, how: str) -> None:
    gc.collect()
    threads, files = set(threading.enumerate()), open_files()
    loader = open_loader(
        shards, batch_size=8, num_classes=CLASSES, transform=TINY, backend=backend, device="cpu", num_threads=2
    )  # type: ignore[arg-type]
    iterator = iter(loader)
    next(iterator)
    assert open_files() > files
    if how == "closed":
        loader.close()
        loader.close()
    elif how == "left":
        with loader:
            next(iterator)
    else:
        del loader, iterator
    for thread in set(threading.enumerate()) - threads:
        thread.join(timeout=60)
    assert set(threading.enumerate()) <= threads
    assert open_files() == files


@dataclass(frozen=True)
class Held:
    """What this process holds, after garbage is collected."""

    threads: int
    files: int
    objects: int
    megabytes: float

    @classmethod
    def now(cls) -> Held:
        gc.collect()
        resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        tasks, files = (len(os.listdir(f"/proc/self/{what}")) for what in ("task", "fd"))
        return cls(tasks, files, len(gc.get_objects()), resident / 2**20)


def megabytes(batches: int) -> float:
    """Of so many batches of `big`'s: far more than what the allocator's own moods make of it."""
    return batches * 8 * 5 * 3 * 64 * 64 * 4 / 2**20


def big(shards: Path, backend: str) -> Loader:
    """Two steps an epoch, of batches of 2 MB."""
    return open_loader(
        shards, batch_size=8, num_classes=CLASSES, transform=TrainTransform(size=64), backend=backend, device="cpu",
        num_threads=2, last_batch="drop", samples=[f"420-{number:03d}" for number in range(0, 90, 9)] + SIXTEEN,
    )  # type: ignore[arg-type]  # fmt: skip


SIXTEEN = [f"444-{number:03d}" for number in range(1, 50, 9)]


@needs_proc
def test_two_hundred_epochs_hold_no_more_than_thirty(shards: Path, backend: str) -> None:
    with big(shards, backend) as loader:
        held = []
        for count in (30, 170):
            for _ in range(count):
                assert len(list(map(id, loader))) == 2
            held.append(Held.now())
    after_thirty, after_all = held
    assert after_all.threads <= after_thirty.threads + 16, "pools start threads as they need them"
    assert after_all.files <= after_thirty.files, "a shard is opened once"
    assert after_all.objects < after_thirty.objects + 170
    assert after_all.megabytes < after_thirty.megabytes + megabytes(20)


@needs_proc
@pytest.mark.parametrize("how", ["closed", "dropped"])
def test_fifty_loaders_one_after_the_other_leave_nothing(shards: Path, backend: str, how: str) -> None:
    def open_and_end() -> None:
        loader = big(shards, backend)
        next(iter(loader))
        if how == "closed":
            loader.close()

    def settled(threads: float = float("inf")) -> Held:
        deadline = time.monotonic() + 60  # threads of a dropped loader end by themselves, in a moment
        while time.monotonic() < deadline:
            own = [thread for thread in threading.enumerate() if thread.name.startswith("multimix-")]
            if not own and (now := Held.now()).threads <= threads:
                return now
            time.sleep(0.02)
        return Held.now()

    for _ in range(10):
        open_and_end()
    after_ten = settled()
    for _ in range(50):
        open_and_end()
    after_all = settled(after_ten.threads)
    assert after_all.threads <= after_ten.threads
    assert after_all.files <= after_ten.files
    assert after_all.objects < after_ten.objects + 50 * 20
    assert after_all.megabytes < after_ten.megabytes + megabytes(40)


# Other processes, and the end of this one


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_gets_an_error_and_harms_nobody(opened: Open, backend: str) -> None:
    loader = opened(backend=backend)
    expected = list(loader)
    loader.set_epoch(0)
    iterator = iter(loader)
    first = next(iterator)
    attempts = (lambda: next(iterator), lambda: iter(loader), lambda: loader.set_epoch(2))
    for attempt in attempts:
        assert in_a_child(attempt) == "ConfigError: a loader must be used in the process that opened it"
    assert in_a_child(loader.close) == "done"
    assert all_same([first, *iterator], expected)
    fresh = iter(loader)  # not begun, while the threads that it needs are there
    assert in_a_child(lambda: next(fresh)) == "ConfigError: a loader must be used in the process that opened it"
    assert next(fresh).plan.epoch == 1


def in_a_child(call: Callable[[], object]) -> str:
    """What `call` raises in a forked child, up to the bracket; "done" if nothing."""
    read, write = os.pipe()
    with open(read) as answers:
        child = os.fork()
        if not child:
            signal.alarm(120)  # a call that hangs ends without an answer
            try:
                call()
                answer = "done"
            except BaseException as error:
                answer = f"{type(error).__name__}: {error}".split(" (")[0]
            os.write(write, answer.encode())
            os._exit(0)
        os.close(write)
        answer = answers.read()
    os.waitpid(child, 0)
    return answer


def test_a_loader_cannot_be_sent_to_another_process(opened: Open) -> None:
    with pytest.raises(ConfigError, match="cannot be copied or sent to another process"):
        opened(backend="torch").__reduce_ex__(4)


PRELUDE = """
import os, signal, sys, threading, time
import multiprocessing
import torch
import multimix_pipe

signal.alarm(300)  # one that hangs before it has said that it is ready

def opened(**options):
    settings = dict(batch_size=8, num_classes=7, transform=multimix_pipe.TrainTransform(size=24), device="cpu", num_threads=2)
    return multimix_pipe.open_loader(sys.argv[1], backend=sys.argv[2], **{**settings, **options})
"""


@dataclass
class Script:
    """A Python process with PRELUDE and a script, warnings as errors."""

    folder: Path
    arguments: tuple[str, ...]

    def start(self, text: str, *options: str) -> subprocess.Popen[str]:
        path = self.folder / "script.py"
        path.write_text(PRELUDE + text)
        # that a process with threads is forked is what some of these scripts are about
        warnings = ["-W", "error", "-W", "ignore:This process:DeprecationWarning"]
        return start([sys.executable, *warnings, *options, str(path), *self.arguments], start_new_session=True)

    def run(self, text: str) -> tuple[int, str, str]:
        """Exit status, stdout and stderr."""
        return end_of(self.start(text))


def end_of(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of a process that ends by itself."""
    try:
        out, errors = process.communicate(timeout=240)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        pytest.fail(f"it hangs; stderr: {process.communicate()[1]}")
    return process.returncode, out, errors


@pytest.fixture
def script(shards: Path, backend: str, tmp_path: Path) -> Script:
    open_index(shards, progress=False)  # the first opening shows a progress bar
    return Script(tmp_path, (str(shards), backend))


def test_a_script_may_end_with_loaders_open(script: Script) -> None:
    text = """
idle, begun, through, dropped = opened(), opened(), opened(), opened()
iterator = iter(begun)
next(iterator)
for batch in through: pass
next(iter(dropped))
del dropped
"""
    assert script.run(text) == (0, "", "")


def assert_told_of_an_error(script: Script, text: str, printed: str) -> None:
    """That it prints so much and ends with the traceback of its own ValueError, and with that alone."""
    status, out, errors = script.run(text)
    assert (status, out) == (1, printed)
    assert errors.startswith("Traceback")
    assert errors.count("Traceback") == 1
    assert errors.endswith("\nValueError: mine\n")


def test_a_script_that_ends_with_an_error_says_that_alone(script: Script) -> None:
    text = """
iterator = iter(opened(prefetch=10))
for batch in iterator:
    raise ValueError("mine")
"""
    assert_told_of_an_error(script, text, "")


@pytest.mark.parametrize("backend", ["torch"])  # DALI decodes ahead in threads of its own
def test_a_script_that_ends_with_an_error_does_not_decode_what_was_asked_for(script: Script) -> None:
    text = """
import atexit
from multimix_pipe.native.decode import Decoder

decode, decoded = Decoder.decode, []

def slow(*sample):
    time.sleep(0.2)
    decoded.append(1)
    return decode(*sample)

Decoder.decode = slow
iterator = iter(opened(prefetch=10))
for batch in iterator:  # 8 images are decoded, and 80 are asked for
    atexit.register(lambda: print("at once" if len(decoded) < 70 else f"late: {len(decoded)}"))
    raise ValueError("mine")
"""
    assert_told_of_an_error(script, text, "at once\n")


def test_a_script_may_end_while_a_daemon_thread_iterates(script: Script) -> None:
    # PyTorch aborts a process that ends a daemon thread within one of its operations
    text = """
def work():
    loader, values = opened(), torch.rand(300_000)
    while True:
        for batch in loader:
            begun.set()
            values.sort()

begun = threading.Event()
threading.Thread(target=work, daemon=True).start()
begun.wait()
time.sleep(0.1)
"""
    assert script.run(text) == (0, "", "")


def test_daemon_threads_that_do_something_else_hold_up_the_exit_once_not_each(monkeypatch: pytest.MonkeyPatch) -> None:
    done = threading.Event()
    threads = [threading.Thread(target=done.wait, daemon=True) for _ in range(12)]
    for thread in threads:
        thread.start()
    monkeypatch.setattr(epoch, "_alive", set())
    monkeypatch.setattr(epoch, "_exiting", threading.Event())
    monkeypatch.setattr(epoch, "_parked", {thread: threading.Event() for thread in threads})
    began = time.monotonic()
    epoch._close_all()
    assert time.monotonic() - began < 4
    done.set()


def test_a_thread_that_iterates_when_the_main_thread_has_ended_is_told_so(script: Script) -> None:
    text = """
def work():
    try:
        while True:
            for batch in loader: begun.set()
    except multimix_pipe.MultiMixError as error:
        print(error)

loader, begun = opened(), threading.Event()
threading.Thread(target=work).start()
begun.wait()
"""
    status, out, errors = script.run(text)
    assert (status, errors) == (0, "")
    assert out.endswith("Join this thread in the main thread\n")


def test_a_forked_child_may_end_as_any_process_and_open_its_own_loader(script: Script) -> None:
    text = """
import multimix_pipe.loader
loader = opened()
iterator = iter(loader)
next(iterator)
sys.stdout.flush()
child = os.fork()
if not child:
    sys.exit(len(list(opened())))

def touch(loader):
    try:
        next(iter(loader))
    except multimix_pipe.ConfigError as error:
        print("refused", flush=True)
    loader.close()

print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
process = multiprocessing.get_context("fork").Process(target=touch, args=(loader,))
process.start()
process.join()
print(process.exitcode, len(list(iterator)))
"""
    assert script.run(text) == (0, "13\nrefused\n0 12\n", "")


def test_a_spawned_child_opens_its_own_loader(script: Script) -> None:
    text = """
def work():
    print(len(list(opened())))

if __name__ == "__main__":
    loader = opened()
    iterator = iter(loader)
    next(iterator)
    process = multiprocessing.get_context("spawn").Process(target=work)
    process.start()
    process.join()
    print(process.exitcode, len(list(iterator)))
"""
    assert script.run(text) == (0, "13\n0 12\n", "")


# Ctrl-C


def interrupted(process: subprocess.Popen[str], after: float = 0.0) -> None:
    """Send SIGINT, as a terminal does to all processes of a command, when it has printed a line."""
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    time.sleep(after)
    os.killpg(process.pid, signal.SIGINT)


def assert_interrupted(process: subprocess.Popen[str], said: str = "") -> None:
    """That it ended with the traceback of a KeyboardInterrupt; `said`, a pattern, may stand before that."""
    status, out, errors = end_of(process)
    # 1: code that a thread compiled meanwhile (an import does) makes CPython forget how to end
    assert status in (-signal.SIGINT, 1)
    assert out == ""
    before, _, trace = errors.partition("Traceback (most recent call last):\n")
    assert re.fullmatch(said, before)
    # it may come while an AttributeError of pathlib's, say, is handled: then it has two parts
    assert "Exception ignored" not in trace
    assert "Exception in thread" not in trace
    assert trace.endswith("\nKeyboardInterrupt\n")


def test_ctrl_c_ends_a_script_that_waits_for_a_batch(script: Script) -> None:
    text = """
loader = opened(batch_size=4000, transform=multimix_pipe.TrainTransform(size=64))
next(iter(opened()))
print("ready", flush=True)
while True:
    for batch in loader: pass
"""
    process = script.start(text)
    interrupted(process, 0.2)
    assert_interrupted(process, r"an epoch has a single step.*\n")


def test_ctrl_c_ends_a_script_in_the_body_of_its_loop(script: Script) -> None:
    text = """
for batch in opened():
    print("ready", flush=True)
    time.sleep(1000)
"""
    process = script.start(text)
    interrupted(process)
    assert_interrupted(process)


def test_ctrl_c_while_shards_are_opened_leaves_them_usable(own_shards: Path, tmp_path: Path, backend: str) -> None:
    text = """
from pathlib import Path
kept = [opened()]
next(iter(kept[0]))
try:
    while True:
        for index in Path(sys.argv[1]).glob("*.index"):
            index.unlink()
        if len(kept) == 3:
            print("ready", flush=True)
        kept.append(opened())
except KeyboardInterrupt:
    assert len(list(opened())) == 13
    assert not [path for path in Path(sys.argv[1]).iterdir() if "tmp" in path.name]
    raise
"""
    # it may come when a file is open and `with` does not have it yet: then Python closes it with a warning
    process = Script(tmp_path, (str(own_shards), backend)).start(text, "-W", "ignore:unclosed file:ResourceWarning")
    interrupted(process, 0.05)
    assert_interrupted(process, r"(indexing: .*\n)*")


# Executors without a loader


def test_an_error_that_is_not_the_packages_waits_for_its_step_too(
    opened: Open, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = opened(backend=backend, prefetch=3)
    read, wanted = ShardReader.read_rows, {int(sample) for sample in loader.context.plan.step(0, 32, 40).sample}

    def out_of_memory(self: ShardReader, sample_ids: np.ndarray, *rest: Any) -> np.ndarray:
        if wanted & set(sample_ids.tolist()):
            raise MemoryError("planted")
        return read(self, sample_ids, *rest)

    monkeypatch.setattr(ShardReader, "read_rows", out_of_memory)
    batches = iter(loader)
    assert len([next(batches) for _ in range(4)]) == 4
    with pytest.raises(ConfigError, match="planted"):
        next(batches)


def test_an_executor_can_be_closed_while_its_iteration_is_suspended(opened: Open, backend: str) -> None:
    context = opened(backend=backend, prefetch=8).context
    executor = make_executor(context)
    running = executor.run([context.plan.step(0, first, first + 8) for first in range(0, 96, 8)])
    next(running)
    executor.close()
    running.close()
