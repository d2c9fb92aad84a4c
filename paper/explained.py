"""Table 2 and Figure 2: does an LVLM still justify its answers after it was adapted?"""

import base64
import io
import textwrap
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from craft.core.files import atomic_write_bytes
from craft.core.progress import say
from craft.data import ImageSource, open_image
from craft.data.images import lazy_image
from craft.evaluation.metrics import interval_over_seeds
from craft.judging.cases import BINARY, DIRECTIVE
from craft.judging.rules import NOTE as RULES
from craft.training.config import AdaptConfig
from paper.accuracy import ALL, Line, by_seed, line_json, needed
from paper.cells import CRAFT, Cell, Method
from paper.measures import fill
from paper.plan import Plan
from paper.publish import Data, escaped, footer, percent, table
from paper.reported import NOTE, plain_table, reported
from paper.work import Work

SHOWN = 2
"""Images per domain in Figure 2: the first test questions, none chosen."""

SIDE = 96
"""The longest side of an image in the JSON, in pixels."""


def lines(plan: Plan) -> list[Line]:
    """Zero-shot, LoRA of the LLM itself, CRAFT with the plan's first surrogate; one LLM answers in all."""
    explainer = plan.explainer
    return [
        Line("zero-shot", Method(), explainer),
        Line("LLM LoRA", Method("llm-lora", explainer, tuple(sorted(plan.lora.items()))), explainer),
        Line("CRAFT", Method(CRAFT, plan.surrogates[0]), explainer),
    ]


def cell_of(plan: Plan, line: Line, domain: str, seed: int) -> Cell:
    """A line's justified answers."""
    return Cell("judged", domain, seed, line.backbone, line.method, domain, plan.explained)


def cells2(plan: Plan) -> list[Cell]:
    """The cells of Table 2."""
    every = product(plan.domains, plan.seeds, lines(plan))
    return [cell_of(plan, line, domain, seed) for domain, seed, line in every]


def measure2(work: Work) -> Data:
    """Table 2.

    Returns:
        `rows` by line, domain and seed: correctness and presence, the same of unseen classes, words, count;
        `lora blend`: the setting `blend` of LLM LoRA, the share of its tuning that counts.
    """
    plan, rows = work.plan, []
    for domain, seed in product(plan.domains, plan.seeds):
        say(f"{domain}, seed {seed}")
        for line in lines(plan):
            judged = fill(work, cell_of(plan, line, domain, seed))
            row: dict[str, Any] = {"line": line.label, "domain": domain, "seed": seed}
            for name in BINARY:
                unseen = [answer[name] for answer in judged["rows"] if not answer["seen"]]
                row |= {name: judged[name], f"{name} unseen": float(np.mean(unseen)) if unseen else None}
            words = [len(answer["response"].split()) for answer in judged["rows"]]
            rows.append({**row, "words": float(np.mean(words)), "count": judged["count"]})
    lora = next(line.method for line in lines(plan) if line.label == "LLM LoRA")
    blend = work.settings(plan.domains[0], plan.seeds[0], lora).blend
    about = {"lines": [line_json(line) for line in lines(plan)], "judge": RULES}
    return {**about, "lora blend": blend, "rows": rows}


def page2(data: Data) -> str:
    """Table 2 as Markdown."""
    domains = list(dict.fromkeys(row["domain"] for row in data["rows"]))
    names = [line["line"] for line in data["lines"]]
    rows = [
        [domain if domain != ALL else "mean", name, *_figures(data, name, domain)]
        for domain in (*domains, ALL)
        for name in names
    ]
    shown = ["correctness, %", "presence, %", "of unseen classes: correct", "present", "words"]
    plan = data["provenance"]["plan"]
    parts = [
        "# Table 2: answers that are to be justified\n",
        f'Every question ends with "{DIRECTIVE}" instead of the directive to be short, and up to '
        f"{plan['explain_tokens']} tokens may be written; {plan['explained']} questions per domain and seed. "
        f"`{data['lines'][0]['backbone']}` answers throughout. Mean ± standard deviation over "
        f"seeds.{_lora(data)}\n",
        f"**{data['judge'][0].upper() + data['judge'][1:]}.** The paper's: `craft judge RUN --judge "
        "anthropic`.\n",
        table(["domain", "line", *shown], rows) + "\n",
        _verdict(data) + "\n",
        "## The paper's Table 2\n",
        NOTE + " Its judge is Claude Sonnet 4.5.\n",
        plain_table(reported()["table2"]) + "\n",
        footer(data, limit="explained"),
    ]
    return "\n".join(parts)


def _lora(data: Data) -> str:
    """The settings that LLM LoRA alone was trained with, and how much of its tuning counts."""
    line = next(line for line in data["lines"] if line["line"] == "LLM LoRA")
    settings = ", ".join(f"{name} {value}" for name, value in line["settings"].items())
    text = ""
    if settings:
        own, craft = (seen_samples(part) for part in (line["settings"], data["provenance"]["plan"]["adapt"]))
        text = (
            f" LLM LoRA was trained on {own:,} samples ({settings}), because its LLM is large; CRAFT was "
            f"trained on {craft:,}."
        )
    blend = data["lora blend"]
    share = "by number of classes" if blend is None else f"{100 * blend:g} %"
    return text + (f" Share of its tuning that counts: {share} (`blend`)." if blend != 1 else "")


def seen_samples(settings: Mapping[str, Any]) -> int:
    """How many samples a training sees: steps times batch size, with the defaults of `craft adapt`."""
    config = AdaptConfig()
    return settings.get("max_steps", config.max_steps) * settings.get("batch_size", config.batch_size)


def _figures(data: Data, line: str, domain: str) -> list[str]:
    names = (*BINARY, *(f"{name} unseen" for name in BINARY))
    figures = [by_seed(data, line, domain, name) for name in names]
    words = needed(data, line, domain, "words")
    return [*("-" if values is None else percent(values) for values in figures), f"{np.mean(words):.0f}"]


def _verdict(data: Data) -> str:
    """How far both shares moved, and whether Presence stays within the three points that the paper allows."""
    texts = []
    for figure in BINARY:
        before = np.array(needed(data, "zero-shot", ALL, figure))
        moves = {name: np.array(needed(data, name, ALL, figure)) - before for name in ("CRAFT", "LLM LoRA")}
        shown = ", ".join(f"{name} {_moved(move.tolist())}" for name, move in moves.items())
        texts.append(f"{figure.capitalize()} against zero-shot, in points: {shown}.")
    presence, before = (np.array(needed(data, name, ALL, "presence")) for name in ("CRAFT", "zero-shot"))
    ends = interval_over_seeds((presence - before).tolist())
    within = "one seed cannot say"
    if ends is not None:
        inside, outside = max(map(abs, ends)) <= 0.03, ends[0] > 0.03 or ends[1] < -0.03
        within = "yes" if inside else "no" if outside else "undecided, by its interval"
    return " ".join(texts) + f" CRAFT's Presence stays within 3 points: {within}."


def _moved(differences: list[float]) -> str:
    """A mean difference with its t-interval over seeds."""
    ends = interval_over_seeds(differences)
    mean = 100 * float(np.mean(differences))
    if ends is None:
        return f"{mean:+.1f} (one seed)"
    return f"{mean:+.1f} [95 % interval over seeds {100 * ends[0]:.1f}, {100 * ends[1]:.1f}]"


# Figure 2


def cells_fig2(plan: Plan) -> list[Cell]:
    """The cells of Figure 2: those of Table 2 for the first seed."""
    return [cell for cell in cells2(plan) if cell.seed == plan.seeds[0]]


def measure_fig2(work: Work) -> Data:
    """`pictures`: domain, question, truth, the image as base64 PNG, and each line's judged answer."""
    plan, seed, pictures = work.plan, work.plan.seeds[0], []
    for domain in plan.domains:
        cells = {line.label: cell_of(plan, line, domain, seed) for line in lines(plan)}
        answers = {label: fill(work, cell)["rows"] for label, cell in cells.items()}
        for number, sample in enumerate(work.samples(next(iter(cells.values())))[:SHOWN]):
            one = {label: rows[number] for label, rows in answers.items()}
            pictures.append(
                {
                    "domain": domain,
                    "id": sample.id,
                    "seen": sample.seen,
                    "question": sample.prompt(DIRECTIVE),
                    "truth": sample.answer_text,
                    "picture": small_png(sample.image),
                    "answers": one,
                }
            )
    return {"lines": [line_json(line) for line in lines(plan)], "judge": RULES, "pictures": pictures}


def small_png(image: ImageSource) -> str:
    """An image of at most `SIDE` pixels as PNG in base64."""
    picture = open_image(image).convert("RGB")
    picture.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def page_fig2(data: Data) -> str:
    """Figure 2 as Markdown."""
    names = [line["line"] for line in data["lines"]]
    rows = [
        [escaped(f"{one['domain']}: {one['truth']}"), *(_marked(one["answers"][name]) for name in names)]
        for one in data["pictures"]
    ]
    parts = [
        "# Figure 2: what they answer\n",
        f"The first test pictures of each domain, none chosen. `{data['lines'][0]['backbone']}` answers; ✓ "
        f"and ✗ say whether the answer is right, ¶ that there is a justification; {data['judge']}.\n",
        "![Pictures with the answers of each method](fig2.png)\n",
        table(["picture", *names], rows) + "\n",
        footer(data, one_seed=True, limit="explained"),
    ]
    return "\n".join(parts)


def _marked(answer: Data) -> str:
    mark = ("✓" if answer["correctness"] else "✗") + (" ¶" if answer["presence"] else "")
    return f"{mark} {escaped(answer['response'])}"


def draw_fig2(data: Data, path: Path) -> list[Path]:
    """A row per image: the image, the question, each line's answer."""
    from matplotlib.figure import Figure

    names = [line["line"] for line in data["lines"]]
    count, wide = len(data["pictures"]), 3.1 + 3.0 * len(names)
    figure = Figure(figsize=(wide, 1.4 * count + 0.3), dpi=110, facecolor="white")
    grid = figure.add_gridspec(count, 2 + len(names), width_ratios=[1, 1.6, *[2.4] * len(names)])
    for row, one in enumerate(data["pictures"]):
        axes = figure.add_subplot(grid[row, 0])
        picture = lazy_image(io.BytesIO(base64.b64decode(one["picture"])))
        axes.imshow(np.asarray(picture), interpolation="nearest")
        axes.set_anchor("N")
        axes.set_axis_off()
        unseen = "" if one["seen"] else " (never trained on)"
        words = [f"{one['domain']}: {one['truth']}{unseen}", *one["question"].split("\n")]
        _text(figure.add_subplot(grid[row, 1]), "\n".join(words), 28, "#24292f")
        for column, name in enumerate(names):
            answer = one["answers"][name]
            head = f"{name}: {'right' if answer['correctness'] else 'wrong'}, "
            head += "justified" if answer["presence"] else "not justified"
            colour = "#1a7f37" if answer["correctness"] else "#cf222e"
            _text(figure.add_subplot(grid[row, 2 + column]), f"{head}\n{answer['response']}", 46, colour)
    figure.tight_layout()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    atomic_write_bytes(path, buffer.getvalue())
    return [path]


@cache
def drawable() -> frozenset[int]:
    """Characters of matplotlib's own font; an LLM may write others."""
    from matplotlib.font_manager import findfont, get_font

    return frozenset(get_font(findfont("DejaVu Sans")).get_charmap())


def _text(axes: Any, text: str, width: int, colour: str) -> None:
    wrapped: Sequence[str] = [
        piece for line in text.split("\n") for piece in textwrap.wrap(line, width) or [""]
    ]
    shown = [*wrapped[:10], "…"] if len(wrapped) > 11 else wrapped
    known = drawable()
    text = "\n".join("".join(c if ord(c) in known else "□" for c in line) for line in shown)
    axes.set_axis_off()
    axes.text(0, 1, text.replace("$", r"\$"), va="top", fontsize=7, color=colour, transform=axes.transAxes)
