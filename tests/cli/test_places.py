"""Where commands write: a place that is in use, or that cannot be written to, is said before any work."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from cli.conftest import FAST
from craft.core.files import LOCK
from craft.training.run_folder import RunFolder

fcntl = pytest.importorskip("fcntl", reason="needs the locks of a Unix system")

FOLDERS = {
    "adapt": "adapt nothing --data nowhere --out OUT",
    "adapt --resume": "adapt nothing --data nowhere --out OUT --resume",
    "adapt --overwrite": "adapt nothing --data nowhere --out OUT --overwrite",
    "baseline": "baseline projector-ft nothing --data nowhere --out OUT",
    "baseline as adapt": "baseline vision-ft-codebook nothing --data nowhere --out OUT",
    "align": "align nothing --data nowhere --out OUT",
    "demo": "demo --surrogate nothing --data nowhere --out OUT",
    "eval": "eval nothing --data nowhere --out OUT",
    "eval of several": "eval nothing --data nowhere elsewhere --out OUT",
    "transfer": "transfer --encoders nothing --backbones nothing --out OUT",
    "transfer --work": "transfer --encoders nothing --backbones nothing --work OUT",
    "data stats": "data stats nowhere --out OUT",
    "export": "export nothing --base nowhere --out OUT",
}
"""Commands that write to a folder, with a mistake that they would report a moment later."""

BESIDE = {
    "data prepare": "data prepare nowhere --out OUT",
    "data captions": "data captions nowhere --model m --out OUT",
    "data statements": "data statements nowhere --rules --out OUT",
    "data options": "data options nowhere --clip nothing --out OUT",
}
"""Commands whose file or folder is replaced as a whole, so that its lock is next to it."""

FILES = {"report": "report nowhere --out OUT", "prior": "prior nowhere --out OUT"}
"""Commands that write one file, at once."""


def words_of(command, out):
    return [str(out) if word == "OUT" else word for word in command.split()]


@pytest.fixture
def taken():
    """Locks a file as another process on another machine does, until the test ends."""
    files = []

    def take(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        files.append(open(path, "w+"))  # noqa: SIM115
        fcntl.flock(files[-1], fcntl.LOCK_EX)
        files[-1].write("process 4711 on elsewhere\n")
        files[-1].flush()

    yield take
    for file in files:
        file.close()


@pytest.mark.parametrize("command", FOLDERS.values(), ids=FOLDERS)
def test_a_folder_in_use(craft, tmp_path, taken, command):
    out = tmp_path / "out"
    taken(out / LOCK)
    said = craft(*words_of(command, out)).complaint
    assert f"{out} is in use: process 4711 on elsewhere is writing to it" in said and "another folder" in said
    assert [path.name for path in out.iterdir()] == [LOCK]


@pytest.mark.parametrize("command", BESIDE.values(), ids=BESIDE)
def test_a_file_in_use(craft, tmp_path, taken, command):
    out = tmp_path / "out"
    taken(tmp_path / f".out{LOCK}")
    assert f"{out} is in use: process 4711" in craft(*words_of(command, out)).complaint
    assert not out.exists()


def test_the_judge_s_folder_in_use(craft, encoder, tmp_path, taken):
    out = tmp_path / "out"
    taken(out / LOCK)
    said = craft("judge", encoder[0], "--out", out, "--limit", "2").complaint
    assert f"{out} is in use: process 4711" in said


def test_a_demo_s_adaptation_in_use(craft, family, pictures, tmp_path, taken):
    taken(tmp_path / "out" / "run" / LOCK)
    models = ("--surrogate", family / "llama", "--other", family / "qwen2")
    said = craft("demo", *models, "--data", pictures, "--out", tmp_path / "out", "--resume").complaint
    assert f"{tmp_path / 'out' / 'run'} is in use" in said


@pytest.mark.parametrize("place", ["file", "file/below", "x" * 300, "/proc/taken", "file/a/b"])
@pytest.mark.parametrize("command", [*FOLDERS.values(), *BESIDE.values(), *FILES.values()])
def test_a_place_that_cannot_be_written_to(craft, tmp_path, monkeypatch, command, place):
    if place == "file" and command in [*FILES.values(), *list(BESIDE.values())[1:]]:
        place = "folder"
    if place.startswith("/proc") and command in FILES.values():
        return  # for root the system says so only when something is written
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    said = craft(*words_of(command, place)).complaint
    assert place in said and "nowhere" not in said and "nothing" not in said
    assert "choose another" in said.lower()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_a_folder_that_is_read_only(craft, family, pictures, tmp_path, monkeypatch):
    """For root every folder is writable, so that a system stands in that says otherwise."""
    monkeypatch.setattr(os, "access", lambda *_: False)
    monkeypatch.setattr("craft.recipes.opening.open_data", None)  # nothing is read
    said = craft("adapt", family / "llama", "--data", pictures, "--out", tmp_path / "run", *FAST).complaint
    assert "not allowed" in said and not (tmp_path / "run").exists()


def test_commands_that_only_read_do_not_lock(craft, encoder, family, pictures, taken):
    run = encoder[0]
    taken(run / LOCK)
    for words in (
        ("inspect", run),
        ("data", "check", pictures),
        ("eval", family / "qwen2", "--encoder", run, "--data", pictures, "--limit", "2", "--device", "cpu"),
        ("adapt", family / "llama", "--data", pictures, "--dry-run", *FAST),
    ):
        said = craft(*words)
        assert said.status == 0, said.err
    (run / LOCK).unlink()


def test_a_lock_file_of_a_killed_run_is_no_obstacle(craft, family, pictures, tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    (out / LOCK).write_text("process 4711 on elsewhere\n")
    words = ("adapt", family / "llama", "--data", pictures, "--max-steps", "1", *FAST)
    said = craft(*words, "--out", out)
    assert said.status == 0, said.err
    assert not (out / LOCK).exists()
    again = craft(*words, "--out", out, "--resume")
    assert again.status == 0 and "already finished" in again.err


def waiting(words, environment, steps, out):
    """A command as a process of its own, in the middle of its steps."""
    command = [sys.executable, "-m", "craft", *map(str, words), "--max-steps", str(steps), "--out", str(out)]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, env={**environment, "OMP_NUM_THREADS": "1"}, **streams)
    deadline, metrics = time.monotonic() + 120, out / "metrics.jsonl"
    while process.poll() is None and time.monotonic() < deadline:
        if metrics.is_file() and metrics.read_text().count("\n") >= 2:
            return process
        time.sleep(0.002)
    raise AssertionError(process.communicate())


def test_resuming_beside_a_live_run_and_after_its_death(craft, family, pictures, tmp_path, environment):
    out, words = tmp_path / "run", ("adapt", family / "llama", "--data", pictures, *FAST)
    words = (*words, "--set", "checkpoint_every=1")
    process = waiting(words, environment, 2000, out)
    for more in ((), ("--resume",), ("--overwrite",)):
        said = craft(*words, "--max-steps", "2000", "--out", out, *more).complaint
        assert f"in use: process {process.pid} on " in said
    process.send_signal(signal.SIGKILL)
    process.communicate()
    steps = [line["step"] for line in RunFolder(out).metrics()]
    assert steps == list(range(1, len(steps) + 1))
    assert (out / LOCK).exists()
    said = craft(*words, "--max-steps", "2000", "--out", out).complaint  # no lock, but a run
    assert "holds a run that is running" in said


@pytest.mark.parametrize("ignored", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["ssh", "nohup"])
def test_the_connection_is_lost(family, pictures, tmp_path, environment, ignored):
    """SIGHUP, twice as the system sends it, to a run whose terminal has closed; nohup's run goes on."""
    out, words = tmp_path / "run", ("adapt", family / "llama", "--data", pictures, *FAST)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)
    try:
        process = waiting(words, environment, 30 if ignored else 2000, out)
    finally:
        signal.signal(signal.SIGHUP, before)
    for _ in range(2):
        process.send_signal(signal.SIGHUP)
    said, complaint = process.communicate(timeout=120)
    record = json.loads((out / "run.json").read_text())
    if ignored:
        assert (process.returncode, record["status"]) == (0, "finished"), complaint
        return
    assert (process.returncode, record["status"], said) == (130, "interrupted", "")
    assert "--resume" in complaint.strip().splitlines()[-1]
    assert [path.name for path in (out / "checkpoints").iterdir()] == [f"step-{record['interrupted_at']:08d}"]


@pytest.mark.slow
def test_the_terminal_itself_is_gone(family, pictures, tmp_path, environment):
    pty = pytest.importorskip("pty", reason="needs the terminals of a Unix system")
    out, words = tmp_path / "run", ("adapt", family / "llama", "--data", pictures, *FAST)
    command = [sys.executable, "-m", "craft", *map(str, words), "--max-steps", "2000", "--out", str(out)]
    process, terminal = pty.fork()
    if process == 0:
        os.execve(sys.executable, command, {**environment, "OMP_NUM_THREADS": "1"})
    deadline, metrics = time.monotonic() + 120, out / "metrics.jsonl"
    while time.monotonic() < deadline:
        if metrics.is_file() and metrics.read_text().count("\n") >= 2:
            break
        time.sleep(0.002)
    os.close(terminal)
    _, status = os.waitpid(process, 0)
    assert os.waitstatus_to_exitcode(status) == 130
    assert json.loads((out / "run.json").read_text())["status"] == "interrupted"


LIMITED = """
import resource, sys
from craft.cli import main
import craft.recipes.adapt, craft.recipes.evaluate, craft.lessons.adapt  # what is loaded does not count
room = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize() + int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_AS, (room, room))
sys.exit(main(sys.argv[2:]))
"""


def within(mebibytes, *words, environment):
    """A command that may take so much more memory than its libraries do."""
    command = [sys.executable, "-c", LIMITED, str(mebibytes * 2**20), *map(str, words)]
    environment = {**environment, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=250)


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux, where a limit of memory holds")
@pytest.mark.parametrize(
    "words",
    [
        "adapt craft-tiny/llama --data apparel --out OUT --set batch_size=1024 --max-steps 2",
        pytest.param(
            "baseline projector-ft craft-tiny/llama --data apparel --out OUT --set batch_size=512",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "adapt craft-tiny/llama --data apparel --set batch_size=1024 --dry-run", marks=pytest.mark.slow
        ),
        pytest.param("eval craft-tiny/llama --data apparel --batch-size 2000", marks=pytest.mark.slow),
    ],
)
def test_too_little_memory_on_a_cpu(words, tmp_path, environment):
    words = [*words_of(words, tmp_path / "run"), "--device", "cpu"]
    said = within(400, *words, environment=environment)
    assert said.returncode == 2, said.stderr
    assert "Traceback" not in said.stderr and "a fault in CRAFT" not in said.stderr
    last = said.stderr.strip().splitlines()[-1]
    assert last.startswith("craft: memory does not suffice")
    assert all(word in last for word in ("micro-batch auto", "batch_size", "--batch-size", "--dry-run"))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux, where a limit of memory holds")
def test_what_auto_finds_lasts(tmp_path, environment):
    words = ["adapt", "craft-tiny/llama", "--data", "apparel", "--out", tmp_path / "run", "--device", "cpu"]
    words += ["--set", "batch_size=96", "--micro-batch", "auto", "--max-steps", "3"]
    said = within(600, *words, environment=environment)
    assert said.returncode == 0, said.stderr
    assert "do not fit into memory" in said.stderr
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "finished"
