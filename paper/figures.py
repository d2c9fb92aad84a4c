"""Figures 4 and 7: codes over the patches of images, drawn from the JSON alone."""

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from craft.data.images import lazy_image
from craft.pages.code_map import CodeMap, ShownImage, draw_codes
from craft.recipes.show import KEEP, show
from paper.cells import CRAFT, Cell, Method, plain
from paper.measures import fill
from paper.plan import Plan
from paper.publish import Data, footer, percent, table
from paper.work import Work


def cells4(plan: Plan) -> list[Cell]:
    """The cells of Figure 4: codes changed in each domain, by the encoders of the first seed."""
    method = Method(CRAFT, plan.surrogates[0])
    return [
        Cell("codes", domain, plan.seeds[0], method.model, method, domain, plan.limit)
        for domain in plan.domains
    ]


def measure4(work: Work) -> Data:
    """The first test image of each domain with the base and the adapted tower, and the codes changed."""
    images, changed = [], []
    for cell in cells4(work.plan):
        changed.append({"domain": cell.domain, **fill(work, cell)})
        images += _shown(work, cell, encoder=work.encoder(cell.domain, cell.seed).folder)
    return {"images": images, "changed": changed, "keep": list(KEEP)}


def measure7(work: Work) -> Data:
    """The first test image of each domain with the base tower."""
    return {"images": [one for cell in cells4(work.plan) for one in _shown(work, cell)], "keep": []}


def _shown(work: Work, cell: Cell, encoder: Path | None = None) -> list[Data]:
    picture = work.samples(cell)[0]
    model = work.lvlm(work.plan.surrogates[0])
    shown = show([picture.image], model, encoder, KEEP, work.plan.work / "show" / plain(cell.domain))
    return [image_json(image, f"{cell.domain}: {picture.answer_text}") for image in shown.images]


def image_json(image: ShownImage, title: str) -> Data:
    """An image with its maps as JSON."""
    buffer = io.BytesIO()
    Image.fromarray(image.pixels).save(buffer, format="PNG")

    def listed(values: np.ndarray | None) -> list[Any] | None:
        return None if values is None else values.tolist()

    maps = [
        {"tower": code_map.tower, "codes": code_map.codes[:, 0].tolist()}
        | {name: listed(getattr(code_map, name)) for name in ("share", "rank")}
        for code_map in image.maps
    ]
    picture = base64.b64encode(buffer.getvalue()).decode("ascii")
    return {"title": title, "grid": list(image.grid), "pixels": picture, "maps": maps}


def image_of(record: Data) -> ShownImage:
    """The image that `image_json` wrote, with level-1 codes only."""

    def array(values: Any, dtype: Any) -> np.ndarray | None:
        return None if values is None else np.asarray(values, dtype=dtype)

    maps = [
        CodeMap(
            tower=one["tower"],
            codes=np.asarray(one["codes"], dtype=np.int64)[:, None],
            residual=np.zeros(len(one["codes"])),
            share=array(one["share"], np.float64),
            rank=array(one["rank"], np.int64),
        )
        for one in record["maps"]
    ]
    pixels = np.asarray(lazy_image(io.BytesIO(base64.b64decode(record["pixels"]))).convert("RGB"))
    rows, columns = record["grid"]
    return ShownImage(record["title"], pixels, (rows, columns), maps)


def draw(data: Data, path: Path) -> list[Path]:
    """One PNG per image: NAME-1.png, NAME-2.png, …"""
    return [
        draw_codes(path.with_name(f"{path.stem}-{number}.png"), image_of(record), data["keep"])
        for number, record in enumerate(data["images"], start=1)
    ]


def page4(data: Data) -> str:
    """Figure 4 as Markdown."""
    rows = []
    for one in data["changed"]:
        shares = (percent([one[name]]) for name in ("first", "all"))
        rows.append([one["domain"], *shares, str(one["used_before"]), str(one["used"])])
    parts = [
        "# Figure 4: which tokens remain\n",
        "Level-1 codes over the first test picture of each domain, repeats in one colour; how rare each "
        "code is in the domain's training pictures; what pruning keeps. Above the base tower, below the "
        "adapted one.\n",
        *_images(data, "fig4"),
        "How many codes of the test pictures the adapted tower changed, in percent, and how many "
        "different level-1 codes are in them:\n",
        table(["domain", "level 1", "all levels", "codes before", "after"], rows) + "\n",
        footer(data, one_seed=True),
    ]
    return "\n".join(parts)


def page7(data: Data) -> str:
    """Figure 7 as Markdown."""
    parts = [
        "# Figure 7: codes of pictures\n",
        "Level-1 codes under the base tower over the first test picture of each domain; those that repeat in "
        "one colour, and how rare each is in the model's own prior.\n",
        *_images(data, "fig7"),
        footer(data, one_seed=True),
    ]
    return "\n".join(parts)


def _images(data: Data, name: str) -> list[str]:
    return [
        f"![{image['title']}]({name}-{number}.png)\n" for number, image in enumerate(data["images"], start=1)
    ]
