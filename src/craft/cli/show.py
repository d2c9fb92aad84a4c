"""`craft show`."""

from pathlib import Path

from craft.cli.options import COMMON, Common
from craft.cli.output import show_json, show_pairs
from craft.core.errors import ConfigError


def show(
    *images: str,
    model: str | None = None,
    encoder: Path | None = None,
    keep_ratios: str = "0.8,0.6,0.4",
    prior: str | None = None,
    out: Path = Path("runs/show"),
    common: Common = COMMON,
) -> None:
    """Draw the level-1 codes of pictures over their patches, how rare the codes are, and what pruning keeps.

    Repeated codes have a colour. With an encoder, the base tower and the adapted tower are drawn together.
    CRAFT writes one PNG per picture.

    Args:
        images: picture files; or the name of an embedded domain, for some of its test images.
        model: the model whose visual tokenizer is used; by default the encoder's surrogate, or craft-tiny.
        encoder: a run folder of `craft adapt`.
        keep_ratios: keep ratios to draw, as in 0.8,0.4.
        prior: code counts that define rarity, as for `craft eval`; by default those of each tower.
        out: the folder to write to.
    """
    try:
        ratios = [float(part) for part in keep_ratios.split(",") if part.strip()]
    except ValueError:
        raise ConfigError(
            f"--keep-ratios takes numbers with commas, as in 0.8,0.4; not {keep_ratios!r}."
        ) from None
    from craft.recipes.show import show as run

    shown = run(images, model, encoder, ratios, out, prior=prior, device=common.device, dtype=common.dtype)
    pictures = [str(path) for path in shown.pictures]
    if common.json:
        maps = [
            {
                "title": image.title,
                "tower": code_map.tower,
                "grid": list(image.grid),
                "codes": code_map.codes[:, 0].tolist(),
                "residual": code_map.residual.tolist(),
                "share": None if code_map.share is None else code_map.share.tolist(),
                "rank": None if code_map.rank is None else code_map.rank.tolist(),
            }
            for image in shown.images
            for code_map in image.maps
        ]
        show_json({"pictures": pictures, "maps": maps})
        return
    show_pairs({"pictures": "\n          ".join(pictures)})
    if without := [code_map.tower for code_map in shown.images[0].maps if code_map.rank is None]:
        print(
            f"No code prior for the {' and the '.join(without)} tower, so rarity is not drawn for it. Make a "
            "prior with `craft prior DATA --out FILE`, then add --prior FILE."
        )
