"""`craft data list`, `check`, `prepare` and `stats`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cyclopts import Parameter

from craft.cli.options import COMMON, Common, Flag, Several
from craft.cli.output import listed, show_json, show_line, show_pairs, show_table, show_text
from craft.core.errors import ConfigError
from craft.core.files import write_json
from craft.core.lock import locked

_MOST_LISTED = 8
"""The most classes that `stats` lists."""


@Parameter(name="*")
@dataclass(frozen=True)
class Source:
    """How to read the data.

    Attributes:
        root: the folder of a benchmark; otherwise the folder that relative paths in the data start from.
        domain: in words, what the images of your own data show.
        column: CRAFT=YOURS for a table whose columns have other names, as in --column answer=caption.
        white_level: the value that is white in images of more than 8 bits (4095 for 12 bits); by default what
            all of them together need. `craft data prepare` records it.
        splits: NAME=SPLIT: what splits with other names are (train, validation, test, or none: not read).
        partial: accept a copy of a benchmark with fewer classes than the benchmark has; reports say so.
    """

    root: str | None = None
    domain: str | None = None
    column: Several = None
    white_level: float | None = None
    splits: Several = None
    partial: Flag = False

    def reading(self) -> dict[str, Any]:
        """`--splits` and `--partial` as arguments of `read_data`."""
        return {"splits": self.splits or (), "partial": self.partial}

    def columns(self) -> dict[str, str] | None:
        """`--column` as a mapping from CRAFT's fields to the table's columns.

        Raises:
            ConfigError: an entry is not of that form, or names a field that rows do not have.
        """
        if not self.column:
            return None
        from craft.data.readers.rows import OPTIONAL, REQUIRED

        known = (*REQUIRED, *OPTIONAL, "conversations", "messages", "images")
        columns = {}
        for entry in self.column:
            field, equals, column = entry.partition("=")
            if not equals or not column:
                raise ConfigError(
                    f"--column takes CRAFT=YOURS, as in --column answer=caption, not {entry!r}."
                )
            if field not in known:
                raise ConfigError(
                    f"--column {entry}: there is no field '{field}'; there are {', '.join(known)}."
                )
            columns[field] = column
        return columns


@Parameter(name="*")
@dataclass(frozen=True)
class Preparation:
    """What `craft data prepare` adds or chooses.

    Attributes:
        texts: JSONL files with captions and statements for the contrastive loss (`craft data captions`).
        options: wrong options in FOCI's format, used unchanged (`craft data options`).
        train_limit: train on at most this many images, with all their questions (OCR-VQA: 30000 by default,
            as in the paper).
        download: fetch images that are given as URLs.
        split_seed: the seed of the division into training and test, if the data has none.
        allow_outside: allow a table to name images outside its folder (or --root), also by links.
    """

    texts: Several = None
    options: Path | None = None
    train_limit: int | None = None
    download: Flag = False
    split_seed: int = 0
    allow_outside: Flag = False


def list_domains(*, common: Common = COMMON) -> None:
    """List the embedded domains, which need no download, and the benchmarks of the paper, which do."""
    from craft.data import BENCHMARKS, catalogue

    rows = catalogue()
    shared = ("classes", "counted", "task", "licence", "source", "get", "hub")
    benchmarks = [
        {
            "name": name,
            "needs": "--root",
            "train": benchmark.sizes.get("train"),
            "test": benchmark.sizes.get("test"),
            "images": benchmark.sizes.get("all"),
            **{key: getattr(benchmark, key) for key in shared},
        }
        for name, benchmark in BENCHMARKS.items()
    ]
    if common.json:
        show_json([*rows, *benchmarks])
        return
    columns = ("name", "train", "test", "classes", "licence", "source")
    prose = ("licence", "source")
    show_table("Embedded domains", columns, [[row[name] for name in columns] for row in rows], prose=prose)
    cells = []
    for row in benchmarks:
        sizes = (row["train"], row["test"]) if row["train"] else (f"{row['images']} in all", "-")
        numbers = [str(size) for size in sizes]
        if row["counted"] == "images":
            numbers = [f"{size} images" for size in numbers]
        cells.append([row["name"], *numbers, str(row["classes"] or "-"), row["licence"], row["source"]])
    show_table("Benchmarks: --data NAME --root DIR", columns, cells, prose=prose)
    show_text(
        "`craft data check NAME` says how to get a benchmark. You can also use your own images: --data\n"
        "with a folder of class folders (directly or under train/, test/), or a table of questions (.jsonl,\n"
        ".csv, .parquet). `craft data prepare` writes tars and data sets of the Hugging Face hub to a folder."
    )


def check(
    data: str,
    *,
    source: Source = Source(),
    answer_with: Literal["letter", "option"] = "option",
    unseen_fraction: float = 0.2,
    decode: bool = True,
    model: str = "craft-tiny/qwen2",
    common: Common = COMMON,
) -> None:
    """Read a data set as `craft adapt` does, open every image, and report what it contains.

    Args:
        data: an embedded domain, a benchmark, a folder of class folders, a table of questions, or a folder
            that `craft data prepare` wrote.
        answer_with: ask for the option's letter, or its text.
        unseen_fraction: the share of the classes that is held out of training.
        decode: open every image; --no-decode only reads and compares the files.
        model: the model whose tokenizer measures answers: shipped, or a folder.
    """
    from craft.data import BENCHMARKS, check_data, read_data
    from craft.data.check import answer_tokens
    from craft.data.compose import Composition, compose, whole
    from craft.data.levels import levelled, with_white
    from craft.data.sample import distinct
    from craft.data.stats import expected

    raw = read_data(data, source.root, source.domain, source.columns(), **source.reading())
    raw = levelled(with_white(raw, source.white_level))
    composition = Composition(common.seed or 0, answer_with, unseen_fraction=unseen_fraction)
    composed = compose(raw, composition)
    everything = whole(raw)
    tokens = answer_tokens(model)
    findings = check_data(everything, decode, tokens=tokens, letters=answer_with == "letter")
    composed.hashes = everything.hashes  # no image is read twice
    notes = list(composed.notes)
    if data in BENCHMARKS:
        notes += expected(everything, BENCHMARKS[data])
    sample = composed.all_samples()[0]
    summary: dict[str, Any] = {
        "name": composed.name,
        "task": composed.task,
        "domain": composed.domain,
        "images": len(distinct(everything.all_samples())),
        "train": len(composed.train),
        "validation": len(composed.validation),
        "test": len(composed.test),
        "classes": list(composed.classes),
        "held_out": list(composed.held_out),
        "licence": composed.licence,
        "fingerprint": composed.fingerprint,
    }
    if common.json:
        example = {"prompt": sample.prompt(), "answer": sample.answer}
        rows = [finding.__dict__ for finding in findings]
        show_json({**summary, "findings": rows, "notes": notes, "example": example})
        return
    pairs = {name.replace("held_out", "held out"): value for name, value in summary.items()}
    show_pairs({name: listed(value) if isinstance(value, list) else value for name, value in pairs.items()})
    for note in notes:
        show_line(f"note: {note}")
    for finding in findings:
        where = f" ({listed(finding.where)}{' …' if finding.count > len(finding.where) else ''})"
        show_line(
            f"{'warning' if finding.warning else 'note'}: {finding.text}{where if finding.where else ''}"
        )
    show_line()
    show_line("One of its questions:")
    show_text(sample.prompt())
    show_line(f"-> {sample.answer}")


def prepare(
    data: str,
    *,
    out: Path | None = None,
    source: Source = Source(),
    preparation: Preparation = Preparation(),
    common: Common = COMMON,
) -> None:
    """Write any data set to a folder: samples, splits, texts, image hashes, fingerprint.

    You can use this folder like any other data: `craft adapt … --data FOLDER`.

    Args:
        data: as for `craft data check`; also a tar in WebDataset's layout, a folder of them, or a data set of
            the Hugging Face hub, hub:OWNER/NAME. For a hub copy of a benchmark: NAME --root hub:OWNER/NAME.
        out: the folder to write; by default prepared/ and the data's name.
    """
    from craft.data import Wanted
    from craft.data import prepare as run
    from craft.data.load import prepared_folder

    wanted = Wanted(
        domain=source.domain,
        columns=source.columns(),
        texts=[Path(path) for path in preparation.texts or ()],
        options=preparation.options,
        train_limit=preparation.train_limit,
        download=preparation.download,
        split_seed=preparation.split_seed,
        allow_outside=preparation.allow_outside,
        white_level=source.white_level,
        **source.reading(),
    )
    manifest = run(data, source.root, out or prepared_folder(data), wanted)
    about = manifest.about
    if common.json:
        show_json({"out": str(manifest.path), **about})
        return
    show_pairs(
        {
            "manifest": manifest.path,
            "splits": ", ".join(f"{name} {count}" for name, count in about["splits"].items()),
            "split rule": about["split_rule"],
            "images": about["images"],
            "classes": len(about["classes"]),
            "fingerprint": about["fingerprint"],
        }
    )
    for note in about["notes"]:
        show_line(f"note: {note}")
    show_line()
    show_line(f"Next: craft adapt craft-tiny/qwen2 --data {manifest.path} --out DIR")


def stats(
    data: str,
    *,
    source: Source = Source(),
    out: Path | None = None,
    common: Common = COMMON,
) -> None:
    """Count classes, sizes and lengths; with --out also draw them, and a contact sheet.

    Args:
        data: as for `craft data check`.
        out: a folder for stats.json, stats.png and contact_sheet.png.
    """
    from craft.data import contact_sheet, data_stats, draw_stats, load_data, showcase

    with locked(out):
        loaded = load_data(
            data,
            source.root,
            common.seed or 0,
            unseen_fraction=0,
            domain=source.domain,
            columns=source.columns(),
            white_level=source.white_level,
            **source.reading(),
        )
        counts = data_stats(loaded)
        if out is not None:
            write_json(out / "stats.json", counts)
            draw_stats(loaded, out / "stats.png")
            contact_sheet(showcase(loaded), out / "contact_sheet.png")
    if common.json:
        show_json(counts)
        return
    classes = list(counts["classes"].items())
    show_pairs(
        {
            "name": counts["name"],
            **{name: count for name, count in counts["splits"].items()},
            "images": counts["images"],
            "classes": listed([f"{name} {count}" for name, count in classes], _MOST_LISTED),
            "kinds": ", ".join(f"{name} {count}" for name, count in counts["kinds"].items()),
            "options": ", ".join(f"{number}: {count}" for number, count in counts["options"].items()),
        }
    )
    names = ("width", "height", "question words", "prompt words", "answer words")
    rows = [(name, *(f"{counts[name][key]:g}" for key in ("least", "median", "most"))) for name in names]
    show_table("", ("measure", "least", "median", "most"), rows)
    if out is not None:
        show_line(f"drawn: {out / 'stats.png'}, {out / 'contact_sheet.png'}")
