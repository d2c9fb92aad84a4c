"""`craft data list`, `check`, `prepare` and `stats`."""

from pathlib import Path
from typing import Any, Literal

from craft.cli.options import COMMON, Common, Flag, Several
from craft.cli.output import listed, show_json, show_pairs, show_table

_WIDE = 8
"""Classes that `stats` lists at most."""


def list_domains(*, common: Common = COMMON) -> None:
    """The embedded domains, which need no download, and the benchmarks of the paper, which you must have."""
    from craft.data import BENCHMARKS, catalogue

    rows = catalogue()
    benchmarks = [
        {
            "name": name,
            "needs": "--root",
            "train": it.sizes.get("train"),
            "test": it.sizes.get("test"),
            "images": it.sizes.get("all"),
            "classes": it.classes,
            "counted": it.counted,
            "task": it.task,
            "licence": it.licence,
            "source": it.source,
            "get": it.get,
            "hub": list(it.hub),
        }
        for name, it in BENCHMARKS.items()
    ]
    if common.json:
        show_json([*rows, *benchmarks])
        return
    columns = ("name", "train", "test", "classes", "licence", "source")
    show_table("Embedded domains", columns, [[str(row[name]) for name in columns] for row in rows])
    cells = []
    for row in benchmarks:
        sizes = (row["train"], row["test"]) if row["train"] else (f"{row['images']} in all", "-")
        numbers = [str(size) for size in sizes]
        if row["counted"] == "images":
            numbers = [f"{size} images" for size in numbers]
        cells.append([row["name"], *numbers, str(row["classes"] or "-"), row["licence"], row["source"]])
    show_table("Benchmarks: --data NAME --root DIR", columns, cells)
    print(
        "`craft data check NAME` says how to get a benchmark. Or your own pictures: --data FOLDER (class\n"
        "folders, directly or under train/, test/), or a table of questions (.jsonl, .csv, .parquet, .tar)."
    )


def check(
    data: str,
    *,
    root: str | None = None,
    domain: str | None = None,
    column: Several = None,
    answer_with: Literal["letter", "option"] = "option",
    unseen_fraction: float = 0.2,
    decode: bool = True,
    common: Common = COMMON,
) -> None:
    """Read a data set as `craft adapt` would, open every picture, and say what it holds and what to know.

    Args:
        data: an embedded domain, a benchmark, a folder of class folders, a table of questions, a folder of
            `craft data prepare`, or hub:OWNER/NAME.
        root: where a benchmark lies (or hub:OWNER/NAME); else what relative paths in the data start from.
        domain: what the pictures are of, in words, for data of your own.
        column: OURS=THEIRS for a table whose columns have other names, as in --column answer=caption.
        answer_with: ask for the option's letter, or its text.
        unseen_fraction: share of the classes that are held out of training.
        decode: open every picture; --no-decode only reads and compares the files.
    """
    from craft.data import BENCHMARKS, check_data, read_data
    from craft.data.check import distinct
    from craft.data.load import compose, whole
    from craft.data.stats import expected

    raw, seed = read_data(data, root, domain, columns_of(column)), common.seed or 0
    given = compose(raw, seed, answer_with, unseen_fraction=unseen_fraction)
    everything = whole(raw)
    findings = check_data(everything, decode)
    given.hashes = everything.hashes  # no picture is read twice
    missing = expected(everything, BENCHMARKS[data]) if data in BENCHMARKS else []
    sample = given.all_samples()[0]
    found: dict[str, Any] = {
        "name": given.name,
        "task": given.task,
        "domain": given.domain,
        "images": len(distinct(everything.all_samples())),
        "train": len(given.train),
        "validation": len(given.validation),
        "test": len(given.test),
        "classes": list(given.classes),
        "held_out": list(given.held_out),
        "licence": given.licence,
        "fingerprint": given.fingerprint,
    }
    if common.json:
        told = [finding.__dict__ for finding in findings]
        example = {"prompt": sample.prompt(), "answer": sample.answer}
        show_json({**found, "findings": told, "notes": [*given.notes, *missing], "example": example})
        return
    shown = {name.replace("held_out", "held out"): value for name, value in found.items()}
    show_pairs({name: listed(value) if isinstance(value, list) else value for name, value in shown.items()})
    for note in [*given.notes, *missing]:
        print(f"note: {note}")
    for finding in findings:
        where = f" ({listed(finding.where)}{' …' if finding.count > len(finding.where) else ''})"
        print(f"{'warning' if finding.warning else 'note'}: {finding.text}{where if finding.where else ''}")
    print("\nA question of it:")
    print(sample.prompt())
    print(f"-> {sample.answer}")


def prepare(
    data: str,
    *,
    out: Path | None = None,
    root: str | None = None,
    domain: str | None = None,
    column: Several = None,
    texts: Several = None,
    options: Path | None = None,
    train_limit: int | None = None,
    limit_by: Literal["image", "question"] = "image",
    download: Flag = False,
    split_seed: int = 0,
    common: Common = COMMON,
) -> None:
    """Write any data set as one manifest: samples, splits, texts, image hashes, fingerprint.

    The folder it writes is data like any other: `craft adapt … --data FOLDER`.

    Args:
        data: as for `craft data check`.
        out: the manifest's folder; by default prepared/ and the data's name.
        root: where a benchmark lies (or hub:OWNER/NAME); else what relative paths in the data start from.
        domain: what the pictures are of, in words, for data of your own.
        column: OURS=THEIRS for a table whose columns have other names, as in --column answer=caption.
        texts: JSONL files with captions and statements for the contrastive loss (`craft data captions`).
        options: wrong options in FOCI's format, taken as they are (`craft data options`).
        train_limit: at most so many training samples (OCR-VQA: 30000 by default, as in the paper).
        limit_by: whether --train-limit counts images, with all their questions, or questions.
        download: fetch pictures that are given as URLs.
        split_seed: of the division into training and test where the data names none.
    """
    from craft.data import TrainLimit, Wanted
    from craft.data import prepare as run
    from craft.data.load import short_name

    wanted = Wanted(
        domain=domain,
        columns=columns_of(column),
        texts=[Path(path) for path in texts or ()],
        options=options,
        train_limit=None if train_limit is None else TrainLimit(train_limit, limit_by),
        download=download,
        split_seed=split_seed,
    )
    done = run(data, root, out or Path("prepared") / short_name(data), wanted)
    if common.json:
        show_json({"out": str(done.path), **done.about})
        return
    about = done.about
    show_pairs(
        {
            "manifest": done.path,
            "splits": ", ".join(f"{name} {count}" for name, count in about["splits"].items()),
            "split rule": about["split_rule"],
            "images": about["images"],
            "classes": len(about["classes"]),
            "fingerprint": about["fingerprint"],
        }
    )
    for note in about["notes"]:
        print(f"note: {note}")
    print(f"\nNext: craft adapt craft-tiny/qwen2 --data {done.path} --out DIR")


def stats(
    data: str,
    *,
    root: str | None = None,
    domain: str | None = None,
    column: Several = None,
    out: Path | None = None,
    common: Common = COMMON,
) -> None:
    """Count classes, sizes and lengths; with --out also draw them, and a contact sheet.

    Args:
        data: as for `craft data check`.
        root: where a benchmark lies (or hub:OWNER/NAME); else what relative paths in the data start from.
        domain: what the pictures are of, in words, for data of your own.
        column: OURS=THEIRS for a table whose columns have other names.
        out: a folder for stats.json, stats.png and contact_sheet.png.
    """
    from craft.core.files import check_writable, write_json
    from craft.data import contact_sheet, data_stats, draw_stats, load_data, showcase

    if out is not None:
        check_writable(out / "stats.json")
    given = load_data(
        data, root, common.seed or 0, unseen_fraction=0, domain=domain, columns=columns_of(column)
    )
    found = data_stats(given)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / "stats.json", found)
        draw_stats(given, out / "stats.png")
        contact_sheet(showcase(given), out / "contact_sheet.png")
    if common.json:
        show_json(found)
        return
    classes = list(found["classes"].items())
    show_pairs(
        {
            "name": found["name"],
            **{name: count for name, count in found["splits"].items()},
            "images": found["images"],
            "classes": listed([f"{name} {count}" for name, count in classes], _WIDE),
            "kinds": ", ".join(f"{name} {count}" for name, count in found["kinds"].items()),
            "options": ", ".join(f"{number}: {count}" for number, count in found["options"].items()),
        }
    )
    names = ("width", "height", "question words", "prompt words", "answer words")
    rows = [(name, *(f"{found[name][key]:g}" for key in ("least", "median", "most"))) for name in names]
    show_table("", ("", "least", "median", "most"), rows)
    if out is not None:
        print(f"drawn: {out / 'stats.png'}, {out / 'contact_sheet.png'}")


def columns_of(given: list[str] | None) -> dict[str, str] | None:
    """`--column OURS=THEIRS` as a mapping.

    Raises:
        ConfigError: an entry is not of that form, or names a field that rows do not have.
    """
    if not given:
        return None
    from craft.core.errors import ConfigError
    from craft.data.questions import OPTIONAL, REQUIRED

    found = {}
    for entry in given:
        ours, equals, theirs = entry.partition("=")
        if not equals or not theirs:
            raise ConfigError(f"--column takes OURS=THEIRS, as in --column answer=caption, not {entry!r}.")
        if ours not in (known := (*REQUIRED, *OPTIONAL, "conversations", "messages", "images")):
            raise ConfigError(f"--column {entry}: there is no field '{ours}'; there are {', '.join(known)}.")
        found[ours] = theirs
    return found
