"""`craft show`: codes drawn over the patches of images, before and after adaptation (Figures 4 and 7)."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from craft.core.errors import ConfigError, DataError
from craft.core.files import check_writable
from craft.core.tokens import VisionTokens
from craft.data import EMBEDDED, load_data
from craft.models.lvlm import LVLM
from craft.models.visual_tokenizer import VisualTokenizer
from craft.pages.code_map import CodeMap, ShownImage, draw_codes
from craft.pruning import STRATEGIES, PruningSettings, budget_of
from craft.recipes.prior import chosen_prior, open_tower

KEEP = (0.8, 0.6, 0.4)
"""The keep ratios that are drawn by default."""

SAMPLES = 4
"""The number of test images, one per class, that `show` draws of an embedded domain."""


@dataclass(frozen=True)
class Shown:
    """What `show` wrote.

    Attributes:
        pictures: one PNG per image.
        images: what they show.
    """

    pictures: list[Path]
    images: list[ShownImage] = field(repr=False)


def show(
    images: Sequence[Any],
    model: str | Path | LVLM | None = None,
    encoder: str | Path | None = None,
    keep_ratios: Sequence[float] = KEEP,
    out: str | Path = "runs/show",
    *,
    prior: str | Path | None = None,
    device: str | None = None,
    dtype: str | None = None,
) -> Shown:
    """Draw level-1 codes, their rarity and the tokens that pruning keeps, for the base and the adapted tower.

    Args:
        images: paths, PIL images or arrays; the name of an embedded domain gives `SAMPLES` test images.
        model: the LVLM whose visual tokenizer is used; by default the encoder's surrogate if that is a
            shipped model, and craft-tiny without an encoder.
        encoder: a run folder or artefact, drawn below the base tower.
        keep_ratios: keep ratios to draw.
        out: the folder for one PNG per image.
        prior: as in `craft.evaluate`; by default each tower's own prior, if it has one.
        device, dtype: as for `craft.load`.

    Raises:
        DataError: an image cannot be read, or there is none.
        CodebookMismatchError, CheckpointError, ConfigError: model, encoder or prior cannot be used.

    Source: Figures 4 and 7; §13.
    """
    for ratio in keep_ratios:
        budget_of(ratio, 1)
    titled = _titled(images)
    if not titled:
        raise DataError("There is no image to show.")
    paths = [Path(out) / f"{name}.png" for name in _file_names([title for title, _ in titled])]
    for path in paths:
        check_writable(path)
    base, artefact = open_tower(model, encoder, device, dtype)
    base.visual.need_codes("A picture of codes")
    towers = {"base": base} | ({"adapted": base.with_encoder(artefact)} if artefact else {})
    if prior is not None:
        towers = {name: lvlm.with_prior(chosen_prior(prior, base)) for name, lvlm in towers.items()}
    pixels = base.visual.preprocess([image for _, image in titled])
    views = views_of(pixels)
    maps = [_maps(lvlm.visual, lvlm.visual.encode(pixels), name) for name, lvlm in towers.items()]
    shown = [
        ShownImage(title, view, base.visual.grid, list(image_maps))
        for (title, _), view, image_maps in zip(titled, views, zip(*maps, strict=True), strict=True)
    ]
    pictures = [draw_codes(path, image, keep_ratios) for path, image in zip(paths, shown, strict=True)]
    return Shown(pictures, shown)


def _titled(images: Sequence[Any]) -> list[tuple[str, Any]]:
    """(title, image) of each; the name of an embedded domain gives `SAMPLES` of its test images."""
    titled: list[tuple[str, Any]] = []
    for number, image in enumerate(images):
        if isinstance(image, str) and image in EMBEDDED:
            first = {sample.concept: sample for sample in reversed(load_data(image).test)}
            chosen = [first[label] for label in sorted(first)[:SAMPLES]]
            titled += [(f"{image}, {sample.concept}", sample.image) for sample in chosen]
        else:
            title = Path(image).stem if isinstance(image, str | Path) else f"picture {number + 1}"
            titled.append((title.encode("utf-8", "replace").decode(), image))  # file names may not be UTF-8
    return titled


def views_of(pixels: Tensor) -> np.ndarray:
    """What the tower sees of preprocessed images: `[B, 3, H, W]` in [-1, 1] -> uint8 `[B, H, W, 3]`."""
    values = ((pixels.permute(0, 2, 3, 1) / 2 + 0.5) * 255).round().clamp(0, 255)
    return values.to(torch.uint8).cpu().numpy()


def _maps(visual: VisualTokenizer, tokens: VisionTokens, tower: str) -> list[CodeMap]:
    """One map per image, with rarity and rank if the tokenizer has a prior."""
    tokens, share, rank = tokens.to("cpu"), None, None  # the ranking needs float64, which MPS lacks
    if visual.prior is not None:
        if visual.prior.shape != (visual.codebook.size,):
            raise ConfigError("The code prior does not fit the codebook; make one with `craft prior`.")
        total = visual.prior.sum().clamp(min=1)
        codes = tokens.codes[..., 0]
        share = (visual.prior.cpu() / total)[codes].double().numpy()
        order = STRATEGIES["full"](tokens, codes.shape[1], PruningSettings(visual.prior))
        rank = order.argsort(dim=1).numpy()
    return [
        CodeMap(
            tower=tower,
            codes=tokens.codes[number].numpy(),
            residual=tokens.residual[number].double().numpy(),
            share=None if share is None else share[number],
            rank=None if rank is None else rank[number],
        )
        for number in range(len(tokens))
    ]


def _file_names(titles: Sequence[str]) -> list[str]:
    """Titles as file names, all different."""
    names: list[str] = []
    for title in titles:
        words = "".join(c if c.isalnum() or c in "_." else " " for c in title).split()
        plain = "-".join(words).strip(".") or "picture"
        same = sum(name == plain or name.startswith(f"{plain}~") for name in names)
        names.append(f"{plain}~{same + 1}" if same else plain)
    return names
