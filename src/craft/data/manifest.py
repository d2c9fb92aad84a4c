"""The manifest: any data set as one list of samples with their splits, texts and image hashes.

A manifest is a folder with `samples.jsonl` (a row for each sample), `manifest.json` (what they are, and the
fingerprint of the rows) and, if images had to be unpacked, `images/`.
"""

import hashlib
import io
import json
import os
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from craft.core.errors import CheckpointError, ConfigError, DataError
from craft.core.files import atomic_directory, read_json, sha256_file, write_json
from craft.core.progress import track
from craft.core.records import Record, check_record
from craft.data.images import Packed, image_bytes, image_bytes_hash, image_key, open_image
from craft.data.problems import Problems
from craft.data.readers.tables import read_tables
from craft.data.sample import Raw, Sample, Task, distinct

MANIFEST, ROWS, IMAGES = "manifest.json", "samples.jsonl", "images"
"""The contents of a manifest's folder."""

FORMAT = 1
"""The version of the layout."""

_ENDINGS = {b"\xff\xd8\xff": ".jpg", b"\x89PNG": ".png", b"GIF8": ".gif", b"RIFF": ".webp", b"BM": ".bmp"}


class _About(Record):
    """The fields of `manifest.json` that are read. Manifests of 0.1 have no caveats."""

    name: str
    task: Task
    domain: str
    licence: str
    source: str
    root: str
    notes: list[str]
    caveats: list[str] = Field(default_factory=list)
    white_level: Annotated[float, Field(ge=1)] | None = None
    fingerprint: str


@dataclass(frozen=True)
class Prepared:
    """A written manifest.

    Attributes:
        path: its folder.
        about: the content of `manifest.json`.
    """

    path: Path
    about: dict[str, Any]


def write_manifest(
    raw: Raw, parts: Iterable[list[Sample]], out: str | Path, rule: str, progress: bool = True
) -> Prepared:
    """Write the samples of a data set, divided into splits, as a manifest.

    Images that are files stay where they are; their paths are stored relative to the folder that they
    share. If any image is not a file (but inside a parquet file, a tar or a row), or is in `out`, which is
    replaced, all are written to `images/`.

    Args:
        raw: what the data set is.
        parts: its samples by split; each sample names its split.
        out: the folder; replaced as a whole if it is a manifest already.
        rule: how the splits came about, in words.
        progress: show the progress.

    Raises:
        ConfigError: `out` cannot be written.
        DataError: an image cannot be read, or `out` is a folder of something else.
    """
    out = Path(out)
    check_free(out)
    samples = [sample for part in parts for sample in part]
    files = all(isinstance(sample.image, str) for sample in samples)
    folders = {os.path.dirname(os.path.abspath(str(sample.image))) for sample in samples} if files else set()
    files = files and not any(Path(folder).resolve().is_relative_to(out.resolve()) for folder in folders)
    root = Path(os.path.commonpath(folders)) if files else Path(".")
    with atomic_directory(out) as folder:
        images = _store(samples, raw.name, folder, root if files else None, progress)
        digest = hashlib.sha256()
        with open(folder / ROWS, "w", encoding="utf-8", newline="\n") as rows:
            for sample in samples:
                row = _row(sample, *images[image_key(sample.image)])
                line = json.dumps(row, ensure_ascii=False) + "\n"
                digest.update(line.encode("utf-8"))
                rows.write(line)
        about = {
            "format": FORMAT,
            "name": raw.name,
            "task": raw.task,
            "domain": raw.domain,
            "licence": raw.licence,
            "source": raw.source,
            "root": str(root) if files else ".",
            "splits": dict(Counter(sample.split for sample in samples)),
            "split_rule": rule,
            "split_ids": {split: _ids(samples, split) for split in sorted({s.split for s in samples})},
            "images": len(images),
            "classes": dict(sorted(Counter(s.label for s in samples if s.label is not None).items())),
            "notes": raw.notes,
            "caveats": raw.caveats,
            "fingerprint": digest.hexdigest(),
        }
        if raw.white_level is not None:
            about["white_level"] = raw.white_level
        write_json(folder / MANIFEST, about)
    return Prepared(out, about)


def check_free(out: Path) -> None:
    """Check that a folder may be replaced by a manifest: it is missing, empty, or a manifest already.

    Raises:
        ConfigError: `out` is a file.
        DataError: it is a folder of something else.
    """
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file, so no folder can be written there; choose another name")
    if out.is_dir() and any(out.iterdir()) and not (out / MANIFEST).is_file():
        raise DataError(f"{out} contains other files. Choose a new folder for the manifest.")


def read_manifest(folder: Path, root: Path | None = None, outside: bool = True) -> Raw:
    """The samples of a manifest.

    Args:
        folder: its folder.
        root: the folder that image paths start from, if the images have moved.
        outside: allow image paths that leave this folder.

    Raises:
        DataError: it is of another format, its rows have changed since it was written, images are missing,
            or it has images in its rows and in files elsewhere, which `write_manifest` never writes.
    """
    try:
        about = read_json(folder / MANIFEST)
        if not isinstance(about, dict) or about.get("format") != FORMAT:
            raise DataError(
                f"{folder / MANIFEST} is not a manifest of format {FORMAT}. Run `craft data prepare` again."
            )
        about = _About(**check_record(_About, about, folder / MANIFEST, "run `craft data prepare` again"))
        fingerprint = sha256_file(folder / ROWS)
    except CheckpointError as error:
        raise DataError(f"the manifest {folder} cannot be read: {error}") from error
    if fingerprint != about.fingerprint:
        raise DataError(
            f"{folder / ROWS} has changed since it was written: its fingerprint differs from the one in "
            f"{MANIFEST}. Run `craft data prepare` again; to use rows that you edited, name the .jsonl."
        )
    base = root if root is not None else folder / about.root
    raw = read_tables([folder / ROWS], base, outside=outside)
    if base != folder / "." and not all(isinstance(sample.image, str) for sample in raw.samples):
        raise DataError(
            f"{folder} has images in its rows and in files in {base}, which no manifest of CRAFT has. "
            f"Run `craft data prepare {folder / ROWS} --root {base}`."
        )
    fields = about.model_dump(exclude={"root", "fingerprint"})
    return replace(raw, **fields)


def _row(sample: Sample, sha256: str, path: str) -> dict[str, Any]:
    """The fields of a sample as a row of a table."""
    free = bool(sample.answer) and not sample.choices  # without a directive, reading would add one
    directive = "" if free and sample.directive is None else sample.directive
    fields = {
        "id": sample.id,
        "image": path,
        "sha256": sha256,
        "split": sample.split,
        "label": sample.label,
        "question": sample.question,
        "answer": sample.answer_text if sample.answer else None,
        "choices": list(sample.choices),
        "directive": directive,
        "text": sample.texts()[0],
        "captions": list(sample.captions),
        "kind": sample.kind,
        "distractors": list(sample.distractors),
        "group": sample.group,
    }
    row = {name: value for name, value in fields.items() if value not in (None, "", [])}
    return row if directive is None else row | {"directive": directive}  # "" asks for none


def _store(
    samples: Sequence[Sample], name: str, folder: Path, root: Path | None, progress: bool
) -> dict[Hashable, tuple[str, str]]:
    """(hash, path) of each distinct image by its key: relative to `root`, or written below `folder`.

    Raises:
        DataError: some cannot be read; if they are written, also some that cannot be opened.
    """
    images, problems, firsts = dict[Hashable, tuple[str, str]](), Problems("images"), distinct(samples)
    for sample in track(firsts, f"preparing {name}") if progress else firsts:
        try:
            if root is None:
                stored = _unpack(sample, folder / IMAGES)
            else:
                path = os.path.relpath(str(sample.image), root).replace(os.sep, "/")
                stored = image_bytes_hash(sample.image), path
            images[image_key(sample.image)] = stored
        except DataError as error:
            problems.add(error)
    problems.stop(len(firsts))
    return images


def _unpack(sample: Sample, folder: Path) -> tuple[str, str]:
    """Write the image of a sample as a file named by its content; (hash, path relative to the manifest).

    Raises:
        DataError: it cannot be opened as an image: a table may name any file, and this folder is shared.
    """
    image = sample.image
    if isinstance(image, str | bytes) or hasattr(image, "read"):
        content = image_bytes(image)  # type: ignore[arg-type]
        try:  # without the white level that the image may need: it is settled after this
            open_image(content if isinstance(image, Packed) else image, sample.origin)
        except DataError:
            open_image(image, sample.origin)  # names the larger file
            raise
    else:  # pixels: as PNG, which is lossless
        stream = io.BytesIO()
        open_image(image).save(stream, format="PNG")
        content = stream.getvalue()
    digest = hashlib.sha256(content).hexdigest()
    ending = next((e for start, e in _ENDINGS.items() if content.startswith(start)), ".img")
    path = folder / digest[:2] / f"{digest}{ending}"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return digest, path.relative_to(folder.parent).as_posix()


def _ids(samples: list[Sample], split: str) -> str:
    """SHA-256 over the sorted ids of a split: the same for equal splits, wherever the images are."""
    names = sorted(sample.id for sample in samples if sample.split == split)
    return hashlib.sha256("\n".join(names).encode("utf-8")).hexdigest()
