"""Files and folders are whole or absent."""

import hashlib
import os
import stat

import pytest

from craft.core.errors import CheckpointError, ConfigError
from craft.core.files import (
    atomic_directory,
    atomic_write_bytes,
    atomic_write_text,
    check_writable,
    clear_leftovers,
    read_json,
    sha256_file,
    write_json,
)


def test_write_makes_folders_replaces_and_leaves_nothing_behind(tmp_path):
    path = tmp_path / "a" / "b.txt"
    atomic_write_text(path, "ä one")
    atomic_write_text(path, "two")
    assert path.read_text() == "two"
    assert [p.name for p in path.parent.iterdir()] == ["b.txt"]
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask


def test_places_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    for place in ("file", "new", "a/b/new", tmp_path / "c" / "new"):
        check_writable(place)
    assert [place.name for place in tmp_path.iterdir()] == ["file"]
    for place, why in ((tmp_path, "is a folder"), ("file/new", "is a file"), ("file/a/new", "is a file")):
        with pytest.raises(ConfigError, match=why):
            check_writable(place)
    monkeypatch.setattr(os, "access", lambda *_: False)  # for root every folder is writable
    with pytest.raises(ConfigError, match="not allowed"):
        check_writable("a/new")


def test_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.bin"
    atomic_write_bytes(path, b"old")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(ConfigError, match="No space left"):
        atomic_write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.bin"]


def test_write_under_a_file_is_the_users_error(tmp_path):
    (tmp_path / "f").write_text("")
    with pytest.raises(ConfigError, match="cannot write"):
        atomic_write_text(tmp_path / "f" / "g", "x")
    with pytest.raises(ConfigError, match="is a file"), atomic_directory(tmp_path / "f"):
        pass


def test_json_round_trip_keeps_key_order(tmp_path):
    path = tmp_path / "x.json"
    write_json(path, {"b": 1, "a": [1.5, None, "τ"]})
    assert path.read_text().endswith("}\n")
    assert list(read_json(path)) == ["b", "a"]
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"loss": float("nan")})


def test_bad_json_is_named_with_its_line(tmp_path):
    path = tmp_path / "x.json"
    with pytest.raises(CheckpointError, match="does not exist"):
        read_json(path)
    path.write_text('{\n"a": 1,,\n}')
    with pytest.raises(CheckpointError, match=r"x\.json, line 2"):
        read_json(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CheckpointError, match="UTF-8"):
        read_json(path)


def test_directory_appears_whole_or_not_at_all(tmp_path):
    target = tmp_path / "run"
    with atomic_directory(target) as folder:
        (folder / "one").write_text("1")
        assert not target.exists()
    with pytest.raises(RuntimeError, match="stop"), atomic_directory(target) as folder:
        (folder / "two").write_text("2")
        raise RuntimeError("stop")
    assert [p.name for p in target.iterdir()] == ["one"]
    with atomic_directory(target) as folder:
        (folder / "three").write_text("3")
    assert [p.name for p in target.iterdir()] == ["three"]
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_file_hash(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256_file(tmp_path / "a") == hashlib.sha256(b"abc").hexdigest()
    with pytest.raises(CheckpointError, match="cannot read"):
        sha256_file(tmp_path / "b")


def test_a_folder_survives_an_interruption_between_the_two_renames(tmp_path, monkeypatch):
    target = tmp_path / "run"
    with atomic_directory(target) as folder:
        (folder / "one").write_text("1")
    replace = os.replace

    def interrupted(source, place):
        replace(source, place)
        monkeypatch.setattr(os, "replace", replace)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), atomic_directory(target) as folder:
        (folder / "two").write_text("2")
        monkeypatch.setattr(os, "replace", interrupted)
    assert [p.name for p in target.iterdir()] == ["one"]
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_a_link_to_a_folder_stays_a_link(tmp_path):
    real, link = tmp_path / "disk" / "real", tmp_path / "link"
    real.mkdir(parents=True)
    (real / "old").write_text("1")
    link.symlink_to(real)
    with atomic_directory(link) as folder:
        (folder / "new").write_text("2")
    assert link.is_symlink() and [p.name for p in real.iterdir()] == ["new"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["disk", "link"]
    assert [p.name for p in real.parent.iterdir()] == ["real"]


def test_a_folder_moved_aside_by_a_killed_process_comes_back(tmp_path):
    """Killed between the two renames of a replacement, and behind them."""
    for name in ("lost", "kept"):
        aside = tmp_path / f".{name}.123-0123abcd.old"
        aside.mkdir()
        (aside / "a").write_text("old")
    (tmp_path / ".lost.123-0123abcd.tmp").mkdir()
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "a").write_text("new")
    clear_leftovers(tmp_path)
    assert sorted(place.name for place in tmp_path.iterdir()) == ["kept", "lost"]
    assert [(tmp_path / name / "a").read_text() for name in ("lost", "kept")] == ["old", "new"]
