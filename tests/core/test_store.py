"""Records and logs: what decided them, interrupted writes, several processes, damaged files."""

import json
import os
import subprocess
import sys

import pytest

from craft.core.errors import CheckpointError, ConfigError, DataError
from craft.core.store import JsonLog, RecordStore


@pytest.fixture(params=["folder", "memory"])
def store(request, tmp_path):
    return RecordStore(tmp_path / "cells" if request.param == "folder" else None)


def test_a_record_counts_for_its_identity_alone(store):
    identity = {"weights": "a", "seeds": (0, 1)}
    assert store.get("x", identity) is None
    store.put("x", identity, {"result": 1})
    assert store.get("x", identity) == {"result": 1, "key": {"weights": "a", "seeds": [0, 1]}}
    assert store.get("x", {**identity, "weights": "b"}) is None and store.get("y", identity) is None
    store.put("x", {"weights": "b"}, {"result": 2})
    assert store.get("x", identity) is None and store.read("x")["result"] == 2


def test_records_of_another_process_and_under_another_name_are_read(tmp_path):
    (tmp_path / "x.json").write_text('{"asked": {"seeds": [0]}, "accuracy": 0.5}')
    store = RecordStore(tmp_path, identity_name="asked")
    assert store.get("x", {"seeds": (0,)})["accuracy"] == 0.5
    assert RecordStore(tmp_path).get("x", {"seeds": (0,)}) is None


def test_an_interrupted_write_leaves_the_earlier_record(tmp_path, monkeypatch):
    store = RecordStore(tmp_path)
    store.put("x", 1, {"result": 1})

    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", stopped)
    with pytest.raises(KeyboardInterrupt):
        store.put("x", 2, {"result": 2})
    assert store.get("x", 1)["result"] == 1 and [path.name for path in tmp_path.iterdir()] == ["x.json"]


def test_two_processes_write_different_records(tmp_path):
    script = """
import sys
from pathlib import Path
from craft.core.store import RecordStore
store = RecordStore(Path(sys.argv[1]))
for number in range(int(sys.argv[2]), 40, 2):
    store.put(f"record-{number}", number, {"result": [number] * 1000})
"""
    words = [sys.executable, "-c", script, str(tmp_path)]
    processes = [subprocess.Popen([*words, str(first)]) for first in (0, 1)]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    store = RecordStore(tmp_path)
    assert all(store.get(f"record-{n}", n)["result"] == [n] * 1000 for n in range(40))


@pytest.mark.parametrize("content", ['{"key": 1, "res', "[1]", "\xff"])
def test_a_damaged_record_is_named(tmp_path, content):
    (tmp_path / "x.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(CheckpointError, match=r"x\.json"):
        RecordStore(tmp_path).get("x", 1)


def numbers(path):
    return JsonLog(path, lambda row: (row["key"], int(row["n"])), lambda line: DataError(f"line {line}"))


def test_the_last_row_of_a_key_counts(tmp_path):
    path = tmp_path / "folder" / "log.jsonl"
    log = numbers(path)
    log.append([])
    assert path.read_bytes() == b""
    log.append([{"key": "a", "n": 1}, {"key": "b", "n": 2}])
    log.append([{"key": "a", "n": 3}])
    assert log.values == numbers(path).values == {"a": 3, "b": 2}
    assert len(path.read_text().splitlines()) == 3


def test_a_torn_row_is_removed_and_a_whole_one_gets_its_line_end(tmp_path):
    path = tmp_path / "log.jsonl"
    whole = '{"key": "a", "n": 1}\n{"key": "b\u2028", "n": 2}\n'
    for torn in ("{", '{"key": "c", ', '{"key": "c", "n": ', "\0\0"):
        path.write_text(whole + torn)
        assert numbers(path).values == {"a": 1, "b\u2028": 2} and path.read_text() == whole
    for torn in ("{", '{"key'):
        path.write_text(torn)
        assert numbers(path).values == {} and path.read_text() == ""
    path.write_text(whole.rstrip("\n"))
    log = numbers(path)
    log.append([{"key": "c", "n": 3}])
    assert path.read_text() == whole + '{"key": "c", "n": 3}\n' and log.values == numbers(path).values


@pytest.mark.parametrize(
    "content, line",
    [
        ('{"key": "a", "n": 1}\nnonsense\n{"key": "b", "n": 2}\n', 2),
        ('{"key": "a", "n": 1}\n\n', 2),
        ('{"key": "a", "n": "many"}\n', 1),
        ("[1]\n", 1),
        ('{"theirs": 1}', 1),
        ("theirs", 1),
        ("their notes\nof two lines", 1),
    ],
)
def test_a_damaged_line_is_named_and_nothing_is_removed(tmp_path, content, line):
    path = tmp_path / "log.jsonl"
    path.write_text(content)
    with pytest.raises(DataError, match=f"line {line}$"):
        numbers(path)
    assert path.read_text() == content


def test_what_cannot_be_read_or_written_is_named(tmp_path):
    (tmp_path / "log.jsonl").mkdir()
    with pytest.raises(CheckpointError, match=r"cannot read .*log\.jsonl"):
        numbers(tmp_path / "log.jsonl")
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"cannot write .*log\.jsonl"):
        numbers(tmp_path / "file" / "log.jsonl").append([{"key": "a", "n": 1}])
    with pytest.raises(ValueError, match="not JSON compliant"):
        RecordStore(tmp_path).put("x", 1, {"result": json.loads("NaN")})
