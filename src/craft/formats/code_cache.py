"""Codes of every image under one visual tokenizer, computed once and kept: in memory, and on disk if asked.

An LLM of the codebook and the pruning rule need of an image only its codes and level-1 residuals: 3 KiB at
real size (256 tokens, 4 levels of int16 codes, one float32 residual each), where the features take 1 MiB. One
encoder, six keep ratios and five backbones then cost one pass of the vision tower over the images, not 30.

    cache = CodeCache("runs/codes")               # or CodeCache(): in memory only
    images = cache.encode(lvlm.visual, sources)   # runs the tower for images that it has not met
    lvlm.answer(images.tokens([0, 2]), questions)

FOLDER/<key>/{cache.json: what the key stands for, part-*.safetensors: digests, codes, residuals}
"""

import hashlib
import json
import os
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import PIL
import torch
from PIL import Image
from torch import Tensor

from craft.core.device import rounds_products
from craft.core.errors import CheckpointError
from craft.core.files import PathLike, hash_tensors, load_tensors, save_tensors, write_json
from craft.core.progress import say, track
from craft.core.tokens import VisionTokens
from craft.data.images import image_bytes_hash, open_image
from craft.models.visual_tokenizer import VisualTokenizer

PART = 1024
"""Images per file: as many are lost, at most, when a run is interrupted."""


@dataclass(frozen=True, eq=False)
class ImageCodes:
    """The codes of a list of images. Equal pictures are held once.

    Attributes:
        visual: the visual tokenizer that made them; looks codewords up.
        codes: `[D, N, L]` on the CPU, int16 (int32 for K above 32768), of the D distinct images. Of a
            continuous LVLM its features `[D, N, d]` in the tower's dtype (1 MiB per image at real size).
        residual: float32 `[D, N]` on the CPU, e = |z - c⁽¹⁾|².
        rows: int64 `[images]`: where in the two each of the given images is.
        names: D short names of the distinct images, by content: the same for the same picture everywhere.
    """

    visual: VisualTokenizer
    codes: Tensor
    residual: Tensor
    rows: Tensor
    names: tuple[str, ...]

    def __len__(self) -> int:
        """How many images were given."""
        return len(self.rows)

    def tokens(self, images: Iterable[int] | slice | None = None) -> VisionTokens:
        """The visual tokens of some of the images, by their index in the list; None is all of them.

        Codes, codeword sums and residuals are bit for bit those that were encoded. The features are not kept:
        `features` holds the codeword sums as well, and `cls` is None.

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
    """Remembers the codes of images by their content, apart for every tower, codebook and precision.

    The key of an image is the SHA-256 of its file's bytes (or of a decoded picture's pixels). The key of a
    visual tokenizer covers its tower's weights and shape, codebook, image mode, and what changes the last bit
    of a feature and with it, now and then, a code: device type, dtypes, autocast, TF32, versions of torch and
    pillow.

    Args:
        folder: where to keep codes between runs; several processes may share it. None keeps them in memory.
    """

    def __init__(self, folder: PathLike | None = None) -> None:
        self.folder = None if folder is None else Path(folder)
        self._known: dict[str, dict[bytes, tuple[Tensor, Tensor]]] = {}

    @torch.no_grad()
    def encode(
        self,
        visual: VisualTokenizer,
        images: Sequence[Any],
        batch_size: int = 64,
        progress: bool = True,
        search: str = "exact",
    ) -> ImageCodes:
        """The codes of images; the vision tower runs for those that it has not met, each picture once.

        Args:
            visual: the visual tokenizer.
            images: paths, bytes, PIL images or arrays, as `VisualTokenizer.encode` takes them.
            batch_size: images per forward pass of the tower.
            progress: show it.
            search: how codewords are found, as `craft.quantize.search.search_for` gives it. Codes that
                another search found are kept apart.

        Raises:
            DataError: an image cannot be read. What was encoded before it is kept.
            ConfigError: the folder cannot be written to, or the search does not run here.
        """
        told = describe_visual(visual) | ({} if search == "exact" else {"search": search})
        key = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:24]
        place = None if self.folder is None else self.folder / key
        if key not in self._known:
            self._known[key] = {} if place is None else _read_parts(place, visual)
        known = self._known[key]
        images = list(images)  # a lazy sequence would make every picture anew, and they are told apart by id
        digests, missing = _digests(images), dict[bytes, Any]()
        for digest, image in zip(digests, images, strict=True):
            if digest not in known:
                missing.setdefault(digest, image)
        if missing:
            if place is not None and not (place / "cache.json").is_file():
                write_json(place / "cache.json", told)
            _encode_missing(visual, missing, known, place, batch_size, progress, search)
        order = {digest: row for row, digest in enumerate(dict.fromkeys(digests))}
        found = [known[digest] for digest in order]
        empty = torch.zeros(0, *_shape(visual), dtype=_dtype(visual))
        return ImageCodes(
            visual=visual,
            codes=torch.stack([codes for codes, _ in found]) if found else empty,
            residual=torch.stack([residual for _, residual in found]) if found else empty[..., 0].float(),
            rows=torch.tensor([order[digest] for digest in digests], dtype=torch.long),
            names=tuple(map(_name, order)),
        )


def image_names(images: Sequence[Any]) -> list[str]:
    """The name of every image by content, as in `ImageCodes.names`; nothing is encoded.

    Raises:
        DataError: an image cannot be read.
    """
    return [_name(digest) for digest in _digests(images)]


def describe_visual(visual: VisualTokenizer) -> dict[str, Any]:
    """What decides the codes of an image, JSON-able: tower, codebook, image mode and precision."""
    tower, device = visual.vision_tower, visual.device
    state = tower.state_dict()
    return {
        "tower": hash_tensors(state),
        "tower_config": {str(k): v for k, v in dict(tower.config).items()},  # type: ignore[call-overload]
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
    known: dict[bytes, tuple[Tensor, Tensor]],
    place: Path | None,
    batch_size: int,
    progress: bool,
    search: str,
) -> None:
    """Run the tower over `missing`; add to `known` and, every `PART` images and at the end, to disk."""
    digests, sources, unsaved = list(missing), list(missing.values()), list[bytes]()
    starts = range(0, len(sources), batch_size)
    try:
        for start in track(starts, "encoding images") if progress and len(starts) > 1 else starts:
            chunk = sources[start : start + batch_size]
            tokens = visual.encode(chunk, batch_size=batch_size, with_cls=False, search=search)
            kept = tokens.features if visual.continuous else tokens.codes
            codes, residual = kept.to(_dtype(visual)).cpu(), tokens.residual.float().cpu()
            batch = digests[start : start + batch_size]
            known.update(zip(batch, zip(codes.unbind(), residual.unbind(), strict=True), strict=True))
            unsaved += batch
            if len(unsaved) >= PART:
                _write_part(place, known, unsaved)
                unsaved = []
    finally:  # also when an image cannot be read, or on Ctrl-C: the tower's work is kept
        _write_part(place, known, unsaved)


def _write_part(
    place: Path | None, known: dict[bytes, tuple[Tensor, Tensor]], digests: Sequence[bytes]
) -> None:
    if place is None or not digests:
        return
    tensors = {
        "digests": torch.tensor([list(digest) for digest in digests], dtype=torch.uint8),
        "codes": torch.stack([known[digest][0] for digest in digests]),
        "residual": torch.stack([known[digest][1] for digest in digests]),
    }
    save_tensors(place / f"part-{secrets.token_hex(8)}.safetensors", tensors)


def _read_parts(place: Path, visual: VisualTokenizer) -> dict[bytes, tuple[Tensor, Tensor]]:
    """Everything that lies in a cache folder. A damaged file is named and passed over: its images are encoded
    again."""
    shape = _shape(visual)
    known: dict[bytes, tuple[Tensor, Tensor]] = {}
    for path in sorted(place.glob("part-*.safetensors")):
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
                raise CheckpointError(f"{path} holds codes that the codebook does not have")
        except (CheckpointError, KeyError) as error:
            say(f"{error}; its images are encoded again")
            continue
        names = [bytes(row) for row in digests.tolist()]
        known.update(zip(names, zip(codes.unbind(), residual.unbind(), strict=True), strict=True))
    return known


def _digests(images: Sequence[Any]) -> list[bytes]:
    """The key of every image; a source that occurs more than once is read once."""
    seen: dict[Any, bytes] = {}
    for image in images:
        if _source(image) not in seen:
            # A PIL image's palette and rotation are beside its pixels: only as RGB do the pixels say it all.
            content = open_image(image) if isinstance(image, Image.Image) else image
            seen[_source(image)] = bytes.fromhex(image_bytes_hash(content))
    return [seen[_source(image)] for image in images]


def _name(digest: bytes) -> str:
    return digest.hex()[:16]


def _source(image: Any) -> Any:
    return os.fspath(image) if isinstance(image, str | os.PathLike) else id(image)


def _shape(visual: VisualTokenizer) -> tuple[int, int]:
    """Of what is kept per image: codes `[N, L]`, or features `[N, d]`."""
    rows, columns = visual.grid
    return rows * columns, visual.codebook.num_levels or visual.codebook.dim


def _dtype(visual: VisualTokenizer) -> torch.dtype:
    if visual.continuous:
        return next(visual.vision_tower.parameters()).dtype
    return torch.int16 if visual.codebook.size <= 2**15 else torch.int32
