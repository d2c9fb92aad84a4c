"""Files that are either whole or absent, and safetensors whose bytes depend on their content alone."""

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from craft.core.errors import CheckpointError, ConfigError

PathLike = str | os.PathLike[str]


_LEFTOVER = re.compile(r"\.(.+)\.\d+-[0-9a-f]{8}\.(tmp|old)")


def _sibling(path: Path, suffix: str) -> Path:
    """An unused name beside `path` (ordinary permissions follow, which `tempfile` would not give)."""
    return path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.{suffix}")


def is_leftover(path: Path) -> bool:
    """Whether a file or folder is what a killed process left half written here."""
    return _LEFTOVER.fullmatch(path.name) is not None


def clear_leftovers(folder: Path) -> None:
    """Delete what a killed process left half written in `folder`; nobody else may be writing there.

    A folder that it had moved aside gets its name back if nothing has taken it.
    """
    for place in list(folder.iterdir()) if folder.is_dir() else ():
        found = _LEFTOVER.fullmatch(place.name)
        if found is None:
            continue
        name, kind = found.groups()
        if kind == "old" and not (folder / name).exists():
            os.replace(place, folder / name)
        else:
            shutil.rmtree(place) if place.is_dir() else place.unlink()


def user_path(path: PathLike) -> Path:
    """A path that a user wrote, with "~" as the home folder. (`Path.expanduser` raises a RuntimeError where
    there is no such user; here the path stays as it is, and nothing is there.)"""
    return Path(os.path.expanduser(path))


def check_writable(path: PathLike) -> None:
    """Refuse a place for a file before the work whose outcome goes there. Nothing is written.

    Raises:
        ConfigError: a folder is there, a file stands where its folder would, or writing is not allowed.
    """
    path = Path(path)
    near = next(parent for parent in path.absolute().parents if os.path.exists(parent))
    if path.is_dir():
        raise ConfigError(f"{path} is a folder, and a file is to be written there; choose another name")
    if not near.is_dir():
        raise ConfigError(f"cannot write {path}: {near} is a file; choose another place")
    if not os.access(near, os.W_OK | os.X_OK):
        raise ConfigError(f"cannot write {path}: writing in {near} is not allowed; choose another place")


def _not_written(path: Path, error: OSError) -> ConfigError:
    full = error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
    told = "make room there, or choose another place" if full else "choose another place"
    return ConfigError(f"cannot write {path}: {error.strerror or error}; {told}")


def atomic_write_bytes(path: PathLike, data: bytes) -> None:
    """Write `data` to `path` so that a reader sees the old file or the new one, never a part of it.

    Missing parent folders are made.

    Raises:
        ConfigError: the place cannot be written to.
    """
    path = Path(path)
    temporary = _sibling(path, "tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise _not_written(path, error) from error
    finally:
        with suppress(OSError):  # gone already where all went well
            temporary.unlink()


def atomic_write_text(path: PathLike, text: str) -> None:
    """Write `text` as UTF-8 with the guarantee of `atomic_write_bytes`."""
    atomic_write_bytes(path, text.encode("utf-8"))


def write_json(path: PathLike, value: Any) -> None:
    """Write `value` as indented JSON in its own key order, atomically. NaN and infinity are refused.

    Raises:
        ValueError: `value` holds a number that JSON cannot express.
        ConfigError: the place cannot be written to.
    """
    text = json.dumps(value, indent=2, sort_keys=False, ensure_ascii=False, allow_nan=False)
    atomic_write_text(path, text + "\n")


def read_json(path: PathLike) -> Any:
    """Read one JSON file.

    Raises:
        CheckpointError: the file is missing, unreadable or not JSON (the message names file and line).
    """
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} does not exist; check the path, or copy the folder again") from error
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
    except json.JSONDecodeError as error:
        raise CheckpointError(
            f"{path}, line {error.lineno}: not valid JSON ({error.msg}); restore the file or write it again"
        ) from error
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} is not UTF-8 text, so not JSON; restore the file") from error


@contextmanager
def atomic_directory(path: PathLike) -> Iterator[Path]:
    """Build a folder in a sibling temporary one; it takes the name `path` when the block ends without error.

    A folder that was there before is replaced as a whole; after an error it is untouched. A link to a folder
    stays, and what it points to is replaced.

    Raises:
        ConfigError: the place cannot be written to, or `path` is a file.
    """
    path = Path(path)
    path = path.resolve() if path.is_symlink() else path
    if path.exists() and not path.is_dir():
        raise ConfigError(f"{path} is a file, and a folder is to be written there; choose another name")
    temporary, old = _sibling(path, "tmp"), _sibling(path, "old")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
    except OSError as error:
        raise _not_written(path, error) from error
    try:
        yield temporary
        try:
            if path.exists():
                os.replace(path, old)
            os.replace(temporary, path)
        except BaseException:  # Ctrl-C between the two, too
            if old.exists() and not path.exists():
                os.replace(old, path)
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def remove_directory(path: Path) -> None:
    """Delete a folder so that nobody finds a part of it; killed in between, `clear_leftovers` goes on."""
    doomed = _sibling(path, "tmp")
    os.replace(path, doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def save_tensors(
    path: PathLike, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors as safetensors, atomically; equal content gives equal bytes.

    Tensors are taken to the CPU, made contiguous, and sorted by name; `metadata` is sorted too.
    """
    from safetensors.torch import save

    owned = {name: _plain(tensors[name]).clone() for name in sorted(tensors)}  # clones: no shared storage
    data = save(owned)
    if metadata:  # written by ourselves: the library puts metadata in hash order, which differs between runs
        data = _with_metadata(data, metadata)
    atomic_write_bytes(path, data)


def _with_metadata(data: bytes, metadata: Mapping[str, str]) -> bytes:
    """Rewrite a safetensors header with sorted `__metadata__` (format: 8-byte length, JSON, padded to 8)."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    ordered = {"__metadata__": {key: str(metadata[key]) for key in sorted(metadata)}, **header}
    text = json.dumps(ordered, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def load_tensors(path: PathLike, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """Read every tensor of one safetensors file.

    Raises:
        CheckpointError: the file is missing, cut short, or not safetensors.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist; check the path, or copy the folder again")
    try:
        return load_file(path, device=str(device))
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{path} is damaged or not a safetensors file ({error}); copy or download it again"
        ) from error


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu").contiguous()


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 (hex) over names in order, dtypes, shapes and little-endian bytes; independent of device."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = _plain(tensors[name])
        dtype = str(tensor.dtype).removeprefix("torch.")
        digest.update(f"{name}\0{dtype}\0{list(tensor.shape)}\0".encode())
        if tensor.numel():
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def hash_rounded(tensors: Mapping[str, Tensor]) -> str:
    """`hash_tensors` of the values rounded to bfloat16: the same for weights that are held or stored in
    float32 and in bfloat16."""
    rounded = {name: t.to(torch.bfloat16) if t.is_floating_point() else t for name, t in tensors.items()}
    return hash_tensors(rounded)


def sha256_file(path: PathLike) -> str:
    """SHA-256 (hex) of a file's bytes.

    Raises:
        CheckpointError: the file cannot be read.
    """
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}; check the path") from error
