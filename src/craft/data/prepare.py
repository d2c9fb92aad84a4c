"""`craft data prepare`: settle everything about a data set once, and write it as a manifest."""

import hashlib
import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from craft.core.errors import DataError
from craft.core.files import atomic_write_bytes, user_path
from craft.data.benchmarks.classes import squeezed
from craft.data.folder import is_text
from craft.data.load import read_data
from craft.data.manifest import Prepared, write_manifest
from craft.data.raw import Raw, TrainLimit
from craft.data.sample import Sample
from craft.data.splits import TEST_FRACTION, divide
from craft.data.tables import parse

DOWNLOAD_MOST, DOWNLOAD_TIMEOUT = 64 * 2**20, 30.0
"""Most bytes of one downloaded picture, and seconds to wait for its server."""


@dataclass(frozen=True)
class Wanted:
    """What `prepare` is to add or choose.

    Attributes:
        domain: what the images are of, in words, for data of your own.
        columns: our field -> the table's column.
        texts: JSONL files of {"id" or "image", "captions" and/or "statement"}: see `with_texts`.
        options: an option file in FOCI's format: see `with_options`.
        train_limit: a subset of the training samples, instead of the benchmark's own.
        download: fetch pictures that are given as URLs.
        split_seed: of the division into training and test, where the source names none.
    """

    domain: str | None = None
    columns: Mapping[str, str] | None = None
    texts: Sequence[Path] = ()
    options: Path | None = None
    train_limit: TrainLimit | None = None
    download: bool = False
    split_seed: int = 0


def prepare(
    data: str | Path,
    root: str | Path | None,
    out: str | Path,
    wanted: Wanted = Wanted(),
    progress: bool = True,
) -> Prepared:
    """Read a data set, divide it, add texts and options, and write its manifest.

    Downloaded pictures are kept beside the manifest, in `OUT-pictures`, so that an interrupted download goes
    on where it stopped.

    Raises:
        DataError: as `load_data`; texts or options that belong to no sample; a URL that gives no picture.
        ConfigError: `out` cannot be written.
    """
    out = user_path(out)
    fetch = Downloads(out.with_name(f"{out.name}-pictures")) if wanted.download else None
    raw = read_data(data, root, wanted.domain, wanted.columns, fetch)
    if wanted.train_limit is not None:
        raw.train_limit = wanted.train_limit
    for path in wanted.texts:
        raw.samples = with_texts(raw.samples, path)
    if wanted.options is not None:
        raw.samples = with_options(raw.samples, wanted.options)
    official = any(sample.split == "test" for sample in raw.samples)
    parts = divide(raw, wanted.split_seed)
    return write_manifest(raw, parts, out, _rule(raw, official, wanted.split_seed), progress)


def _rule(raw: Raw, official: bool, seed: int) -> str:
    ours = f"stratified: {TEST_FRACTION:.0%} of the pictures for testing, seed {seed}"
    rule = "the source's own" if official else ours
    if raw.train_limit is not None:
        rule += f"; at most {raw.train_limit.count} training {raw.train_limit.by}s, seed {seed}"
    return rule


class Downloads:
    """Fetches pictures into a folder, each once.

    Args:
        folder: where they are kept; made when needed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, url: str) -> Path:
        """The file with the picture of a URL.

        Raises:
            DataError: the server does not answer, refuses, or sends too much or too little.
        """
        path = self.folder / hashlib.sha256(url.encode("utf-8")).hexdigest()[:32]
        if path.is_file():
            return path
        try:
            request = urllib.request.Request(url, headers={"User-Agent": "craft"})
            with urllib.request.urlopen(request, timeout=DOWNLOAD_TIMEOUT) as answer:
                content = answer.read(DOWNLOAD_MOST + 1)
                left = answer.length or 0
        except (urllib.error.URLError, http.client.HTTPException, OSError, ValueError) as error:
            raise DataError(f"{url} cannot be downloaded ({error}). Remove it, or try again.") from error
        if len(content) > DOWNLOAD_MOST:
            raise DataError(f"{url} sends more than {DOWNLOAD_MOST // 2**20} MiB; no picture is so large.")
        if left:
            raise DataError(f"{url} was cut short by {left} bytes. Try again.")
        atomic_write_bytes(path, content)
        return path


def with_texts(samples: Sequence[Sample], path: Path) -> list[Sample]:
    """Samples with the captions and statements of a JSONL file: T_i of §3.2.

    Each row names a sample by `id`, or all samples of a picture by `image` (the end of its path), and has
    `captions` (a list), `statement` (question and answer as one sentence), or both.

    Raises:
        DataError: a row is broken, or no sample is meant by it, or by the end of a path several pictures.
    """
    by_id = {sample.id: n for n, sample in enumerate(samples)}
    by_name: dict[str, list[int]] = {}
    for n, sample in enumerate(samples):
        if isinstance(sample.image, str):
            by_name.setdefault(Path(sample.image).name, []).append(n)
    changed = list(samples)
    for origin, row in _json_lines(path):
        if "id" in row:
            chosen = [by_id[str(row["id"])]] if str(row["id"]) in by_id else []
        else:
            name = str(row.get("image", ""))
            chosen = _called(samples, by_name.get(Path(name).name, ()), name)
            if len({str(samples[n].image) for n in chosen}) > 1:
                raise DataError(f"{origin}: several pictures are called {name}; name their folder too.")
        if not chosen:
            raise DataError(f"{origin}: no sample has the id or image {row.get('id', row.get('image'))!r}.")
        captions, statement = row.get("captions", []), row.get("statement", "")
        if not isinstance(captions, list) or not all(isinstance(text, str) for text in captions):
            raise DataError(f"{origin}: 'captions' must be a list of texts.")
        if not isinstance(statement, str):
            raise DataError(f"{origin}: 'statement' must be a text.")
        if not all(map(is_text, (*captions, statement))):
            raise DataError(f"{origin}: a text holds half a character. Correct it.")
        for n in chosen:
            old = changed[n]
            added = dict.fromkeys(text.strip() for text in captions if text.strip())
            new = (text for text in added if text not in old.captions)
            changed[n] = replace(old, captions=(*old.captions, *new), text=statement.strip() or old.text)
    return changed


def with_options(samples: Sequence[Sample], path: Path) -> list[Sample]:
    """Labelled samples with the wrong options of a file in FOCI's format, taken as they are:
    {class: [{"image", "options": [right, wrong, ...], "groundtruth"}]}.

    Pictures are found by the end of their path; a bare name that several have means the test picture (FOCI's
    own files are about those). Samples that the file does not name get drawn options.

    Raises:
        DataError: not of that format, a class that the data has not, a name that several pictures have, or
            no picture in common.
    """
    try:
        told = parse(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"the option file {path} cannot be read as JSON ({error}).") from error
    labels = sorted({sample.label for sample in samples if sample.label is not None})
    classes = {squeezed(label): label for label in labels} | {label: label for label in labels}
    by_name: dict[str, list[int]] = {}
    for n, sample in enumerate(samples):
        by_name.setdefault(Path(str(sample.image)).name, []).append(n)

    def known(name: Any) -> str:
        found = classes.get(name) or classes.get(squeezed(name)) if isinstance(name, str) else None
        if found is None:
            raise DataError(f"{path}: the option {name!r} is not a class of this data.")
        return found

    changed, used = list(samples), False
    for entries in told.values() if isinstance(told, dict) else [None]:
        for entry in entries if isinstance(entries, list) else [None]:
            if not isinstance(entry, dict) or not {"image", "options"} <= entry.keys():
                raise DataError(
                    f"{path} is not an option file of FOCI's format: "
                    '{class: [{"image": …, "options": [right, wrong, …]}]}.'
                )
            right, *wrong = map(known, entry["options"])
            name = str(entry["image"])
            meant = _called(samples, by_name.get(Path(name).name, ()), name)
            meant = [n for n in meant if samples[n].split == "test"] if len(meant) > 1 else meant
            if len({str(samples[n].image) for n in meant}) > 1:
                raise DataError(f"{path}: several pictures are called {name}; name their folder too.")
            for n in meant:
                if right != samples[n].label:
                    raise DataError(
                        f"{path} says that {name} is '{right}'; the data says '{samples[n].label}'."
                    )
                changed[n], used = replace(samples[n], distractors=tuple(wrong)), True
    if not used:
        raise DataError(f"{path} names no picture of this data.")
    return changed


def _called(samples: Sequence[Sample], near: Sequence[int], name: str) -> list[int]:
    """Which of the samples at these places have the picture of this path, or else one whose path ends so."""
    paths = {n: str(samples[n].image) for n in near}
    exact = [n for n, path in paths.items() if path == name]
    return exact or [n for n, path in paths.items() if f"/{path}".endswith(f"/{name.lstrip('/')}")]


def _json_lines(path: Path) -> list[tuple[str, dict[str, Any]]]:
    rows = []
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read ({error}).") from error
    for number, line in enumerate(lines, start=1):
        try:
            row = parse(line) if line.strip() else None
        except json.JSONDecodeError as error:
            raise DataError(f"{path}:{number}: not valid JSON ({error.msg}).") from error
        if row is not None and not isinstance(row, dict):
            raise DataError(f"{path}:{number}: a {type(row).__name__}, not an object.")
        if row is not None:
            rows.append((f"{path}:{number}", row))
    return rows
