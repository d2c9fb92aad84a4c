"""Questions longer than the LLM's context, and answers longer than a reply."""

from collections.abc import Sequence

from craft.core.progress import say
from craft.data import Sample
from craft.evaluation.matching import strict
from craft.models.context import check_context
from craft.models.lvlm import LVLM
from craft.models.prompts import decode
from craft.pruning import budget_of


def check_questions(
    lvlm: LVLM, samples: Sequence[Sample], directive: str | None = None, keep_ratio: float = 1.0
) -> None:
    """Refuse samples that are longer than the LLM's context, with the correct answer, before any work.

    Args:
        directive: as for `Sample.prompt`; with one, answers are free, and only the questions are counted.
        keep_ratio: the share of visual tokens that the LLM sees.

    Raises:
        DataError: there are such samples; the first ones are named.
    """
    rows, columns = lvlm.visual.grid
    asked = ((s.id, s.prompt(directive), s.answer if directive is None else None) for s in samples)
    check_context(lvlm.backbone, asked, budget_of(keep_ratio, rows * columns))


def answer_lengths(lvlm: LVLM, samples: Sequence[Sample], most: int) -> list[int]:
    """The number of tokens that each correct answer needs to be an exact match, up to `most` or 0 if it fits.

    An answer fits if its first `most` tokens, written out, match it.
    """
    backbone = lvlm.backbone
    ends = backbone.end_ids()
    needed: dict[str, int] = {}
    for answer in {sample.answer for sample in samples}:
        ids = [token for token in backbone.tokenized("?", answer).answer if token not in ends]
        fits = len(ids) <= most or strict(decode(backbone.tokenizer, ids[:most]), answer)
        needed[answer] = 0 if fits else len(ids)
    return [needed[sample.answer] for sample in samples]


def announce_long_answers(lvlm: LVLM, samples: Sequence[Sample], most: int, *, later: bool = False) -> None:
    """Print a warning if correct answers have more tokens than a reply may have: they cannot be exact.

    Args:
        most: the largest number of tokens in a reply.
        later: the evaluation is another command's, which the remedy then names.
    """
    lengths = answer_lengths(lvlm, samples, most)
    long = [(sample, length) for sample, length in zip(samples, lengths, strict=True) if length]
    if not long:
        return
    answers = list(dict.fromkeys(f"{sample.answer!r} ({length})" for sample, length in long))
    where = " in `craft eval`" if later else ""
    letters = ", or ask for letters (--answer-with letter)" if any(s.choices for s, _ in long) else ""
    say(
        f"warning: {100 * len(long) / len(samples):.0f} % of the answers ({len(long)} of {len(samples)}) "
        f"cannot be an exact match{where}: they have more tokens than a reply of {most}, such as "
        f"{', '.join(answers[:3])}. Allow {max(lengths)} tokens (--max-new-tokens {max(lengths)}){letters}."
    )
