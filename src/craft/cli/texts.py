"""`craft data captions`, `statements` and `options`: what a model adds to a data set."""

from pathlib import Path
from typing import Literal

from craft.cli.options import COMMON, Common, Count, Flag
from craft.cli.output import show_json


def captions(
    data: str,
    *,
    out: Path,
    model: str,
    service: Literal["openai", "anthropic"] = "openai",
    base_url: str | None = None,
    count: int = 1,
    concurrency: Count = 4,
    root: str | None = None,
    common: Common = COMMON,
) -> None:
    """Have a vision model describe every picture; the same command goes on where it stopped.

    Look through what it wrote, then: craft data prepare DATA --texts FILE.

    Args:
        data: as for `craft data check`.
        out: the JSONL file that texts are added to.
        model: what the service calls the model.
        service: whose protocol: OpenAI's chat (also vLLM, llama.cpp, Ollama) or Anthropic's.
        base_url: another server of that protocol, as in http://localhost:8000/v1.
        count: captions for each picture, 1 to 3.
        concurrency: calls at once.
        root: where a benchmark lies; else what relative paths in the data start from.
    """
    from craft.data import read_data
    from craft.data.service import Service
    from craft.data.texts import caption_wishes, write_texts

    samples = read_data(data, root).samples
    asked = Service(model, service, base_url, concurrency=concurrency)
    _told(write_texts(caption_wishes(samples, model, count), asked, out), out, common)


def statements(
    data: str,
    *,
    out: Path,
    model: str | None = None,
    service: Literal["openai", "anthropic"] = "openai",
    base_url: str | None = None,
    rules: Flag = False,
    concurrency: Count = 4,
    root: str | None = None,
    common: Common = COMMON,
) -> None:
    """Have an LLM rewrite each question with its answer as one sentence ("The car is red.").

    Without a model, the fixed rules that training falls back on are written out, to be looked through.

    Args:
        data: as for `craft data check`.
        out: the JSONL file that texts are added to.
        model: what the service calls the model.
        service: whose protocol: OpenAI's chat (also vLLM, llama.cpp, Ollama) or Anthropic's.
        base_url: another server of that protocol, as in http://localhost:8000/v1.
        rules: ask no model; use the fixed rules.
        concurrency: calls at once.
        root: where a benchmark lies; else what relative paths in the data start from.
    """
    import json

    from craft.core.errors import ConfigError
    from craft.core.files import atomic_write_text
    from craft.data import read_data
    from craft.data.service import Service
    from craft.data.texts import rule_statements, statement_wishes, write_texts

    if (model is None) == (not rules):
        raise ConfigError("Give --model, to have statements written, or --rules, to ask no model.")
    samples = read_data(data, root).samples
    if model is None:
        rows = rule_statements(samples)
        atomic_write_text(out, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        _told(len(rows), out, common)
        return
    asked = Service(model, service, base_url, concurrency=concurrency)
    _told(write_texts(statement_wishes(samples, model), asked, out), out, common)


def options(
    data: str,
    *,
    out: Path,
    clip: str,
    count: Count = 7,
    root: str | None = None,
    common: Common = COMMON,
) -> None:
    """Choose hard wrong options for each picture with CLIP, as FOCI does; written in FOCI's format.

    Then: craft data prepare DATA --options FILE.

    Args:
        data: as for `craft data check`; pictures with classes.
        out: the JSON file.
        clip: a CLIP (or SigLIP) model: a folder, or a hub id such as laion/CLIP-ViT-L-14-laion2B-s32B-b82K.
        count: wrong options kept for each picture; a question takes the hardest three that it may use.
        root: where a benchmark lies; else what relative paths in the data start from.
    """
    from craft.core.files import check_writable, write_json
    from craft.data import read_data
    from craft.recipes.options import clip_options

    check_writable(out)
    found = clip_options(read_data(data, root), clip, count, common.device)
    write_json(out, found)
    _told(sum(map(len, found.values())), out, common)


def _told(count: int, out: Path, common: Common) -> None:
    if common.json:
        show_json({"out": str(out), "written": count})
    else:
        print(f"{count} written to {out}")
