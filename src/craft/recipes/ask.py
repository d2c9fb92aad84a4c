"""`craft ask`: what do these images show? Answers, or a probability for each option."""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from glob import glob, has_magic
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from craft.core.errors import ConfigError, CraftError, DataError
from craft.core.files import append_text, check_writable, user_path
from craft.core.progress import track
from craft.core.tokens import VisionTokens
from craft.data.choices import QUESTION
from craft.data.images import PICTURES, open_image
from craft.data.problems import Problems
from craft.data.readers.tables import read_rows
from craft.evaluation.ask import ask as ask_all
from craft.evaluation.calibration import probabilities
from craft.evaluation.config import AskConfig
from craft.evaluation.engine import refuse_lora, write_all
from craft.formats.artefact import Artefact
from craft.formats.code_cache import CodeCache, ImageCodes
from craft.formats.load import load, load_artefact
from craft.models.backbone import Segment
from craft.models.conversation import Turn, build_conversation
from craft.models.lvlm import LVLM
from craft.models.sampling import AnswerText, Batch, Sampling
from craft.recipes.ask_file import Wanted, answer_record, earlier_rows, keep_record, written

UNSURE = "unsure"
"""The answer if no option reaches the wanted probability."""

STDIN = "/dev/stdin"
"""What `-` is on the command line, whose parser takes it for a flag."""

TABLES = frozenset({".jsonl", ".csv", ".tsv"})
"""Endings of tables with questions of their own."""


@dataclass(frozen=True)
class Asked:
    """What `ask` did.

    Attributes:
        rows: an answer per image, in order, those of an earlier run included.
        failed: how many images could not be read.
        resumed: how many rows were there already.
    """

    rows: list[dict[str, Any]]
    failed: int
    resumed: int


def ask(
    model: str | Path | LVLM | None = None,
    pictures: str | Path | Sequence[str | Path] = (),
    encoder: str | Path | Artefact | None = None,
    *,
    resume: bool = False,
    show: Callable[[dict[str, Any]], None] | None = None,
    stream: Callable[[str], None] | None = None,
    config: AskConfig | Mapping[str, Any] | str | Path | None = None,
    **overrides: Any,
) -> Asked:
    """Ask an LVLM about images. Without options the answer is written; with options each gets a probability.

    Args:
        model: a shipped model, a folder, a hub id, or a loaded LVLM.
        pictures: as for `AskConfig.pictures`.
        encoder: a run folder or artefact, or a loaded one.
        resume: keep the rows in `out`, and ask about the other images.
        show: takes each row as it comes.
        stream: takes pieces of the written answer, for a single image.
        config: a YAML file, dict or `AskConfig`; the other arguments take precedence.
        **overrides: any other setting of `AskConfig` by name.

    Returns:
        Rows with `image`, `question`, `answer`, and with options `probability`, `runner_up`,
        `runner_up_probability` and `margin`; an image that cannot be read has `error` instead.

    Raises:
        ConfigError: a setting is impossible, or there is no question.
        DataError: there are no images, or none of them can be read.
        CraftError: the model or the encoder is missing or damaged, or they do not share a codebook.
    """
    listed = [pictures] if isinstance(pictures, str | Path) else pictures
    named = {
        "model": None if isinstance(model, LVLM) else model and str(model),
        "pictures": tuple(map(str, listed)) or None,
        "encoder": str(encoder.folder) if isinstance(encoder, Artefact) else encoder and str(encoder),
    }
    settings = AskConfig.build(config, {**overrides, **{key: value for key, value in named.items() if value}})
    if settings.out is not None:
        check_writable(settings.out)
    artefact = encoder if isinstance(encoder, Artefact) else None
    if artefact is None and settings.encoder is not None:
        artefact = _encoder(settings.encoder)
    wanted = questions(settings, {} if artefact is None else artefact.manifest)
    done = earlier_rows(settings.out, wanted, resume) if settings.out is not None else []
    if model is None and settings.model is None:
        raise ConfigError("Name the model to ask: a shipped model, a folder, or a hub id.")
    base = (
        model
        if isinstance(model, LVLM)
        else load(str(settings.model), settings.device, settings.dtype, llm_bits=settings.llm_bits)
    )
    lvlm = base if artefact is None else base.with_encoder(artefact)
    lvlm.check_keep_ratio(settings.keep_ratio)
    if settings.engine is not None:
        refuse_lora(lvlm)
    temperature = float((artefact.manifest if artefact else {}).get("answer_temperature") or 1.0)
    asker = Asker(lvlm, settings, temperature, stream if len(wanted) == 1 or settings.together else None)
    if settings.together:
        row = asker.together(wanted)
        if settings.out is not None:
            append_text(settings.out, written([row], settings.out))
        if show is not None:
            show(row)
        return Asked([row], 0, 0)
    if settings.out is not None:
        keep_record(settings.out, answer_record(lvlm, settings, temperature, wanted), bool(done))
    rows = list(done)
    failed = sum("error" in row for row in done)
    size = settings.batch_size * 4
    # An interrupted chunk is asked again as a whole: in another batch, rounding could give other digits.
    first = len(done) // size * size if len(done) < len(wanted) else len(wanted)
    starts = range(first, len(wanted), size)
    for start in track(starts, f"asking {lvlm.name}") if len(starts) > 1 else starts:
        answers = asker.rows(wanted[start : start + size])[max(0, len(done) - start) :]
        if settings.out is not None:
            append_text(settings.out, written(answers, settings.out))
        for row in answers:
            rows.append(row)
            failed += "error" in row
            if show is not None:
                show(row)
    if failed == len(rows):
        raise DataError(f"None of the {len(rows)} images can be read; the first: {rows[0]['error']}")
    return Asked(rows, failed, len(done))


class Asker:
    """Answers questions in batches."""

    def __init__(
        self, lvlm: LVLM, settings: AskConfig, temperature: float, stream: Callable[[str], None] | None
    ) -> None:
        self.lvlm = lvlm
        self.settings = settings
        self.temperature = temperature
        self.stream = stream
        self.codes = CodeCache()

    def rows(self, wanted: Sequence[Wanted]) -> list[dict[str, Any]]:
        """A row per question, in order."""
        rows: list[dict[str, Any]] = [{"image": one.image, "question": one.question} for one in wanted]
        opened: list[tuple[int, Image.Image]] = []
        for index, one in enumerate(wanted):
            try:
                opened.append((index, open_image(one.image, alpha="keep")))
            except DataError as error:
                rows[index] |= {"answer": None, "error": str(error)}
        for chosen in (
            [i for i in opened if wanted[i[0]].options],
            [i for i in opened if not wanted[i[0]].options],
        ):
            if not chosen:
                continue
            images = self.codes.encode(
                self.lvlm.visual, [image for _, image in chosen], self.settings.batch_size, False
            )
            asked = [wanted[index] for index, _ in chosen]
            answers = self._scored(images, asked) if asked[0].options else self._texts(images, asked)
            for (index, _), answer in zip(chosen, answers, strict=True):
                rows[index] |= answer
        self.codes = CodeCache()  # images of a chunk are not asked about again
        return rows

    def _scored(self, images: ImageCodes, asked: Sequence[Wanted]) -> list[dict[str, Any]]:
        replies = ask_all(
            self.lvlm,
            images,
            [one.prompt for one in asked],
            [list(one.options) for one in asked],
            max_new_tokens=0,
            keep_ratio=self.settings.keep_ratio,
            batch_size=self.settings.batch_size,
            progress=False,
        )
        return [self._choice(one, scores) for one, scores in zip(asked, replies.scores, strict=True)]

    def _choice(self, one: Wanted, scores: Sequence[float]) -> dict[str, Any]:
        shares = probabilities(scores, self.temperature)
        first, second = sorted(range(len(shares)), key=lambda n: -shares[n])[:2]
        sure = shares[first] >= self.settings.min_probability
        return {
            "answer": one.options[first] if sure else UNSURE,
            "probability": round(float(shares[first]), 6),
            "runner_up": one.options[second],
            "runner_up_probability": round(float(shares[second]), 6),
            "margin": round(float(shares[first] - shares[second]), 6),
            "probabilities": {
                option: round(float(p), 6) for option, p in zip(one.options, shares, strict=True)
            },
        }

    def _texts(self, images: ImageCodes, asked: Sequence[Wanted]) -> list[dict[str, Any]]:
        settings = self.settings
        if settings.temperature == 0 and self.stream is None and settings.engine is None:
            replies = ask_all(
                self.lvlm,
                images,
                [one.prompt for one in asked],
                max_new_tokens=settings.max_new_tokens,
                keep_ratio=settings.keep_ratio,
                batch_size=settings.batch_size,
                progress=False,
            )
            return [{"answer": text} for text in replies.texts]
        answers: list[dict[str, Any]] = []
        for start in range(0, len(asked), settings.batch_size):
            part = range(start, min(start + settings.batch_size, len(asked)))
            prompts = [self._row(images, index, asked[index]) for index in part]
            answers += [{"answer": text} for text in self.write(prompts, start)]
        return answers

    def write(self, rows: Sequence[Sequence[Segment]], start: int = 0) -> list[str]:
        """Answers to prompts, sampled or greedy; a single one is streamed.

        Args:
            rows: segments, as for `Backbone.splice`.
            start: the number of the first row, which its random numbers depend on.
        """
        settings, backbone = self.settings, self.lvlm.backbone
        sampling = Sampling(settings.max_new_tokens, settings.temperature, settings.top_p)
        samplings = [replace(sampling, seed=settings.seed + start + row) for row in range(len(rows))]
        if settings.engine is not None:
            prompts = [backbone.splice([row], "left")["inputs_embeds"][0] for row in rows]
            return write_all(settings.engine, prompts, samplings)
        batch = Batch(backbone, rows, samplings)
        texts = [AnswerText(backbone) for _ in rows]
        while not batch.finished:
            for row, token in batch.step():
                piece = texts[row].add(token.id)
                if self.stream is not None and piece:
                    self.stream(piece)
        for text in texts:
            rest = text.close()
            if self.stream is not None and rest:
                self.stream(rest)
        return [text.text for text in texts]

    def _row(self, images: ImageCodes, index: int, one: Wanted) -> list[Segment]:
        return prompt_row(
            self.lvlm, [self.lvlm.visible(images.tokens([index]), self.settings.keep_ratio)], one.prompt
        )

    def together(self, wanted: Sequence[Wanted]) -> dict[str, Any]:
        """One answer about all images in one prompt.

        Raises:
            DataError: an image cannot be read.
            CraftError: the LLM's prompt format has one image only.
        """
        opened = [open_image(one.image, alpha="keep") for one in wanted]
        images = self.codes.encode(self.lvlm.visual, opened, self.settings.batch_size, False)
        tokens = [self.lvlm.visible(images.tokens([n]), self.settings.keep_ratio) for n in range(len(wanted))]
        (answer,) = self.write([prompt_row(self.lvlm, tokens, wanted[0].prompt)])
        return {"image": [one.image for one in wanted], "question": wanted[0].question, "answer": answer}


def prompt_row(lvlm: LVLM, tokens: Sequence[VisionTokens], question: str) -> list[Segment]:
    """The segments of one prompt about images.

    Raises:
        CraftError: the LLM's prompt format does not take so many images.
    """
    backbone = lvlm.backbone
    pieces = build_conversation(backbone.prompt, backbone.tokenizer, [Turn("user", question, len(tokens))])
    row: list[Segment] = [torch.tensor(pieces[0], dtype=torch.long)]
    for image, piece in zip(tokens, pieces[1:], strict=True):
        row += [backbone.read(image)[0], torch.tensor(piece, dtype=torch.long)]
    return row


# What is asked about which images


def questions(settings: AskConfig, manifest: Mapping[str, Any]) -> list[Wanted]:
    """The questions, one per image.

    Args:
        settings: of the command.
        manifest: the encoder's, whose question and classes are the defaults; or nothing.

    Raises:
        ConfigError: there is no question, or an option is missing.
        DataError: there are no images.
    """
    question, options = settings.question, split_options(settings.options)
    data = manifest.get("data")
    data = data if isinstance(data, Mapping) else {}
    classes = tuple(map(str, data.get("classes") or ()))
    if question is None and not options and classes and not settings.text:
        question, options = str(data.get("question") or QUESTION), classes
    if question is None and options:
        question = QUESTION
    if options and settings.engine is not None:
        raise ConfigError(
            "An engine writes answers and scores no options; give --text, or leave --engine out."
        )
    if len(options) == 1 or len(set(options)) < len(options):
        raise ConfigError(f"--options needs at least two different answers, not {', '.join(options)!r}.")
    wanted: list[Wanted] = []
    for path in image_paths(settings.pictures):
        if Path(path).suffix.lower() in TABLES:
            wanted += table_rows(Path(path), question, options)
        elif question is None:
            raise ConfigError(
                "There is no question: give --question TEXT, or --options A,B,C, or an encoder that was "
                "adapted to classes."
            )
        else:
            wanted.append(Wanted(path, question, options))
    if not wanted:
        raise DataError(
            "There are no images: name files, folders, patterns, a table, or - for standard input."
        )
    return wanted


def split_options(options: Sequence[str]) -> tuple[str, ...]:
    """`--options a,b,c` as three options; several values are taken as they are, with their commas."""
    parts = options[0].split(",") if len(options) == 1 else options
    return tuple(part.strip() for part in parts if part.strip())


def image_paths(pictures: Iterable[str]) -> Iterator[str]:
    """The paths of images and tables, in order; those of a folder or pattern sorted.

    Raises:
        DataError: a path does not exist, a folder has no images, or a pattern matches nothing.
    """
    for entry in pictures:
        if entry in ("-", STDIN):
            yield from (line.strip() for line in sys.stdin if line.strip())
            continue
        path = user_path(entry)
        if path.is_dir():
            files = sorted(
                str(file)
                for file in path.rglob("*")
                if file.suffix.lower() in PICTURES
                and not any(part.startswith((".", "@")) for part in file.relative_to(path).parts)
            )
            if not files:
                raise DataError(f"{path} has no images (endings: {', '.join(sorted(PICTURES)[:8])}, …).")
            yield from files
        elif has_magic(entry) and not path.exists():
            files = sorted(glob(str(path), recursive=True))
            if not files:
                raise DataError(f"The pattern {entry!r} matches no file.")
            yield from files
        else:
            yield str(path)  # a missing file becomes a row with its error


def table_rows(path: Path, question: str | None, options: tuple[str, ...]) -> list[Wanted]:
    """The questions of a table with columns `image`, `question` and `options`; paths start from its folder.

    Raises:
        DataError: the table cannot be read, or a row has no image or no question.
    """
    problems, wanted = Problems(str(path)), []
    for row in read_rows(path, problems):
        values = row.values
        image = values.get("image")
        asked = values.get("question") or question
        listed = values.get("options") or values.get("choices") or ()
        if isinstance(listed, str):
            listed = [part.strip() for part in listed.split("|" if "|" in listed else ",")]
        if not isinstance(image, str) or not image:
            raise DataError(f"{row.origin} has no `image`; the column holds the path of a file.")
        if not asked:
            raise DataError(f"{row.origin} has no `question`; add one, or give --question TEXT.")
        location = Path(image) if Path(image).is_absolute() else path.parent / image
        wanted.append(Wanted(str(location), str(asked), tuple(map(str, listed)) or options))
    problems.stop()
    return wanted


def _encoder(folder: str) -> Artefact:
    artefact = load_artefact(folder)
    if not isinstance(artefact, Artefact):
        raise CraftError(f"{folder} holds a baseline; `craft ask` takes an adapted encoder.")
    return artefact
