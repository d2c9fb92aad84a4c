"""CRAFT's LVLMs as a model of lmms-eval, so that its tasks run on them (extra `lmms`).

    lmms-eval --model craft --model_args pretrained=craft-tiny/llama,encoder=runs/apparel --tasks mme

lmms-eval finds `manifest` through the entry point `lmms_eval.models`; only it imports this file.
"""

from collections.abc import Sequence
from typing import Any

from accelerate import Accelerator
from lmms_eval.api.instance import GenerationResult, Instance, unwrap_generation_output
from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest

from craft.core.errors import CraftError
from craft.core.progress import say
from craft.evaluation.ask import ask
from craft.formats.code_cache import CodeCache, ImageCodes
from craft.formats.load import load
from craft.models.decoding import option_ids, read, score, write

LONGEST = 1024
"""The maximum length of an answer, in tokens, if a task names none. Source: lmms-eval's own models."""

manifest = ModelManifest("craft", simple_class_path="craft.evaluation.lmms.CraftLVLM")


class CraftLVLM(lmms):
    """An LVLM of CRAFT with lmms-eval's interface. It reads at most one image and answers greedily.

    Args:
        pretrained: a shipped model, a folder or a hub id, as for `craft.load`.
        encoder: a run folder or adapted encoder; None evaluates the base tower (zero-shot).
        keep_ratio: share of visual tokens that the LLM sees.
        cache: a folder for the codes of images; None keeps them in memory.
        device, dtype: as for `craft.load`; each process of `accelerate launch` uses its own device instead.
        max_batch_size: ignored; lmms-eval passes it.

    Raises:
        CodebookMismatchError: encoder and backbone do not share a codebook.
        CheckpointError: one of them is missing or damaged.
    """

    is_simple = True

    def __init__(
        self,
        pretrained: str = "craft-tiny/llama",
        encoder: str | None = None,
        keep_ratio: float | str = 1.0,
        cache: str | None = None,
        batch_size: int | str = 32,
        device: str | None = None,
        dtype: str | None = None,
        max_batch_size: int | str | None = None,
    ) -> None:
        super().__init__()
        self.accelerator = Accelerator()
        self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes
        lvlm = load(pretrained, str(self.accelerator.device) if self._world_size > 1 else device, dtype)
        self.lvlm = lvlm if encoder is None else lvlm.with_encoder(encoder)
        self.keep_ratio = float(keep_ratio)
        self.lvlm.check_keep_ratio(self.keep_ratio)
        self.batch_size = max(1, int(batch_size))
        self.cache = CodeCache(cache)
        self._reported: set[str] = set()

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Greedy answers. Requests with equal settings are asked together, in batches of similar length.

        Raises:
            CraftError: a request has more than one image, or an object that is not an image.
        """
        groups: dict[tuple[int, tuple[str, ...], bool], list[int]] = {}
        questions: list[str] = []
        images: list[Any] = []
        for number, request in enumerate(requests):
            context, settings, to_visual, document, task, split = request.arguments
            questions.append(_without_mark(context))
            images.append(self._image(to_visual, document, task, split))
            if settings.get("do_sample") or (settings.get("temperature") or 0) > 0:
                self._say_once(f"{task} asks for sampling; CRAFT answers greedily.")
            stops = settings.get("until") or ()
            stops = (stops,) if isinstance(stops, str) else tuple(stops)
            most = int(settings.get("max_new_tokens") or LONGEST)
            groups.setdefault((most, stops, images[-1] is None), []).append(number)
        answers = [""] * len(requests)
        for (most, stops, blind), numbers in groups.items():
            pictures = None if blind else [images[number] for number in numbers]
            texts = self._answers(pictures, [questions[number] for number in numbers], most)
            for number, text in zip(numbers, texts, strict=True):
                answers[number] = _cut(text, stops)
                context, settings = requests[number].arguments[:2]
                self.cache_hook.add_partial("generate_until", (context, settings), answers[number])
        return answers

    def _answers(self, images: list[Any] | None, questions: list[str], max_new_tokens: int) -> list[str]:
        if images is None:
            return self.lvlm.answer(None, questions, max_new_tokens, batch_size=self.batch_size)
        replies = ask(
            self.lvlm,
            self._codes(images),
            questions,
            max_new_tokens=max_new_tokens,
            keep_ratio=self.keep_ratio,
            batch_size=self.batch_size,
            progress=self._rank == 0,
        )
        return replies.texts

    def loglikelihood(self, requests: list[Instance]) -> list[Any]:
        """Negative log-likelihoods of continuations, and whether each is the greedy answer.

        lmms-eval chooses the option with the *smallest* value (its models return losses). CRAFT scores all
        continuations of one question in one pass. It wraps the pairs if lmms-eval's evaluator would turn bare
        pairs into text. Version 0.7.3 does so, and fails on every task of this kind with bare pairs.

        Raises:
            CraftError: as `generate_until`; or a continuation's probability is not defined token by token.
        """
        likelihoods: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        questions: dict[tuple[str, Any, Any, Any], list[int]] = {}
        for number, request in enumerate(requests):
            context, _, _, document, task, split = request.arguments
            questions.setdefault((context, document, task, split), []).append(number)
        for (context, document, task, split), numbers in questions.items():
            image = self._image(requests[numbers[0]].arguments[2], document, task, split)
            targets = [requests[number].arguments[1] for number in numbers]
            texts = [
                t if isinstance(t, str) else str(t(self.task_dict[task][split][document])) for t in targets
            ]
            pairs = self._score(_without_mark(context), image, texts)
            for number, pair in zip(numbers, pairs, strict=True):
                likelihoods[number] = pair
        bare = isinstance(unwrap_generation_output((0.0, False))[0], tuple)
        return likelihoods if bare else [GenerationResult(pair) for pair in likelihoods]  # type: ignore[arg-type]

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        """Refused: the LVLM reads one image and one question.

        Raises:
            CraftError: always.
        """
        raise CraftError("CRAFT's LVLMs answer one question on one image; this task has several rounds.")

    def _score(self, context: str, image: Any, texts: Sequence[str]) -> list[tuple[float, bool]]:
        backbone, tokens = self.lvlm.backbone, None
        if image is not None:
            tokens = self.lvlm.visible(self._codes([image]).tokens(), self.keep_ratio)
        stripped = [text.strip() for text in texts]
        if not all(stripped):
            raise CraftError(f"A continuation of {context!r} is empty and has no probability.")
        ids = option_ids(backbone, context, stripped, image is not None, end=False)
        reading = read(backbone, tokens, [context])
        greedy = write(backbone, reading, max(map(len, ids)))[0][0]
        scores = score(backbone, reading, [ids])[0]
        return [(-value, greedy[: len(tokens)] == tokens) for value, tokens in zip(scores, ids, strict=True)]

    def _codes(self, images: Sequence[Any]) -> ImageCodes:
        return self.cache.encode(self.lvlm.visual, images, self.batch_size, progress=self._rank == 0)

    def _image(self, to_visual: Any, document: Any, task: str, split: str) -> Any:
        visuals = to_visual(self.task_dict[task][split][document])
        visuals = [] if visuals is None else visuals if isinstance(visuals, list | tuple) else [visuals]
        if len(visuals) > 1:
            raise CraftError(
                f"{task}, document {document}, has {len(visuals)} images, and CRAFT's LVLMs read one. "
                "Choose tasks with one image per question."
            )
        return visuals[0] if visuals else None

    def _say_once(self, text: str) -> None:
        if text not in self._reported and self._rank == 0:
            say(text)
        self._reported.add(text)


def _without_mark(context: str) -> str:
    """The question without lmms-eval's image marks; the prompt format places the image."""
    return context.replace("<image>", "").strip()


def _cut(text: str, stops: Sequence[str]) -> str:
    """The text before the first of the strings that end an answer."""
    for stop in stops:
        if stop:
            text = text.partition(stop)[0]
    return text.strip()
