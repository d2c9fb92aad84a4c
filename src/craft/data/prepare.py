"""`craft data prepare`: settle everything about a data set once, and write it to a local folder."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from craft.core.files import user_path
from craft.core.lock import locked
from craft.data.additions import with_options, with_texts
from craft.data.benchmarks import BENCHMARKS
from craft.data.download import download
from craft.data.levels import with_white
from craft.data.load import Reading, as_setting, read_data
from craft.data.manifest import Prepared, check_free, write_manifest
from craft.data.readers.hub import HUB, hub_folder
from craft.data.sample import Raw
from craft.data.splits import TEST_FRACTION, SplitNames, divide, split_names


@dataclass(frozen=True)
class Wanted:
    """What `prepare` is to add or choose.

    Attributes:
        domain: what the images are of, in words, for data of your own.
        columns: CRAFT's field -> the table's column.
        texts: JSONL files of {"id" or "image", "captions" and/or "statement"}: see `with_texts`.
        options: an option file in FOCI's format: see `with_options`.
        train_limit: train on at most this many images, instead of the benchmark's own limit.
        download: fetch images that are given as URLs.
        split_seed: the seed of the division into training and test, if the source has none.
        allow_outside: allow a table to name images outside its folder (or `root`), also by links.
        white_level: the value that is white in images of more than 8 bits.
        splits, partial: as in `load_data`.
    """

    domain: str | None = None
    columns: Mapping[str, str] | None = None
    texts: Sequence[Path] = ()
    options: Path | None = None
    train_limit: int | None = None
    download: bool = False
    split_seed: int = 0
    allow_outside: bool = False
    white_level: float | None = None
    splits: Sequence[str] = ()
    partial: bool = False


def prepare(
    data: str | Path,
    root: str | Path | None,
    out: str | Path,
    wanted: Wanted = Wanted(),
    progress: bool = True,
) -> Prepared:
    """Read a data set, divide it, add texts and options, and write its manifest.

    In addition to what `load_data` reads, `data` may be a tar in WebDataset's layout, a folder of them, or a
    data set of the Hugging Face hub ("hub:OWNER/NAME"); and `root` may be a hub copy of a benchmark.
    Downloaded images stay next to the manifest, in `OUT-pictures`, so that an interrupted download
    continues.

    Raises:
        DataError: as `load_data`; a hub data set that cannot be downloaded; texts or options that belong to
            no sample; a URL that gives no image; images outside the table's folder; an image that must be
            written to a file and cannot be opened.
        ConfigError: `out` cannot be written.
    """
    out = user_path(out)
    with locked(out, beside=True):
        return _prepare(data, root, out, wanted, progress)


def _prepare(
    data: str | Path, root: str | Path | None, out: Path, wanted: Wanted, progress: bool
) -> Prepared:
    check_free(out)
    fetch = partial(download, folder=out.with_name(f"{out.name}-pictures")) if wanted.download else None
    data, root = _fetched(as_setting(data), root, split_names(wanted.splits))
    raw = read_data(
        data,
        root,
        wanted.domain,
        wanted.columns,
        reading=Reading(fetch, tars=True, outside=wanted.allow_outside),
        splits=wanted.splits,
        partial=wanted.partial,
    )
    raw = with_white(raw, wanted.white_level)
    if wanted.train_limit is not None:
        raw.train_limit = wanted.train_limit
    for path in wanted.texts:
        raw.samples = with_texts(raw.samples, path)
    if wanted.options is not None:
        raw.samples = with_options(raw.samples, wanted.options)
    official = any(sample.split == "test" for sample in raw.samples)
    parts = divide(raw, wanted.split_seed)
    return write_manifest(raw, parts, out, _rule(raw, official, wanted.split_seed), progress)


def _fetched(data: str, root: str | Path | None, names: SplitNames) -> tuple[str, str | Path | None]:
    """Data and root with the local folder of a hub data set instead of its name."""
    if data in BENCHMARKS and str(root or "").startswith(HUB):
        BENCHMARKS[data].refuse_copy(str(root).removeprefix(HUB))
        return data, hub_folder(str(root), names)
    if data.startswith(HUB):
        return str(hub_folder(data, names)), root
    return data, root


def _rule(raw: Raw, official: bool, seed: int) -> str:
    """How the splits came about, in words."""
    drawn = f"stratified: {TEST_FRACTION:.0%} of the pictures for testing, seed {seed}"
    rule = "the source's own" if official else drawn
    if raw.train_limit is not None:
        rule += f"; at most {raw.train_limit} training images, seed {seed}"
    return rule
