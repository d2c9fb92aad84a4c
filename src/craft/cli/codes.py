"""`craft show` and `craft prior`: which level-1 codes images have, drawn and counted."""

from pathlib import Path

from craft.cli.options import COMMON, Common, Limit
from craft.cli.output import show_json, show_line, show_pairs
from craft.core.errors import ConfigError
from craft.core.files import check_writable
from craft.core.text import percent


def show(
    *images: str,
    model: str | None = None,
    encoder: Path | None = None,
    keep_ratios: str = "0.8,0.6,0.4",
    prior: str | None = None,
    out: Path = Path("runs/show"),
    common: Common = COMMON,
) -> None:
    """Draw the level-1 codes of images over their patches, how rare the codes are, and what pruning keeps.

    Repeated codes have a colour. With an encoder, the base tower and the adapted tower are drawn together.
    CRAFT writes one PNG per image.

    Args:
        images: image files; or the name of an embedded domain, for some of its test images.
        model: the model whose visual tokenizer is used; by default craft-tiny, or the model that the encoder
            was adapted with, if it is a shipped one.
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
    show_pairs({"pictures": pictures})
    if without := [code_map.tower for code_map in shown.images[0].maps if code_map.rank is None]:
        show_line(
            f"No code prior for the {' and the '.join(without)} tower, so rarity is not drawn for it. Make a "
            "prior with `craft prior DATA --out FILE`, then add --prior FILE."
        )


def prior(
    data: str,
    *,
    out: Path | None = None,
    model: str | None = None,
    encoder: Path | None = None,
    limit: Limit = None,
    root: Path | None = None,
    common: Common = COMMON,
) -> None:
    """Count how often each level-1 code occurs in training images, so that pruning knows which are frequent.

    An adapted encoder comes with the counts of its own training images. This verb is for other images,
    such as a general corpus, and for models that came without counts.

    Args:
        data: as for `craft adapt`; its training part is counted.
        out: the file for the counts, to be passed as --prior to `craft eval`.
        model: the model whose visual tokenizer is used; by default craft-tiny, or the model that the encoder
            was adapted with, if it is a shipped one.
        encoder: a run folder of `craft adapt` whose tower is used; by default the model's own tower.
        limit: at most this many images.
        root: the folder of a benchmark; for other data, the folder to which relative paths refer.
    """
    from craft.recipes.prior import build_prior

    if out is not None:
        check_writable(out)
    options = {"device": common.device, "dtype": common.dtype}
    counted = build_prior(data, model, encoder, seed=common.seed, limit=limit, root=root, **options)
    if out is not None:
        counted.save(out)
    counts = counted.counts
    top = counts.sort(descending=True, stable=True)
    shares = top.values[:5] / counts.sum()
    frequent = [
        {"code": int(code), "share": float(share)}
        for code, share in zip(top.indices[:5], shares, strict=True)
    ]
    if common.json:
        show_json(
            {
                "data": counted.data,
                "images": counted.images,
                "used": counted.used,
                "perplexity": counted.perplexity,
                "most_common": frequent,
                "counts": counts.tolist(),
                "out": None if out is None else str(out),
            }
        )
        return
    show_pairs(
        {
            "images": f"{counted.images} of {counted.data}",
            "codes in use": f"{int((counts > 0).sum())} of {len(counts)}",
            "perplexity": f"{counted.perplexity:.0f}",
            "most common": ", ".join(f"{row['code']} ({percent(row['share'])} %)" for row in frequent),
            "written to": out,
        }
    )
    if out is None:
        show_line("Nothing was written. --out FILE keeps the counts, for `craft eval --prior FILE`.")
