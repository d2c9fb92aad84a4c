"""A cache of the codes of images under a visual tokenizer, in memory and optionally on disk.

LLMs and pruning need only the codes and level-1 residuals of an image: 3 KiB at real size (256 tokens, each
with 4 int16 codes and a float32 residual), while the features take 1 MiB. With the cache, one encoder, six
keep ratios and five backbones cost one pass of the vision tower over the images instead of 30.

    cache = CodeCache("runs/codes")               # or CodeCache(): in memory only
    images = cache.encode(lvlm.visual, sources)   # runs the tower for images that are not in the cache
    lvlm.answer(images.tokens([0, 2]), questions)

FOLDER/<key>/{cache.json: what the key covers, part-*.safetensors: digests, codes, residuals}
"""

import os
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import PIL
import torch
from PIL import Image
from torch import Tensor

from craft.core.device import rounds_products
from craft.core.errors import CheckpointError
from craft.core.files import PathLike, write_json
from craft.core.progress import say, track
from craft.core.tensors import hash_tensors, load_tensors, save_tensors
from craft.core.text import json_digest
from craft.core.tokens import VisionTokens
from craft.data.images import image_bytes_hash, open_image
from craft.models.visual_tokenizer import VisualTokenizer

PART = 1024
"""Images per file, and so the maximum number that a killed run loses."""

Codes: TypeAlias = dict[bytes, tuple[Tensor, Tensor]]
"""Codes and level-1 residuals of images, by the SHA-256 of their content."""


@dataclass(frozen=True, eq=False)
class ImageCodes:
    """The codes of a list of images; equal images are stored once.

    Attributes:
        visual: the visual tokenizer that computed them; it looks up codewords.
        codes: `[D, N, L]` on the CPU, int16 (int32 for K above 32768), of the D distinct images. For a
            continuous LVLM, its features `[D, N, d]` in the tower's dtype (1 MiB per image at real size).
        residual: float32 `[D, N]` on the CPU, e = |z - c⁽¹⁾|².
        rows: int64 `[images]`, the row of each image in `codes` and `residual`.
        names: D short names of the distinct images, which depend only on their content.
    """

    visual: VisualTokenizer
    codes: Tensor
    residual: Tensor
    rows: Tensor
    names: tuple[str, ...]

    def __len__(self) -> int:
        """Number of images, with repetitions."""
        return len(self.rows)

    def tokens(self, images: Iterable[int] | slice | None = None) -> VisionTokens:
        """The visual tokens of images by their index in the list; None is all images.

        Codes, codeword sums and residuals are bit-identical to the encoded ones. Features are not stored:
        `features` also holds the codeword sums, and `cls` is None.

        Returns:
            `VisionTokens` on the visual tokenizer's device.
        """
        if images is None or isinstance(images, slice):
            rows = self.rows[images or slice(None)]
        else:
            rows = self.rows[torch.as_tensor(list(images), dtype=torch.long)]
        device = self.visual.codebook.codewords.device
        if self.visual.continuous:
            quantized = self.codes[rows].to(device).float()
            codes = torch.zeros(*quantized.shape[:2], 0, dtype=torch.long, device=device)
        else:
            codes = self.codes[rows].long().to(device)
            quantized = self.visual.codebook.lookup(codes)
        batch, count = codes.shape[:2]
        return VisionTokens(
            features=quantized,
            codes=codes,
            quantized=quantized,
            residual=self.residual[rows].to(device),
            positions=torch.arange(count, device=device).expand(batch, count),
            grid=self.visual.grid,
        )


class CodeCache:
    """Stores the codes of images by content, separately for every tower, codebook and precision.

    The key of an image is the SHA-256 of its file's bytes, or of the pixels of a decoded image. The key of a
    visual tokenizer covers its tower's weights and config, the codebook, the aspect mode, and what can change
    the last bit of a feature and so, occasionally, a code: device type, dtypes, autocast, TF32, and the
    versions of torch and pillow.

    Args:
        folder: stores codes between runs; several processes may share it. None stores them in memory only.
    """

    def __init__(self, folder: PathLike | None = None) -> None:
        self.folder = None if folder is None else Path(folder)
        self._stored: dict[str, Codes] = {}

    @torch.no_grad()
    def encode(
        self,
        visual: VisualTokenizer,
        images: Sequence[Any],
        batch_size: int = 64,
        progress: bool = True,
        search: str = "exact",
    ) -> ImageCodes:
        """The codes of images; the vision tower runs once for each image that is not in the cache.

        Args:
            images: paths, bytes, PIL images or arrays, as for `VisualTokenizer.encode`.
            search: how codewords are found, as from `craft.quantize.search.search_for`. Codes of different
                searches are stored separately.

        Raises:
            DataError: an image cannot be read. Codes computed before it are stored.
            ConfigError: the folder cannot be written to, or the search does not run here.
        """
        description = describe_visual(visual) | ({} if search == "exact" else {"search": search})
        key = json_digest(description)[:24]
        folder = None if self.folder is None else self.folder / key
        if key not in self._stored:
            self._stored[key] = {} if folder is None else _read_parts(folder, visual)
        stored = self._stored[key]
        images = list(images)  # a lazy sequence may make new objects each time, and `_digests` uses their ids
        digests, missing = _digests(images), dict[bytes, Any]()
        for digest, image in zip(digests, images, strict=True):
            if digest not in stored:
                missing.setdefault(digest, image)
        if missing:
            if folder is not None and not (folder / "cache.json").is_file():
                write_json(folder / "cache.json", description)
            _encode_missing(visual, missing, stored, folder, batch_size, progress, search)
        order = {digest: row for row, digest in enumerate(dict.fromkeys(digests))}
        entries = [stored[digest] for digest in order]
        empty = torch.zeros(0, *_shape(visual), dtype=_dtype(visual))
        return ImageCodes(
            visual=visual,
            codes=torch.stack([codes for codes, _ in entries]) if entries else empty,
            residual=torch.stack([residual for _, residual in entries]) if entries else empty[..., 0].float(),
            rows=torch.tensor([order[digest] for digest in digests], dtype=torch.long),
            names=tuple(map(_name, order)),
        )


def image_names(images: Sequence[Any]) -> list[str]:
    """The names of images by content, as in `ImageCodes.names`, without encoding them.

    Raises:
        DataError: an image cannot be read.
    """
    return [_name(digest) for digest in _digests(images)]


def describe_visual(visual: VisualTokenizer) -> dict[str, Any]:
    """What determines the codes of an image, JSON-able: tower, codebook, aspect mode and precision."""
    tower, device = visual.vision_tower, visual.device
    state = tower.state_dict()
    return {
        "tower": hash_tensors(state),
        "tower_config": {str(key): value for key, value in tower.config.items()},
        "codebook": visual.codebook.fingerprint,
        "aspect": visual.aspect,
        "image_size": visual.image_size,
        "device": device.type,
        "dtypes": sorted({str(tensor.dtype) for tensor in state.values()}),
        "autocast": str(torch.get_autocast_dtype(device.type))
        if torch.is_autocast_enabled(device.type)
        else None,
        "tf32": rounds_products(device),
        "torch": torch.__version__.partition("+")[0],
        "pillow": PIL.__version__,
    }


def _encode_missing(
    visual: VisualTokenizer,
    missing: dict[bytes, Any],
    stored: Codes,
    folder: Path | None,
    batch_size: int,
    progress: bool,
    search: str,
) -> None:
    """Run the tower for `missing`; add the codes to `stored`, and to `folder` after every `PART` images."""
    digests, sources, unsaved = list(missing), list(missing.values()), list[bytes]()
    starts = range(0, len(sources), batch_size)
    try:
        for start in track(starts, "encoding images") if progress and len(starts) > 1 else starts:
            chunk = sources[start : start + batch_size]
            tokens = visual.encode(chunk, batch_size=batch_size, with_cls=False, search=search)
            values = tokens.features if visual.continuous else tokens.codes
            codes, residual = values.to(_dtype(visual)).cpu(), tokens.residual.float().cpu()
            batch = digests[start : start + batch_size]
            stored.update(zip(batch, zip(codes.unbind(), residual.unbind(), strict=True), strict=True))
            unsaved += batch
            if len(unsaved) >= PART:
                _write_part(folder, stored, unsaved)
                unsaved = []
    finally:  # also if an image cannot be read, or on Ctrl-C: keep the computed codes
        _write_part(folder, stored, unsaved)


def _write_part(folder: Path | None, stored: Codes, digests: Sequence[bytes]) -> None:
    if folder is None or not digests:
        return
    tensors = {
        "digests": torch.tensor([list(digest) for digest in digests], dtype=torch.uint8),
        "codes": torch.stack([stored[digest][0] for digest in digests]),
        "residual": torch.stack([stored[digest][1] for digest in digests]),
    }
    save_tensors(folder / f"part-{secrets.token_hex(8)}.safetensors", tensors)


def _read_parts(folder: Path, visual: VisualTokenizer) -> Codes:
    """All codes in a cache folder; damaged files are reported and skipped."""
    shape = _shape(visual)
    stored: Codes = {}
    for path in sorted(folder.glob("part-*.safetensors")):
        try:
            part = load_tensors(path)
            digests, codes, residual = part["digests"], part["codes"], part["residual"]
            fits = len(digests) == len(codes) == len(residual) and tuple(codes.shape[1:]) == shape
            if not fits or tuple(residual.shape[1:]) != shape[:1] or codes.dtype != _dtype(visual):
                raise CheckpointError(f"{path} holds codes of another shape")
            beyond = not visual.continuous and (
                int(codes.min()) < 0 or int(codes.max()) >= visual.codebook.size
            )
            if beyond:
                raise CheckpointError(f"{path} holds codes outside the codebook")
            names = [bytes(row) for row in digests.tolist()]
        except (CheckpointError, LookupError, TypeError, ValueError, RuntimeError) as error:
            say(f"{error}; its images are encoded again")
            continue
        stored.update(zip(names, zip(codes.unbind(), residual.unbind(), strict=True), strict=True))
    return stored


def _digests(images: Sequence[Any]) -> list[bytes]:
    """The key of every image; a source that occurs more than once is read once."""
    digests: dict[str | bytes | int, bytes] = {}
    for image in images:
        if _source(image) not in digests:
            # The pixels of a PIL image do not include its palette and rotation; those of the RGB image do.
            content = open_image(image, alpha="keep") if isinstance(image, Image.Image) else image
            digests[_source(image)] = bytes.fromhex(image_bytes_hash(content))
    return [digests[_source(image)] for image in images]


def _name(digest: bytes) -> str:
    return digest.hex()[:16]


def _source(image: Any) -> str | bytes | int:
    return os.fspath(image) if isinstance(image, str | os.PathLike) else id(image)


def _shape(visual: VisualTokenizer) -> tuple[int, int]:
    """Shape of the stored values per image: codes `[N, L]`, or features `[N, d]`."""
    rows, columns = visual.grid
    return rows * columns, visual.codebook.num_levels or visual.codebook.dim


def _dtype(visual: VisualTokenizer) -> torch.dtype:
    if visual.continuous:
        return next(visual.vision_tower.parameters()).dtype
    return torch.int16 if visual.codebook.size <= 2**15 else torch.int32
