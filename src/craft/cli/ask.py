"""`craft ask`."""

import sys
from typing import Any

from craft.cli.flags import config_of, takes
from craft.cli.options import COMMON, Common, Flag
from craft.cli.output import show_json, show_line
from craft.core.progress import say
from craft.core.streams import flush, printable, write
from craft.core.text import percent
from craft.evaluation.config import AskConfig


@takes(AskConfig)
def ask(
    model: str | None = None,
    *pictures: str,
    flags: Any = None,
    resume: Flag = False,
    common: Common = COMMON,
) -> None:
    """Ask an LVLM about images of your own: what they show, or any question.

    With an encoder that was adapted to classes, each image gets one of them, with its probability.

    Args:
        model: a shipped model, a folder, or a hub id.
        pictures: image files, folders, patterns such as 'photos/*.jpg', a table with columns image, question
            and options, or - for paths on standard input.
        resume: continue the answers in --out.
    """
    config: AskConfig = config_of(AskConfig, flags, common, model=model, pictures=pictures or None)
    from craft.recipes.ask import ask as run

    streams = sys.stdout.isatty() and not common.json and config.out is None
    shows = None if common.json or config.out is not None else _show
    written: list[str] = []

    def stream(piece: str) -> None:
        written.append(piece)
        write(printable(piece, keep="\n"))
        flush()

    asked = run(
        config=config,
        resume=resume,
        show=(lambda row: show_line() if written else _show(row)) if shows else None,
        stream=stream if streams else None,
    )
    if common.json:
        show_json(asked.rows)
    elif config.out is not None:
        show_line(f"{len(asked.rows)} answers in {config.out}")
    if asked.failed:
        say(f"{asked.failed} of {len(asked.rows)} images could not be read")


def _show(row: dict[str, Any]) -> None:
    """One line: the image, its answer, and how likely it is."""
    images = row["image"] if isinstance(row["image"], list) else [row["image"]]
    text = row["error"] if "error" in row else row["answer"]
    if "probability" in row:
        text += f"  {percent(row['probability'])} %"
        text += f"  (next: {row['runner_up']} {percent(row['runner_up_probability'])} %)"
    show_line(f"{', '.join(images)}: {text}")
