"""A folder of safetensors weights as in transformers: one file, or shards with an index.

Headers are checked before anything large is read. Writing copies files byte for byte and then overwrites only
the bytes of tensors that changed.
"""

import json
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from craft.core.errors import CheckpointError
from craft.core.files import is_inside, member, read_json
from craft.core.tensors import check_finite_weights

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"

_CONVERT = (
    "import glob, sys, torch; from safetensors.torch import save_file; d = sys.argv[1]; w = {}; "
    "[w.update(torch.load(f, map_location='cpu', weights_only=True)) "
    "for f in sorted(glob.glob(d + '/pytorch_model*.bin'))]; "
    "save_file({k: v.clone().contiguous() for k, v in w.items()}, d + '/model.safetensors', {'format': 'pt'})"
)


def conversion_command(folder: Path) -> str:
    """A shell command that turns a folder's `pytorch_model*.bin` into `model.safetensors`.

    It loads with `weights_only=True`, so no code in the file can run.
    """
    return f'python -c "{_CONVERT}" "{folder}"'


class WeightFolder:
    """The tensors of a folder, by name.

    Args:
        folder: holds `model.safetensors`, or `model.safetensors.index.json` and its shards.
        single: another name for the file that is not sharded.

    Attributes:
        where: tensor name -> file.
        shapes: tensor name -> shape.
        integers: the names of the tensors without floating-point values.

    Raises:
        CheckpointError: the folder, its weights or a shard is missing; a file is truncated or not
            safetensors; a shard lacks a tensor of the index; the folder has only `pytorch_model.bin`.
    """

    def __init__(self, folder: Path, single: str = SINGLE) -> None:
        self.folder = folder
        self.single = single
        self.where: dict[str, Path] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.integers: set[str] = set()
        for file, expected in self._files().items():
            for name, (shape, dtype) in _header(file).items():
                self.where[name] = file
                self.shapes[name] = shape
                if dtype[0] in "IUB" and dtype != "BF16":
                    self.integers.add(name)
            lacking = sorted(expected - self.where.keys())
            if lacking:
                raise CheckpointError(
                    f"{file} lacks tensor {lacking[0]} ({len(lacking)} in all), which {INDEX} lists; "
                    "copy or download the shard again."
                )

    def _files(self) -> dict[Path, set[str]]:
        """Weight files, and the tensors that the index lists for each."""
        if not self.folder.is_dir():
            raise CheckpointError(f"Folder {self.folder} does not exist; the checkpoint is incomplete.")
        if (self.folder / self.single).is_file():
            return {self.folder / self.single: set()}
        index = self.folder / INDEX
        if index.is_file():
            content = read_json(index)
            mapping = content.get("weight_map") if isinstance(content, dict) else None
            if not isinstance(mapping, dict) or not mapping:
                raise CheckpointError(f"{index} has no weight_map; copy or download it again.")
            files: dict[Path, set[str]] = {}
            for name, shard in mapping.items():
                files.setdefault(member(self.folder, shard, index), set()).add(name)
            for shard in sorted(files):
                if not shard.is_file():
                    raise CheckpointError(f"Shard {shard} of {index} is missing; copy or download it again.")
            return files
        if any(self.folder.glob("pytorch_model*.bin")):
            raise CheckpointError(
                f"{self.folder} holds pytorch_model.bin, a pickle file, which CRAFT does not open because "
                f"it can run code. Convert it once, with weights only: {conversion_command(self.folder)}"
            )
        raise CheckpointError(
            f"{self.folder} holds no weights: it has neither {SINGLE} nor {INDEX}; copy or download the "
            "folder again. (From the hub, CRAFT downloads only safetensors. If a model has only "
            "pytorch_model.bin, download it yourself and give its folder; the message then has a command to "
            "convert it.)"
        )

    def tensor(self, name: str) -> Tensor:
        """One tensor, in the file's dtype, on the CPU.

        Raises:
            CheckpointError: no file has it, the file is damaged, or a value is not finite.
        """
        if name not in self.where:
            raise CheckpointError(f"{self.folder} lacks tensor {name}; the checkpoint is incomplete.")
        file = self.where[name]
        try:
            with safe_open(file, framework="pt") as opened:
                tensor = opened.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{file} is damaged ({error}); copy or download it again.") from error
        check_finite_weights({name: tensor}, self.where, self.folder)
        return tensor

    def changed(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors that differ from those in the files, compared in the dtype of `tensors`.

        Raises:
            CheckpointError: a tensor is not in the files, or has another shape in them.
        """
        different = {}
        for name, tensor in tensors.items():
            stored = self.tensor(name)
            if stored.shape != tensor.shape:
                raise CheckpointError(
                    f"Tensor {name} has shape {list(tensor.shape)}, and {list(stored.shape)} in "
                    f"{self.where[name]}; the two do not belong to one model."
                )
            if not torch.equal(stored.to(tensor.dtype), tensor.detach().cpu()):
                different[name] = tensor.detach().cpu().to(stored.dtype)
        return different

    def write(self, target: Path, tensors: Mapping[str, Tensor], skip: Collection[str] = ()) -> list[str]:
        """Copy the folder to `target`, then overwrite the bytes of tensors that differ.

        Args:
            target: a folder, created if missing.
            tensors: new values by the names in the files, whose dtypes stay.
            skip: names of files that are not copied.

        Returns:
            Names of the tensors that changed. If none did, every file is identical to the original.

        Raises:
            CheckpointError: as `changed`.
        """
        different = self.changed(tensors)
        copy_folder(self.folder, target, skip)
        for file in sorted({self.where[name] for name in different}):
            _patch(
                target / file.relative_to(self.folder),
                {n: t for n, t in different.items() if self.where[n] == file},
            )
        return sorted(different)


def refuse_overlap(target: Path, source: Path) -> None:
    """Check that `target`, which will be replaced, is apart from the folder that is copied.

    Raises:
        CheckpointError: it is, contains or is inside `source`.
    """
    new, old = target.resolve(), source.resolve()
    if old in (new, *new.parents) or new in old.parents:
        raise CheckpointError(
            f"{target} is, contains or is inside the checkpoint ({source}); choose another folder."
        )


def copy_folder(folder: Path, target: Path, skip: Collection[str] = ()) -> None:
    """Copy the files of a folder to `target`, without `.git` and the names in `skip` that are directly in it.

    Raises:
        CheckpointError: one is a link that leads out of the folder, whose content does not belong to it, or
            a link to another folder.
    """
    target.mkdir(parents=True, exist_ok=True)
    for source in sorted(folder.rglob("*")):
        name = source.relative_to(folder)
        if ".git" in name.parts or name.parts[0] in skip:
            continue
        if source.is_symlink() and (source.is_dir() or not is_inside(source, folder)):
            raise CheckpointError(
                f"{source} is a link to {source.resolve()}, which CRAFT does not copy; put the file or "
                "folder itself there (cp -rL), or remove the link."
            )
        if source.is_dir():
            continue
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target / name)


def _header(file: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and dtype ("BF16", "I64") of each tensor in one safetensors file."""
    try:
        with safe_open(file, framework="pt") as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
            return {name: (tuple(part.get_shape()), part.get_dtype()) for name, part in slices.items()}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{file} is damaged or not a safetensors file ({error}); copy or download it again."
        ) from error


def _patch(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """Overwrite tensors in place; header and order do not change."""
    with open(file, "r+b") as opened:
        length = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(length))
        for name, tensor in tensors.items():
            start, end = header[name]["data_offsets"]
            data = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
            if len(data) != end - start:
                raise CheckpointError(f"Tensor {name} takes {len(data)} bytes, and {end - start} in {file}.")
            opened.seek(8 + length + start)
            opened.write(data)
