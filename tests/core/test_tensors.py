"""Tensors on disk: equal content gives equal bytes, damage is named, and hashes see what counts."""

import os
import subprocess
import sys

import pytest
import torch

from craft.core.errors import CheckpointError
from craft.core.files import sha256_file
from craft.core.tensors import hash_tensors, load_tensors, save_tensors


def test_tensors_round_trip_and_bytes_depend_on_content_alone(tmp_path):
    whole = torch.arange(12.0).reshape(3, 4)
    tensors = {"w": whole.T, "row": whole[1], "n": torch.tensor(3), "h": torch.ones(2, dtype=torch.bfloat16)}
    metadata = {"format": "pt", "b": "2", "a": "1"}
    save_tensors(tmp_path / "x", tensors, metadata)
    save_tensors(tmp_path / "y", dict(reversed(tensors.items())), dict(reversed(metadata.items())))
    assert (tmp_path / "x").read_bytes() == (tmp_path / "y").read_bytes()
    loaded = load_tensors(tmp_path / "x")
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        torch.testing.assert_close(loaded[name], tensor, rtol=0, atol=0)
    save_tensors(tmp_path / "z", loaded, metadata)  # saved, loaded, saved: the same bytes
    assert (tmp_path / "z").read_bytes() == (tmp_path / "x").read_bytes()


def test_metadata_is_readable_by_the_library_and_stable_between_processes(tmp_path):
    from safetensors import safe_open

    code = (
        "import sys, torch; from craft.core.tensors import save_tensors; "
        "save_tensors(sys.argv[1], {'a': torch.ones(3)}, {str(i): 'ü' for i in range(9)})"
    )
    names = [str(tmp_path / name) for name in ("1", "2")]
    for name, seed in zip(names, ("1", "2"), strict=True):
        subprocess.run(
            [sys.executable, "-c", code, name], check=True, env={**os.environ, "PYTHONHASHSEED": seed}
        )
    assert sha256_file(names[0]) == sha256_file(names[1])
    with safe_open(names[0], "pt") as file:
        assert file.metadata() == {str(i): "ü" for i in range(9)}
        assert torch.equal(file.get_tensor("a"), torch.ones(3))


def test_missing_and_damaged_tensor_files_are_named(tmp_path):
    path = tmp_path / "model.safetensors"
    with pytest.raises(CheckpointError, match=r"model\.safetensors does not exist"):
        load_tensors(path)
    save_tensors(path, {"a": torch.ones(100)})
    for damaged in (path.read_bytes()[:-40], path.read_bytes()[:5], b"", b"\x80\x02 pickle?" * 9):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged"):
            load_tensors(path)


def test_hash_changes_with_name_value_shape_and_dtype_only():
    base = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(1)}
    reference = hash_tensors(base)
    assert hash_tensors(dict(reversed(base.items()))) == reference
    assert hash_tensors({**base, "a": base["a"].T.contiguous().T}) == reference  # strides do not count
    changed = [
        {**base, "a": base["a"] + 1},
        {**base, "a": base["a"].reshape(3, 2)},
        {**base, "a": base["a"].double()},
        {"c": base["a"], "b": base["b"]},
        {"a": base["a"]},
    ]
    assert len({reference, *map(hash_tensors, changed)}) == 6
    assert hash_tensors({"e": torch.empty(0, 3)}) != hash_tensors({"e": torch.empty(3, 0)})
    one = torch.ones(2, dtype=torch.bfloat16)  # which numpy does not know
    assert hash_tensors({"h": one}) == hash_tensors({"h": one.clone()}) != hash_tensors({"h": one.half()})
