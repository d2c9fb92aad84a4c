"""`craft show`."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from craft.cli.options import COMMON, Common
from craft.cli.output import show_json, show_pairs


def show(
    *images: str,
    model: str | None = None,
    encoder: Path | None = None,
    keep: Annotated[str, Parameter(name="--keep-ratios")] = "0.8,0.6,0.4",
    prior: str | None = None,
    out: Path = Path("runs/show"),
    common: Common = COMMON,
) -> None:
    """Draw the level-1 codes of pictures over their patches, how rare they are, and what pruning keeps.

    Repeated codes have a colour. Given an encoder, the base tower and the adapted one are drawn together.
    Writes one PNG per picture, and index.html: hover over a patch for its code, frequency and residual.

    Args:
        images: picture files; or the name of an embedded domain, for a few of its test images.
        model: whose visual tokenizer; by default the encoder's surrogate, or craft-tiny.
        encoder: a run folder of `craft adapt`.
        keep: keep ratios to draw, as in 0.8,0.4.
        prior: whose code counts say what is rare, as for `craft eval`; by default each tower's own.
        out: the folder to write to.
    """
    from craft.core.errors import ConfigError
    from craft.recipes.show import show as run

    try:
        ratios = [float(part) for part in keep.split(",") if part.strip()]
    except ValueError:
        raise ConfigError(f"--keep-ratios takes numbers with commas, as in 0.8,0.4; not {keep!r}.") from None
    found = run(images, model, encoder, ratios, out, prior=prior, device=common.device, dtype=common.dtype)
    written = {"page": str(found.page), "pictures": [str(path) for path in found.pictures]}
    if common.json:
        towers = [
            {
                "title": image.title,
                "tower": shown.tower,
                "grid": list(image.grid),
                "codes": shown.codes[:, 0].tolist(),
                "residual": shown.residual.tolist(),
                "share": None if shown.share is None else shown.share.tolist(),
                "rank": None if shown.rank is None else shown.rank.tolist(),
            }
            for image in found.images
            for shown in image.maps
        ]
        show_json({**written, "maps": towers})
        return
    show_pairs({"page": written["page"], "pictures": "\n          ".join(written["pictures"])})
    if bare := [shown.tower for shown in found.images[0].maps if shown.rank is None]:
        print(
            f"No code prior of the {' and the '.join(bare)} tower, so no rarity of it to draw: "
            "`craft prior DATA --out FILE`, then --prior FILE."
        )
