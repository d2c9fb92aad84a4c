"""`craft data list` and `craft data check`."""

from pathlib import Path
from typing import Any, Literal

from craft.cli.options import COMMON, Common
from craft.cli.show import listed, show_json, show_pairs, show_table


def list_domains(*, common: Common = COMMON) -> None:
    """The embedded domains: small sets of real images that need no download."""
    from craft.data import catalogue

    rows = catalogue()
    if common.json:
        show_json(rows)
        return
    columns = ("name", "train", "test", "classes", "licence", "source")
    show_table("Embedded domains", columns, [[str(row[name]) for name in columns] for row in rows])
    print(
        "Or your own: --data FOLDER (class folders, directly or under train/ and test/), or --data FILE.jsonl"
    )


def check(
    data: str,
    *,
    root: Path | None = None,
    answer_with: Literal["letter", "option"] = "option",
    unseen_fraction: float = 0.2,
    common: Common = COMMON,
) -> None:
    """Read a data set as `craft adapt` would, open every picture, and say what it holds.

    Args:
        data: an embedded domain, a folder of class folders, or a .jsonl file.
        root: the folder that relative paths in the data start from.
        answer_with: ask for the option's letter, or its text.
        unseen_fraction: share of the classes that are held out of training.
    """
    from craft.data import load_data, verify_images

    given = load_data(data, root, common.seed or 0, answer_with, unseen_fraction=unseen_fraction)
    everything = load_data(data, root, common.seed or 0, answer_with, unseen_fraction=0)
    images = verify_images(everything)
    sample = given.all_samples()[0]
    found: dict[str, Any] = {
        "name": given.name,
        "task": given.task,
        "domain": given.domain,
        "images": images,
        "train": len(given.train),
        "validation": len(given.validation),
        "test": len(given.test),
        "classes": list(given.classes),
        "held_out": list(given.held_out),
        "licence": given.licence,
        "fingerprint": given.fingerprint,
    }
    if common.json:
        show_json({**found, "example": {"prompt": sample.prompt(), "answer": sample.answer}})
        return
    shown = {name.replace("held_out", "held out"): value for name, value in found.items()}
    show_pairs({name: listed(value) if isinstance(value, list) else value for name, value in shown.items()})
    print("\nA question of it:")
    print(sample.prompt())
    print(f"-> {sample.answer}")
