"""Processes that a process started end with it."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

RUN = """\
import os, sys, time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from craft.core.processes import follow_parent
from craft.training.image_cache import decoders

if __name__ == "__main__":
    if sys.argv[1] == "decoders":
        pool = decoders(1)
    else:
        pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=follow_parent)
    print(pool.submit(os.getpid).result(), flush=True)
    if sys.argv[1] == "busy":
        pool.submit(time.sleep, 600)
    time.sleep(600)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
@pytest.mark.parametrize("kind", ["decoders", "idle", "busy"])
def test_nothing_is_left_of_a_run_that_was_killed(tmp_path, kind):
    script = tmp_path / "run.py"
    script.write_text(RUN)
    quiet = {
        "stdout": subprocess.PIPE,
        "stderr": subprocess.DEVNULL,
        "text": True,
    }  # what multiprocessing says
    with subprocess.Popen([sys.executable, script, kind], **quiet) as run:
        assert run.stdout is not None
        child = run.stdout.readline()
        assert _is_there(int(child))
        os.kill(run.pid, signal.SIGKILL)
    until = time.monotonic() + 60
    while _is_there(int(child)) and time.monotonic() < until:
        time.sleep(0.1)
    gone = not _is_there(int(child))
    if not gone:
        os.kill(int(child), signal.SIGKILL)
    assert gone


def _is_there(number: int) -> bool:
    try:
        return psutil.Process(number).status() != psutil.STATUS_ZOMBIE  # nobody may have asked for its status
    except psutil.NoSuchProcess:
        return False
