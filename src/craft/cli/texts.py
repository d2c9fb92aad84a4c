"""`craft data captions`, `statements` and `options`: what a model adds to a data set."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cyclopts import Parameter

from craft.cli.options import COMMON, Common, Count, Flag
from craft.cli.output import show_json, show_line
from craft.core.errors import ConfigError
from craft.core.files import atomic_write_text, check_writable, write_json
from craft.core.lock import locked
from craft.core.service import Service


@Parameter(name="*")
@dataclass(frozen=True)
class Server:
    """The service that writes texts.

    Attributes:
        service: the protocol: OpenAI's chat (also vLLM, llama.cpp, Ollama) or Anthropic's.
        base_url: another server of that protocol, as in http://localhost:8000/v1.
        concurrency: calls at the same time.
    """

    service: Literal["openai", "anthropic"] = "openai"
    base_url: str | None = None
    concurrency: Count = 4


def captions(
    data: str,
    *,
    out: Path,
    model: str,
    server: Server = Server(),
    count: int = 1,
    root: str | None = None,
    common: Common = COMMON,
) -> None:
    """Have a vision model describe every image; after an interruption, the same command continues.

    Look through what it wrote, then run: craft data prepare DATA --texts FILE.

    Args:
        data: as for `craft data check`.
        out: the JSONL file that texts are added to.
        model: the service's name for the model.
        count: captions for each image, 1 to 3.
        root: the folder of a benchmark; otherwise the folder that relative paths in the data start from.
    """
    from craft.data import read_data
    from craft.data.texts import caption_requests, write_texts

    check_writable(out)
    with locked(out, beside=True):
        requests = caption_requests(read_data(data, root).samples, model, count)
        service = Service(model, server.service, server.base_url, concurrency=server.concurrency)
        _report(write_texts(requests, service, out), out, common)


def statements(
    data: str,
    *,
    out: Path,
    model: str | None = None,
    server: Server = Server(),
    rules: Flag = False,
    root: str | None = None,
    common: Common = COMMON,
) -> None:
    """Have an LLM rewrite each question with its answer as one sentence ("The car is red.").

    With --rules instead of a model, write what the fixed rules of training give, for you to look through.

    Args:
        data: as for `craft data check`.
        out: the JSONL file that texts are added to.
        model: the service's name for the model.
        rules: use the fixed rules instead of a model.
        root: the folder of a benchmark; otherwise the folder that relative paths in the data start from.
    """
    from craft.data import read_data
    from craft.data.texts import rule_statements, statement_requests, write_texts

    if (model is None) == (not rules):
        raise ConfigError("Use either --model, to have a model write, or --rules, for the fixed rules.")
    check_writable(out)
    with locked(out, beside=True):
        samples = read_data(data, root).samples
        if model is None:
            rows = rule_statements(samples)
            atomic_write_text(out, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
            _report(len(rows), out, common)
            return
        requests = statement_requests(samples, model)
        service = Service(model, server.service, server.base_url, concurrency=server.concurrency)
        _report(write_texts(requests, service, out), out, common)


def options(
    data: str,
    *,
    out: Path,
    clip: str,
    count: Count = 7,
    root: str | None = None,
    common: Common = COMMON,
) -> None:
    """Choose hard wrong options for each image with CLIP, as FOCI does, and write them in FOCI's format.

    Then run: craft data prepare DATA --options FILE.

    Args:
        data: as for `craft data check`; images with classes.
        out: the JSON file.
        clip: a CLIP (or SigLIP) model: a folder, or a hub id such as laion/CLIP-ViT-L-14-laion2B-s32B-b82K.
        count: wrong options for each image; a question uses the hardest three that are allowed.
        root: the folder of a benchmark; otherwise the folder that relative paths in the data start from.
    """
    from craft.data import read_data
    from craft.recipes.options import clip_options

    check_writable(out)
    with locked(out, beside=True):
        option_file = clip_options(read_data(data, root), clip, count, common.device)
        write_json(out, option_file)
    _report(sum(map(len, option_file.values())), out, common)


def _report(count: int, out: Path, common: Common) -> None:
    if common.json:
        show_json({"out": str(out), "written": count})
    else:
        show_line(f"{count} written to {out}")
