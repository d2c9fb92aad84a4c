"""A folder that a command writes to is locked for its life, and no longer."""

import errno
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from craft.core.errors import ConfigError
from craft.core.files import LOCK, is_leftover
from craft.core.lock import check_unlocked, locked

fcntl = pytest.importorskip("fcntl", reason="needs the locks of a Unix system")
SOURCE = Path(__file__).parents[2] / "src"
HOLD = """
import signal
import sys
from craft.core.lock import locked
for number in (signal.SIGINT, signal.SIGHUP):  # nohup and background jobs ignore them
    signal.signal(number, signal.SIG_DFL)
with locked(sys.argv[1], beside=sys.argv[2] == "beside"):
    print("held", flush=True)
    sys.stdin.read()
"""


class Holder:
    """Another process that holds the lock of a folder."""

    def __init__(self, folder, beside=""):
        command = [sys.executable, "-c", HOLD, str(folder), beside]
        environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
        streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(command, env=environment, **streams)
        assert self.process.stdout.readline() == "held\n"

    def end(self, number=None):
        if number is None:
            self.process.communicate()
        else:
            self.process.send_signal(number)
            self.process.wait()
            self.process.stdin.close()
            self.process.stdout.close()


@pytest.mark.parametrize("beside", ["", "beside"])
def test_another_process_is_named(tmp_path, beside):
    folder = tmp_path / "run"
    holder = Holder(folder, beside)
    who = f"process {holder.process.pid} on {socket.gethostname()}"
    for place in (folder, str(folder) + "/", tmp_path / "x" / ".." / "run"):
        refused = pytest.raises(ConfigError, match=f"in use: {who} .*choose another folder")
        with refused as error, locked(place, beside=bool(beside)):
            raise AssertionError("two have the lock")
        assert str(error.value).startswith(str(Path(place)))
    holder.end()
    with locked(folder, beside=bool(beside)):
        pass
    assert list(tmp_path.iterdir()) == []  # what the lock alone made is gone


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_killed_process_leaves_no_lock(tmp_path, number):
    folder = tmp_path / "run"
    holder = Holder(folder)
    with pytest.raises(ConfigError, match="in use"):
        check_unlocked(folder)
    holder.end(number)
    check_unlocked(folder)
    assert all(is_leftover(path) for path in folder.iterdir()) if folder.exists() else True
    with locked(folder):
        assert f"process {os.getpid()} " in (folder / LOCK).read_text()
    assert not (folder / LOCK).exists()


def test_links_lead_to_the_same_lock(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "link").symlink_to("run")
    holder = Holder(tmp_path / "run")
    with pytest.raises(ConfigError, match="in use"), locked(tmp_path / "link"):
        pass
    holder.end()


def test_one_thread_may_lock_twice_and_another_may_not(tmp_path):
    refused = []

    def other():
        try:
            with locked(tmp_path):
                pass
        except ConfigError as error:
            refused.append(str(error))

    with locked(tmp_path):
        with locked(tmp_path):
            check_unlocked(tmp_path)
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        assert (tmp_path / LOCK).exists()
    assert len(refused) == 1 and f"process {os.getpid()}" in refused[0]
    with locked(tmp_path), locked(None):
        pass


def test_an_error_inside_frees_the_lock_and_keeps_the_files(tmp_path):
    folder = tmp_path / "a" / "b"
    with pytest.raises(ZeroDivisionError), locked(folder):
        (folder / "result").touch()
        raise ZeroDivisionError
    assert [path.name for path in folder.iterdir()] == ["result"]
    with locked(folder):
        pass


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.EBADF])
def test_a_file_system_without_locks_is_said_and_used(tmp_path, number, monkeypatch, capsys):
    def none(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", none)
    with locked(tmp_path / "run"):
        assert (tmp_path / "run").is_dir()
    said = capsys.readouterr().err
    assert "cannot lock" in said and os.strerror(number) in said and "second command" in said


def test_a_system_without_locks(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("craft.core.lock.fcntl", None)
    with locked(tmp_path / "run"):
        pass
    assert "this system has none" in capsys.readouterr().err


def test_places_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    for place, why in (
        (tmp_path / "file", "file"),
        (tmp_path / "file" / "run", "is a file"),
        (tmp_path / ("x" * 300), "too long"),
        ("/proc/run", "cannot write /proc/run|not allowed"),
    ):
        with pytest.raises(ConfigError, match=why), locked(place):
            pass
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
