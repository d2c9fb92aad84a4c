"""The model card of an aligned backbone."""

from collections.abc import Mapping, Sequence
from typing import Any

from craft.evaluation.language import INSTRUCTIONS
from craft.models.lvlm import LVLM
from craft.recipes.align_data import unused
from craft.training.config import AlignConfig

_FIGURES = ("steps", "first_loss", "last_loss", "minutes")


def backbone_card(
    settings: AlignConfig,
    lvlm: LVLM,
    metrics: Mapping[str, Mapping[str, Any]],
    language: Mapping[str, Any],
    counts: Mapping[str, int],
) -> str:
    """The model card, from what the run knows."""
    trained = "the projector" if settings.stage == "1" else "projector and LLM"
    if settings.stage != "1" and settings.lora.rank:
        trained = f"the projector, and the LLM by LoRA of rank {settings.lora.rank}"
    kinds = [name for name in ("captions", "data", "text") if name not in unused(settings)]
    sources = [source for name in kinds for source in getattr(settings, name)]
    lines = [
        f"# {lvlm.name} for codebook {lvlm.backbone.codebook_fingerprint[:12]}",
        "",
        f"The LLM `{settings.llm}` as a backbone of the visual tokenizer `{settings.visual}`. Trained: "
        f"{trained}. The visual tokenizer is unchanged. Each part keeps its own licence.",
        "",
        "| stage | rows | steps | first loss | last loss | minutes |",
        "|---|---|---|---|---|---|",
        *(_line([name, counts[name], *(m[key] for key in _FIGURES)]) for name, m in metrics.items()),
        "",
        f"Data: {', '.join(dict.fromkeys(sources))}.",
        "",
        "Language without images, before and after: perplexity of held-out text "
        f"{language['before']['perplexity']} and {language['after']['perplexity']}.",
        "",
        "| instruction | before | after |",
        "|---|---|---|",
    ]
    answers = zip(INSTRUCTIONS, language["before"]["answers"], language["after"]["answers"], strict=True)
    lines += [_line(row) for row in answers]
    lines += ["", "```python", "import craft", "", f'lvlm = craft.load("{settings.out}")', "```", ""]
    return "\n".join(lines)


def _line(cells: Sequence[object]) -> str:
    return "| " + " | ".join(" ".join(str(cell).split()).replace("|", "/") for cell in cells) + " |"
