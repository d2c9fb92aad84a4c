"""SmolLM2-135M-Instruct as a craft-tiny backbone: a projector and LoRA, by craft's own `align`.

`python -m train_tiny.smollm2 --cache CACHE --visual DIR --out DIR` uses a GPU if there is one. It has three
steps. First, without the LLM, the projector learns to place images among the LLM's word embeddings. Then it
trains with the frozen LLM (stage 1), and then together with LoRA (stage 2). Stage 2 also has the original
LLM's answers to questions without images, so that the LLM keeps its language.
"""

import argparse
import json
import random
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from craft.core.device import resolve_device
from craft.core.files import atomic_write_text, read_json, write_json
from craft.core.progress import say
from craft.core.seeding import generator
from craft.core.tensors import load_tensors, save_tensors
from craft.core.tokens import VisionTokens
from craft.data.chats import Conversation
from craft.formats.code_cache import ImageCodes
from craft.formats.llm_source import open_llm
from craft.formats.load import load
from craft.models.backbone import Backbone
from craft.models.decoding import generate
from craft.models.projector import Projector
from craft.models.visual_tokenizer import VisualTokenizer
from craft.recipes.align import AlignResult, align
from craft.training.run_folder import machine
from train_tiny.backbone import PASSED_OVER, load_visual, useful_codes
from train_tiny.names import Concept, concepts
from train_tiny.questions import JUSTIFY, Questions, Turn, name_similarity
from train_tiny.smollm2_scores import card, score
from train_tiny.tokenizer import targets

LISTED = {"text": 0.65, "justify": 0.35}
SHORT = {"name": 0.5, "category": 0.2, "keywords": 0.15, "caption": 0.15}
ANSWER_TOKENS = 48  # of the original LLM's answers to questions without images
PROMPTS = (
    "What is a {name}?",
    "What is a {name}? Answer in one sentence.",
    "Write one sentence about a {name}.",
    "Where would you find a {name}?",
    "What colour is a {name} usually? Answer with one word.",
    "Is a {name} alive? Justify your answer.",
    "Is a {name} bigger than a {other}? Justify your answer.",
    "Name two things that are like a {name}.",
    "What is the difference between a {name} and a {other}?",
    "Which is older, the {name} or the {other}? Justify your answer.",
    "Give a reason to like a {name}.",
    "Use the word {name} in a sentence.",
)


class Lessons:
    """Random conversations about coded images, and questions without images."""

    def __init__(self, things: list[Concept], questions: Questions, seed: int) -> None:
        self.things, self.questions = things, questions
        self.rng = random.Random(seed)

    def turn(self, concept: int, task: str) -> Turn:
        """One turn about an image. Questions for a reason come with and without options."""
        thing, rng = self.things[concept], self.rng
        if task != "justify":
            return self.questions.about(concept, task, rng)
        words = [w for w in thing.keywords[:3] if w != thing.name] or [thing.category]
        why = f"because the picture shows {thing.name}: {', '.join(words)}. It is a kind of {thing.category}."
        if rng.random() < 0.3:
            return Turn(f"What is shown in the image?\n{JUSTIFY}", f"{thing.name}, {why}", task)
        turn = self.questions.about(concept, "justify", rng)
        option = turn.answer.partition(" because ")[0]
        return Turn(turn.question, f"{option}, {why}", task)

    def rows(self, labels: list[int], first: bool) -> list[Conversation]:
        """Two short turns and two with options about each image, each as a conversation."""
        conversations = []
        for picture, concept in enumerate(labels):
            if first:
                tasks = ["name", "caption"]
            else:
                tables = (LISTED, LISTED, SHORT, SHORT)
                tasks = [self.rng.choices(list(t), list(t.values()))[0] for t in tables]
            if tasks[-1] == tasks[-2]:
                tasks.pop()
            for number, task in enumerate(tasks):
                turn = self.turn(concept, task)
                key = f"{picture}-{number}-{task}"
                conversations.append(Conversation(key, ((turn.question, turn.answer),), picture))
        return conversations

    def prompts(self, count: int) -> list[str]:
        """Questions without images, for the original LLM."""
        plain = [thing.name for thing in self.things if thing.emoji]
        return [
            self.rng.choice(PROMPTS).format(name=self.rng.choice(plain), other=self.rng.choice(plain))
            for _ in range(count)
        ]


@torch.no_grad()
def llm_answers(backbone: Backbone, prompts: list[str], batch: int = 128) -> list[Conversation]:
    """The LLM's greedy answers without images. Truncated answers end with their last whole sentence."""
    conversations = []
    for start in range(0, len(prompts), batch):
        chosen = prompts[start : start + batch]
        for prompt, answer in zip(chosen, generate(backbone, None, chosen, ANSWER_TOKENS), strict=True):
            whole = re.match(r"(?s).*[.!?]", answer)
            text = whole.group() if whole and len(answer.split()) > 20 else answer
            if text.strip():
                conversations.append(Conversation(f"own-{start}-{len(conversations)}", ((prompt, text),)))
    return conversations


def stored_answers(path: Path, backbone: Backbone, prompts: list[str]) -> list[Conversation]:
    """`llm_answers`, stored in a file for later calls with the same prompts.

    On a GPU, a second call could give other answers, and a run can only be resumed with the same data.
    """
    stored = read_json(path) if path.is_file() else {}
    if stored.get("prompts") != prompts:
        answers = [(c.id, *c.turns[0]) for c in llm_answers(backbone, prompts)]
        stored = {"prompts": prompts, "answers": answers}
        write_json(path, stored)
    return [Conversation(key, ((prompt, answer),)) for key, prompt, answer in stored["answers"]]


def among_words(
    projector: Projector, tokens: Tensor, labels: Tensor, words: Tensor, steps: int, seed: int
) -> float:
    """Train the projector so that the mean projection of an image is nearest to the embedding of its name.

    Each step uses 16 random tokens of each image.

    Args:
        projector: it is trained in place.
        tokens: codeword sums `[n, N, d]`.
        labels: concepts int64 `[n]`.
        words: mean LLM embeddings of the names `[C, h]`.
        steps: the number of steps, with 256 images each.
        seed: for the choice of images and tokens.

    Returns:
        The share of images whose name is the nearest one, as a moving average at the end.
    """
    centre = words.mean(0)
    spread = F.normalize(words - centre, dim=1)
    scale = torch.nn.Parameter(torch.tensor(3.0))
    optimizer = torch.optim.AdamW([*projector.parameters(), scale], lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    g, hits = torch.Generator().manual_seed(seed), 0.0
    size = words.std()
    for _ in range(steps):
        chosen = torch.randint(len(tokens), (256,), generator=g)
        positions = torch.randperm(tokens.shape[1], generator=g)[:16]
        projected = projector(tokens[chosen][:, positions])
        mean = projected.mean(1)
        logits = F.normalize(mean - centre, dim=1) @ spread.T * scale.exp()
        near = (projected - centre).pow(2).mean().sqrt() / size - 1  # of the size of word embeddings
        loss = F.cross_entropy(logits, labels[chosen]) + near.pow(2)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        hits = 0.9 * hits + 0.1 * float((logits.argmax(1) == labels[chosen]).float().mean())
    return hits


def name_embeddings(llm: torch.nn.Module, tokenizer: object, things: list[Concept]) -> Tensor:
    """Mean embedding of each name's tokens, float32 `[C, h]`."""
    table = llm.get_input_embeddings().weight.detach().float()  # type: ignore[operator]
    ids = [tokenizer(f" {thing.name}", add_special_tokens=False)["input_ids"] for thing in things]  # type: ignore[operator]
    return torch.stack([table[torch.tensor(row)].mean(0) for row in ids])


@dataclass(frozen=True, eq=False)
class ThinnedCodes(ImageCodes):
    """Codes without a random share of each image's tokens, so that no single token is indispensable.

    The choice of tokens is a pure function of the seed and the images of a batch.

    Attributes:
        least: at least this share of an image's tokens remains.
        seed: for the shares and the tokens that remain.
    """

    least: float = 1.0
    seed: int = 0

    def tokens(self, images: Iterable[int] | slice | None = None) -> VisionTokens:
        """As `ImageCodes.tokens`, with an `attention_mask` bool `[B, N]`."""
        if images is not None and not isinstance(images, slice):
            images = list(images)
        tokens = super().tokens(images)
        count = tokens.codes.shape[:2]
        draws = generator("keep", self.seed, images)
        share = self.least + (1 - self.least) * torch.rand(count[0], 1, generator=draws)
        ranks = torch.rand(count, generator=draws)
        last = (share * count[1]).ceil().long().clamp(1, count[1]) - 1
        mask = ranks <= ranks.sort(dim=1).values.gather(1, last)
        return replace(tokens, attention_mask=mask.to(tokens.codes.device))


def pictures(visual: VisualTokenizer, codes: Tensor, least: float = 1.0, seed: int = 0) -> ImageCodes:
    """Codes `[n, N, L]` as from a cache; with `least` below 1, a random share of the tokens is left out."""
    names = tuple(map(str, range(len(codes))))
    whole = (visual, codes, torch.zeros(codes.shape[:2]), torch.arange(len(codes)), names)
    return ImageCodes(*whole) if least == 1 else ThinnedCodes(*whole, least=least, seed=seed)


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--visual", type=Path, required=True, help="tower, codebook and codes.safetensors")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--start", type=Path, help="an earlier result to continue with stage 2 alone")
    parser.add_argument("--word-steps", type=int, default=400, help="the projector alone, among words")
    parser.add_argument("--first", type=int, default=960, help="images of stage 1")
    parser.add_argument("--pictures", type=int, default=3200, help="images of stage 2")
    parser.add_argument("--own", type=int, default=320, help="answers of the original LLM for stage 2")
    parser.add_argument("--text-share", type=float, default=0.08, help="share of those answers in stage 2")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--test", type=int, default=160)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--overfit", type=int, default=0, help="only this many images, as a check")
    return parser.parse_args()


class Pictures:
    """The coded images of all sets.

    Args:
        args: the command line.
        things: all concepts.
    """

    def __init__(self, args: argparse.Namespace, things: list[Concept]) -> None:
        tower, self.codebook = load_visual(args.visual)
        self.visual = VisualTokenizer(tower, self.codebook).eval()
        data = load_tensors(args.visual / "codes.safetensors")
        self.codes, self.labels = useful_codes(data, things)
        if args.overfit:
            self.codes, self.labels = self.codes[: args.overfit], self.labels[: args.overfit]
        self.test: dict[str, ImageCodes] = {}
        self.test_labels: dict[str, list[int]] = {}
        for name in ("test", "other_artist"):
            labels = data[f"{name}.labels"].tolist()
            useful = [n for n, label in enumerate(labels) if things[label].category not in PASSED_OVER]
            chosen = useful[: args.test]
            self.test[name] = pictures(self.visual, data[f"{name}.codes"][chosen])
            self.test_labels[name] = [labels[n] for n in chosen]
        self.order = torch.randperm(len(self.codes), generator=torch.Generator().manual_seed(args.seed))
        self.used = 0

    def conversations(self, lessons: Lessons, count: int, first: bool) -> list[Conversation]:
        """Conversations about the next `count` images in a random order; `first` is stage 1."""
        chosen = [int(self.order[(self.used + n) % len(self.order)]) for n in range(count)]
        self.used += count
        rows = lessons.rows([int(self.labels[row]) for row in chosen], first)
        return [Conversation(c.id, c.turns, chosen[int(c.image)]) for c in rows]  # type: ignore[arg-type]


def untrained_backbone(args: argparse.Namespace, coded: Pictures, things: list[Concept]) -> Backbone:
    """The original LLM with a projector, which trains among words unless the run has a start."""
    llm, tokenizer = open_llm("smollm2", getattr(torch, args.dtype))
    codebook = coded.codebook
    projector = Projector({"type": "mlp2x_gelu", "in": codebook.dim, "out": llm.config.hidden_size})
    words = name_embeddings(llm, tokenizer, things)
    folder = args.out / "words/projector"
    if not args.start and not (folder / "model.safetensors").exists():
        start = time.monotonic()
        torch.manual_seed(args.seed)
        sums = codebook.lookup(coded.codes.long())
        hits = among_words(projector, sums, coded.labels, words, args.word_steps, args.seed)
        say(f"among words: {hits:.3f} of images nearest to their name, {time.monotonic() - start:.0f} s")
        write_json(folder / "config.json", projector.config)
        save_tensors(folder / "model.safetensors", projector.state_dict())
    backbone = Backbone(projector, llm, tokenizer, "chat-template", codebook.fingerprint)
    return backbone.to(resolve_device(args.device))


def train(
    args: argparse.Namespace, coded: Pictures, lessons: Lessons, texts: list[Conversation]
) -> tuple[AlignResult, float]:
    """Stage 1 (unless the run has a start) and stage 2; returns the result and the minutes of training."""
    shared = {
        "codes": pictures(coded.visual, coded.codes),
        "seed": args.seed,
        "device": args.device,
        "dtype": args.dtype,
        "batch_size": args.batch,
        "max_length": 640,
        "gradient_checkpointing": False,
        "max_grad_norm": 1.0,
        "checkpoint_every": 50,
        "learning_rate": args.learning_rate,
        "lora__merge": False,
        "lora__scope": "all",  # it also trains on text; `assemble` sets the scope "image"
    }
    first, minutes = args.start or args.out / "first", 0.0
    if not args.start:
        lesson = coded.conversations(lessons, args.first, True)
        minutes = align(
            "smollm2", coded.visual, lesson, "1", first, resume=first.exists(),
            start=str(args.out / "words"), questions_per_row=2, **shared,
        ).metrics["1"]["minutes"]  # fmt: skip
    last, lesson = args.out / "aligned", coded.conversations(lessons, args.pictures, False)
    thinned = pictures(coded.visual, coded.codes, least=0.6, seed=args.seed)
    result = align(
        "smollm2", coded.visual, lesson, "2", last, resume=last.exists(), start=str(first),
        text=texts or None, text_share=args.text_share, questions_per_row=4, lora__rank=args.rank,
        **shared | {"codes": thinned},
    )  # fmt: skip
    return result, minutes + result.metrics["2"]["minutes"]


def main() -> None:
    """Train, score before and after, and write scores.json and the model card."""
    args = options()
    start = time.monotonic()
    things = concepts(args.cache)
    questions = Questions(things, name_similarity(targets(things, args.cache)[0]))
    lessons, coded = Lessons(things, questions, args.seed), Pictures(args, things)
    original = untrained_backbone(args, coded, things)
    few, names = coded.test_labels["test"][: args.test // 2], [thing.name for thing in things]
    results = {"told in words, before": score(original, None, lessons.turn, few, names)}
    texts: list[Conversation] = []
    if args.own:
        texts = stored_answers(args.out / "own.json", original, lessons.prompts(args.own))
        say(f"{len(texts)} answers of the LLM, {time.monotonic() - start:.0f} s: {texts[0].turns[0]}")
    del original

    result, minutes = train(args, coded, lessons, texts)
    backbone = load(result.backbone, args.device, "float32").backbone  # from the files that are shipped
    results["told in words, after"] = score(backbone, None, lessons.turn, few, names)
    for name, images in coded.test.items():
        results[name] = score(backbone, images, lessons.turn, coded.test_labels[name])
    results["picture hidden"] = score(backbone, None, lessons.turn, coded.test_labels["test"])
    say(json.dumps(results, indent=2))
    record = {
        "settings": recorded_settings(args),
        "minutes": round(minutes, 1),
        **machine(),
        "steps": result.metrics,
        "perplexity": {when: result.language[when]["perplexity"] for when in ("before", "after")},
        "scores": results,
    }
    write_json(args.out / "scores.json", record)
    on_cpu = resolve_device(args.device).type == "cpu"
    hardware = "one core" if on_cpu else record["accelerator"]
    text = card(record["settings"], results, result.language, minutes, hardware)
    atomic_write_text(result.backbone / "README.md", text)
    say(f"{minutes:.1f} min of training, {time.monotonic() - start:.0f} s now; {result.backbone}")


def recorded_settings(args: argparse.Namespace) -> dict[str, Any]:
    """The settings to record, for JSON: all but paths. `start` becomes whether the run continued an earlier
    result, and then the settings of the skipped steps are left out."""
    skipped = {"cache", "visual", "out"} | ({"word_steps", "first"} if args.start else set())
    settings = {name: value for name, value in vars(args).items() if name not in skipped}
    return {**settings, "start": args.start is not None}


if __name__ == "__main__":
    main()
