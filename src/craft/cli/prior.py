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
    """Count how often each level-1 code occurs in training pictures: what pruning calls frequent.

    An adapted encoder brings the counts of its own training pictures, so this is for other pictures: a
    general corpus, or a model that came without counts.

    Args:
        data: as `craft adapt` takes it; its training part is counted.
        out: a file for the counts, to give as --prior to `craft eval`.
        model: whose visual tokenizer; by default the encoder's surrogate, or craft-tiny.
        encoder: a run folder of `craft adapt` whose tower is used; by default the model's own tower.
        limit: at most this many pictures.
        root: where a benchmark lies; else what relative paths in the data start from.
    """
    from craft.recipes.prior import build_prior

    found = build_prior(
        data,
        model,
        encoder,
        out,
        seed=common.seed,
        limit=limit,
        root=root,
        device=common.device,
        dtype=common.dtype,
    )
    counts = found.counts
    top = counts.sort(descending=True, stable=True)
    share = top.values[:5] / counts.sum()
    common_codes = [
        {"code": int(code), "share": float(part)} for code, part in zip(top.indices[:5], share, strict=True)
    ]
    if common.json:
        show_json(
            {
                "data": found.data,
                "images": found.images,
                "used": found.used,
                "perplexity": found.perplexity,
                "most_common": common_codes,
                "counts": counts.tolist(),
                "out": None if found.out is None else str(found.out),
            }
        )
        return
    show_pairs(
        {
            "pictures": f"{found.images} of {found.data}",
            "codes in use": f"{int((counts > 0).sum())} of {len(counts)}",
            "perplexity": f"{found.perplexity:.0f}",
            "most common": ", ".join(f"{row['code']} ({percent(row['share'])} %)" for row in common_codes),
            "written to": found.out,
        }
    )
    if found.out is None:
        print("Nothing was written: --out FILE keeps the counts, for `craft eval --prior FILE`.")
