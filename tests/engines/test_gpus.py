"""Engines that load onto one GPU take turns."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from engines import gpus
from engines.exl2 import loading


@pytest.fixture(autouse=True)
def _locks_of_this_test(tmp_path, monkeypatch):
    monkeypatch.setattr(gpus.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(gpus, "ASK_AGAIN_S", 0.001)


def test_one_after_the_other_on_the_same_gpu():
    inside, most, done = 0, 0, 0
    lock = threading.Lock()

    def load(numbers):
        nonlocal inside, most, done
        with gpus.turn(numbers):
            with lock:
                inside += 1
                most = max(most, inside)
            time.sleep(0.002)
            with lock:
                inside -= 1
                done += 1

    threads = [threading.Thread(target=load, args=(one,)) for one in ([0], [1, 0], [0, 1], [0, 2])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert (done, most) == (4, 1)


def test_another_gpu_is_not_waited_for():
    with gpus.turn([0]), gpus.turn([1, 2]):
        pass


def test_a_turn_ends_with_an_error_too():
    with pytest.raises(ValueError, match="broken"), gpus.turn([0]):
        raise ValueError("broken")
    with gpus.turn([0]):
        pass


def test_who_dies_gives_its_turn_back(tmp_path):
    program = (
        "import sys, time, tempfile; tempfile.tempdir = sys.argv[1]\n"
        "from engines import gpus\n"
        "with gpus.turn([0]):\n"
        "    print('loading', flush=True)\n"
        "    time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE
    ) as other:
        assert other.stdout.readline() == b"loading\n"
        threading.Timer(0.02, other.kill).start()
        with gpus.turn([0]):
            assert other.wait(10) != 0


def test_without_a_lock_it_goes_on_and_says_so(tmp_path, caplog):
    Path(tmp_path, f"nenya-{os.getuid()}-gpu-3.lock").symlink_to("/nowhere")
    with gpus.turn([3]):
        pass
    assert "may load onto GPU 3 at once" in caplog.text


def test_room_is_asked_and_the_model_loaded_in_one_turn(monkeypatch):
    class NoMemory(Exception):  # noqa: N818 - stands for torch.OutOfMemoryError
        pass

    cuda = SimpleNamespace(is_available=lambda: True, get_device_name=lambda _: "GPU")
    torch = SimpleNamespace(cuda=cuda, OutOfMemoryError=NoMemory)
    monkeypatch.setattr(loading.importlib, "import_module", lambda name: torch)
    monkeypatch.setattr(loading, "prepare_environment", lambda _: None)
    free, seen = [10], []

    def room(*_):
        seen.append(free[0])
        time.sleep(0.002)
        return free[0]

    def make(name):
        time.sleep(0.002)
        free[0] -= 6
        return name

    monkeypatch.setattr(loading, "room", room)
    model = SimpleNamespace(spec=SimpleNamespace(gpus=[0]))
    threads = [
        threading.Thread(target=loading.load_with, args=("lib", model, make)) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert seen == [10, 4]
