"""The dry run of `craft judge`: how many calls, how many tokens, what they may cost."""

from collections.abc import Sequence
from dataclasses import dataclass

from craft.data import ImageSource, open_image
from craft.data.images import image_bytes_hash
from craft.evaluation.judge import Case, Judge
from craft.evaluation.judge_answers import read_cases
from craft.evaluation.judge_prompt import shown_size, user_text
from craft.evaluation.judge_run import VerdictCache
from craft.recipes.judge import MAX_NEW_TOKENS, Answers, Preview, pictured

USUAL_ANSWER, USUAL_VERDICT = 150, 120
"""Tokens, where nothing is written yet. Source: ours."""


@dataclass(frozen=True)
class Estimate:
    """What judging will take. A token is taken to be 4 characters of text, or 750 pixels.

    Attributes:
        cases: in all.
        asked: those without a final verdict; equal ones are judged once.
        unanswered: those that an LVLM has to answer first; the length of their answers is a guess.
        likely, most: tokens read and written by the judge.
        dollars: likely and at most; None where no price is known, or nothing is read.
    """

    cases: int
    asked: int
    unanswered: int
    likely: tuple[int, int]
    most: tuple[int, int]
    dollars: tuple[float, float] | None


def estimate(answers: Answers, judge: Judge, max_new_tokens: int = MAX_NEW_TOKENS) -> Estimate:
    """The dry run of `judge`: counts and costs. Asks nobody, writes nothing.

    Raises:
        DataError: an answer or a picture cannot be read.
    """
    known = answers.preview()
    count = len(known)
    written = read_cases(answers.folder) if (answers.folder / "answers.jsonl").is_file() else []
    unanswered = 0 if answers.given else max(0, count - len(written))
    if len(written) == count or (unanswered and written):  # what was asked before a stop is in order
        known = [*pictured(written), *known[len(written) :]]
    cache = VerdictCache(answers.folder / "verdicts.jsonl")
    known = _distinct([(case, image) for case, image in known if cache.open(judge.key(case))])
    guessed = min(unanswered, sum(not case.response for case, _ in known))
    cap = int(judge.identity.get("max_tokens", 0))
    prompt = judge.prompt
    if not cap or prompt is None:  # rules read no tokens
        return Estimate(count, len(known), unanswered, (0, 0), (0, 0), None)
    text = sum(len(prompt.system) + len(user_text(prompt, case)) for case, _ in known) // 4
    read = text + sum(_pixels(image) // 750 for _, image in known if image is not None)
    likely = (read + guessed * USUAL_ANSWER, len(known) * min(USUAL_VERDICT, cap))
    most = (read + guessed * max_new_tokens, len(known) * cap)
    dollars = judge.price and (cost(likely, judge.price), cost(most, judge.price))
    return Estimate(count, len(known), unanswered, likely, most, dollars)


def cost(tokens: Sequence[int], price: Sequence[float]) -> float:
    """US dollars for tokens read and written, at a price per million of each."""
    return (tokens[0] * price[0] + tokens[1] * price[1]) / 1e6


def _distinct(known: Preview) -> Preview:
    """Cases that a judge could tell apart."""

    def content(case: Case, image: ImageSource | None) -> tuple[object, ...]:
        picture = None if image is None else image_bytes_hash(image)
        return (case.task, case.options, case.truth, case.response, picture)

    return list({content(*one): one for one in known}.values())


def _pixels(image: ImageSource) -> int:
    width, height = shown_size(open_image(image).size)
    return width * height
