"""`craft prior`."""

from pathlib import Path

from craft.cli.options import COMMON, Common, Limit
from craft.cli.output import show_json, show_pairs
from craft.core.text import percent


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
    """Count how often each level-1 code occurs in training pictures, which tells pruning what is frequent.

    An adapted encoder comes with the counts of its own training pictures. This verb is for other pictures,
    such as a general corpus, and for models that came without counts.

    Args:
        data: as for `craft adapt`; its training part is counted.
        out: the file for the counts, to be passed as --prior to `craft eval`.
        model: the model whose visual tokenizer is used; by default the encoder's surrogate, or craft-tiny.
        encoder: a run folder of `craft adapt` whose tower is used; by default the model's own tower.
        limit: at most this many pictures.
        root: the folder of a benchmark; for other data, the folder to which relative paths refer.
    """
    from craft.core.files import check_writable
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
            "pictures": f"{counted.images} of {counted.data}",
            "codes in use": f"{int((counts > 0).sum())} of {len(counts)}",
            "perplexity": f"{counted.perplexity:.0f}",
            "most common": ", ".join(f"{row['code']} ({percent(row['share'])} %)" for row in frequent),
            "written to": out,
        }
    )
    if out is None:
        print("Nothing was written. --out FILE keeps the counts, for `craft eval --prior FILE`.")
