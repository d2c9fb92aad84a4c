"""CRAFT's LVLMs as a model of lmms-eval, so that any of its tasks can be run on them (extra `lmms`).

    lmms-eval --model craft --model_args pretrained=craft-tiny/llama,encoder=runs/apparel --tasks mme

lmms-eval finds `manifest` through the entry point `lmms_eval.models`; only it imports this file.
"""

from collections.abc import Sequence
from typing import Any

from accelerate import Accelerator
from lmms_eval.api.instance import GenerationResult, unwrap_generation_output
from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest

from craft.core.errors import CraftError
from craft.core.progress import say
from craft.evaluation.ask import ask
from craft.formats.code_cache import CodeCache, ImageCodes
from craft.formats.load import load
from craft.models.decoding import option_ids, read, score, write

LONGEST = 1024
"""The cap on an answer where a task names none, as lmms-eval's own models have it."""

manifest = ModelManifest("craft", simple_class_path="craft.evaluation.lmms.CraftLVLM")


class CraftLVLM(lmms):
    """An LVLM of CRAFT behind lmms-eval's interface. It reads one image, or none, and answers greedily.

    Args:
        pretrained: a shipped model, a folder or a hub id, as `craft.load` takes it.
        encoder: a run folder or adapted encoder; None is zero-shot.
        keep_ratio: share of visual tokens that the LLM sees.
        cache: a folder for codes of images; None keeps them in memory.
        batch_size: questions per forward pass.
        device, dtype: as `craft.load` takes them; every process of `accelerate launch` takes its own device.
        max_batch_size: accepted because lmms-eval passes it, and not used.

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
        self._told: set[str] = set()

    def generate_until(self, requests: list[Any]) -> list[str]:
        """Greedy answers; requests of equal settings go together, in batches of similar length.

        Raises:
            CraftError: a request has more than one image, or something that is not one.
        """
        kinds: dict[tuple[int, tuple[str, ...], bool], list[int]] = {}
        asked: list[tuple[str, Any]] = []
        for number, request in enumerate(requests):
            context, settings, to_visual, document, task, split = request.args
            image = self._image(to_visual, document, task, split)
            asked.append((_without_mark(context), image))
            if settings.get("do_sample") or (settings.get("temperature") or 0) > 0:
                self._say_once(f"{task} asks for sampling; CRAFT answers greedily.")
            stops = settings.get("until") or ()
            stops = (stops,) if isinstance(stops, str) else tuple(stops)
            most = int(settings.get("max_new_tokens") or LONGEST)
            kinds.setdefault((most, stops, image is None), []).append(number)
        answers = [""] * len(requests)
        for (most, stops, blind), numbers in kinds.items():
            questions = [asked[number][0] for number in numbers]
            said = (
                self.lvlm.answer(None, questions, most, batch_size=self.batch_size)
                if blind
                else ask(
                    self.lvlm,
                    self._codes([asked[number][1] for number in numbers]),
                    questions,
                    max_new_tokens=most,
                    keep_ratio=self.keep_ratio,
                    batch_size=self.batch_size,
                    progress=self._rank == 0,
                ).texts
            )
            for number, text in zip(numbers, said, strict=True):
                answers[number] = _cut(text, stops)
                context, settings = requests[number].args[:2]
                self.cache_hook.add_partial("generate_until", (context, settings), answers[number])
        return answers

    def loglikelihood(self, requests: list[Any]) -> list[Any]:
        """Negative log-likelihoods of continuations, and whether each is the greedy answer.

        lmms-eval takes the option with the *smallest* value (its models return losses). All continuations of
        one question are scored in one pass. The pairs are wrapped where lmms-eval's evaluator would turn them
        into text (0.7.3 does, and no task of this kind runs there on any model that returns bare pairs).

        Raises:
            CraftError: as `generate_until`; or a continuation's probability is not defined token by token.
        """
        found: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        questions: dict[tuple[str, Any, Any, Any], list[int]] = {}
        for number, request in enumerate(requests):
            context, _, _, document, task, split = request.args
            questions.setdefault((context, document, task, split), []).append(number)
        for (context, document, task, split), numbers in questions.items():
            image = self._image(requests[numbers[0]].args[2], document, task, split)
            targets = [requests[number].args[1] for number in numbers]
            texts = [
                t if isinstance(t, str) else str(t(self.task_dict[task][split][document])) for t in targets
            ]
            for number, one in zip(numbers, self._score(_without_mark(context), image, texts), strict=True):
                found[number] = one
        bare = isinstance(unwrap_generation_output((0.0, False))[0], tuple)
        return found if bare else [GenerationResult(pair) for pair in found]  # type: ignore[arg-type]

    def generate_until_multi_round(self, requests: list[Any]) -> list[str]:
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
            raise CraftError(f"A continuation of {context!r} is empty, and has no probability.")
        ids = option_ids(backbone, context, stripped, image is not None, end=False)
        reading = read(backbone, tokens, [context])
        said = write(backbone, reading, max(map(len, ids)))[0][0]
        scores = score(backbone, reading, [ids])[0]
        return [(-value, said[: len(one)] == one) for value, one in zip(scores, ids, strict=True)]

    def _codes(self, images: Sequence[Any]) -> ImageCodes:
        return self.cache.encode(self.lvlm.visual, images, self.batch_size, progress=self._rank == 0)

    def _image(self, to_visual: Any, document: Any, task: str, split: str) -> Any:
        visuals = to_visual(self.task_dict[task][split][document])
        visuals = [] if visuals is None else visuals if isinstance(visuals, list | tuple) else [visuals]
        if len(visuals) > 1:
            raise CraftError(
                f"{task}, document {document}: {len(visuals)} images, and CRAFT's LVLMs read one. "
                "Choose tasks with one image per question."
            )
        return visuals[0] if visuals else None

    def _say_once(self, text: str) -> None:
        if text not in self._told and self._rank == 0:
            say(text)
        self._told.add(text)


def _without_mark(context: str) -> str:
    """The question without lmms-eval's image marks: the prompt format says where the image goes."""
    return context.replace("<image>", "").strip()


def _cut(text: str, stops: Sequence[str]) -> str:
    """The text up to the first of the strings at which a task lets an answer end."""
    for stop in stops:
        if stop:
            text = text.partition(stop)[0]
    return text.strip()
