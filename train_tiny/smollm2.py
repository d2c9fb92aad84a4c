"""SmolLM2-135M-Instruct as a craft-tiny backbone: a projector and LoRA, by craft's own `align`.

`python -m train_tiny.smollm2 --cache CACHE --visual DIR --out DIR`, on a GPU where there is one. Three steps:
the projector learns to put pictures among the LLM's own word embeddings (without the LLM), then to be read by
the frozen LLM (stage 1), then LoRA joins in (stage 2), with the LLM's own answers to questions without
pictures mixed in, so that it keeps talking.
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
from craft.recipes.align import align
from craft.training.run_folder import machine
from train_tiny.backbone import PASSED_OVER, load_visual
from train_tiny.names import Concept, concepts
from train_tiny.questions import JUSTIFY, Questions, Turn, name_similarity
from train_tiny.smollm2_scores import card, score
from train_tiny.tokenizer import targets

LISTED = {"text": 0.65, "justify": 0.35}
SHORT = {"name": 0.5, "category": 0.2, "keywords": 0.15, "caption": 0.15}
ANSWER_TOKENS = 48  # of the LLM's own answers
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
    """Conversations about coded pictures, and without pictures."""

    def __init__(self, things: list[Concept], questions: Questions, seed: int) -> None:
        self.things, self.questions = things, questions
        self.rng = random.Random(seed)

    def turn(self, concept: int, task: str) -> Turn:
        """One turn about a picture; a reason is a sentence, and is asked for with and without options."""
        thing, rng = self.things[concept], self.rng
        if task != "justify":
            return self.questions.about(concept, task, rng)
        words = [w for w in thing.keywords[:3] if w != thing.name] or [thing.category]
        why = f"because the picture shows {thing.name}: {', '.join(words)}. It is a kind of {thing.category}."
        if rng.random() < 0.3:
            return Turn(f"What is shown in the image?\n{JUSTIFY}", f"{thing.name}, {why}", task)
        listed = self.questions.about(concept, "justify", rng)
        option = listed.answer.partition(" because ")[0]
        return Turn(listed.question, f"{option}, {why}", task)

    def rows(self, labels: list[int], first: bool) -> list[Conversation]:
        """For every picture its turns, each a conversation of its own: two short ones, two with options."""
        found = []
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
                found.append(Conversation(key, ((turn.question, turn.answer),), picture))
        return found

    def prompts(self, count: int) -> list[str]:
        """Questions without pictures, for the LLM to answer as it always did."""
        plain = [thing.name for thing in self.things if thing.emoji]
        return [
            self.rng.choice(PROMPTS).format(name=self.rng.choice(plain), other=self.rng.choice(plain))
            for _ in range(count)
        ]


@torch.no_grad()
def own_answers(backbone: Backbone, prompts: list[str], batch: int = 128) -> list[Conversation]:
    """The LLM's own greedy answers; those that were cut off end with their last whole sentence."""
    found = []
    for start in range(0, len(prompts), batch):
        chosen = prompts[start : start + batch]
        for prompt, answer in zip(chosen, generate(backbone, None, chosen, ANSWER_TOKENS), strict=True):
            whole = re.match(r"(?s).*[.!?]", answer)
            text = whole.group() if whole and len(answer.split()) > 20 else answer
            if text.strip():
                found.append(Conversation(f"own-{start}-{len(found)}", ((prompt, text),)))
    return found


def kept_answers(place: Path, backbone: Backbone, prompts: list[str]) -> list[Conversation]:
    """The LLM's own answers from a file of an earlier call with the same prompts; else asked for, and written
    there: made anew on a GPU they could differ, and a run that is resumed wants the data it began with."""
    kept = read_json(place) if place.is_file() else {}
    if kept.get("prompts") != prompts:
        told = [(c.id, *c.turns[0]) for c in own_answers(backbone, prompts)]
        kept = {"prompts": prompts, "answers": told}
        write_json(place, kept)
    return [Conversation(key, ((asked, said),)) for key, asked, said in kept["answers"]]


def among_words(
    projector: Projector, tokens: Tensor, labels: Tensor, words: Tensor, steps: int, seed: int
) -> float:
    """Train the projector so that a picture's mean projection is nearest to its name's embedding.

    A third of the tokens is drawn in each step.

    Args:
        projector: in place.
        tokens: codeword sums `[n, N, d]`.
        labels: int64 `[n]`.
        words: mean LLM embeddings of the names `[C, h]`.
        steps: of 256 pictures.

    Returns:
        The share of the last pictures whose name is the nearest of all.
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
        places = torch.randperm(tokens.shape[1], generator=g)[:16]
        projected = projector(tokens[chosen][:, places])
        mean = projected.mean(1)
        logits = F.normalize(mean - centre, dim=1) @ spread.T * scale.exp()
        near = (projected - centre).pow(2).mean().sqrt() / size - 1  # as large as words are
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
    """Codes that leave out a random share of each image's tokens, so that a backbone learns not to depend on
    single tokens: a pure function of the seed and the images of a batch.

    Attributes:
        least: at least this share of an image's tokens stays.
        seed: of the shares and of the tokens that stay.
    """

    least: float = 1.0
    seed: int = 0

    def tokens(self, images: Iterable[int] | slice | None = None) -> VisionTokens:
        """As `ImageCodes.tokens`, with an `attention_mask` bool `[B, N]`."""
        if images is not None and not isinstance(images, slice):
            images = list(images)
        tokens = super().tokens(images)
        count = tokens.codes.shape[:2]
        made = generator("keep", self.seed, images)
        share = self.least + (1 - self.least) * torch.rand(count[0], 1, generator=made)
        lots = torch.rand(count, generator=made)
        last = (share * count[1]).ceil().long().clamp(1, count[1]) - 1
        mask = lots <= lots.sort(dim=1).values.gather(1, last)
        return replace(tokens, attention_mask=mask.to(tokens.codes.device))


def pictures(visual: VisualTokenizer, codes: Tensor, least: float = 1.0, seed: int = 0) -> ImageCodes:
    """Codes `[n, N, L]` as if a cache had them; `least` below 1 leaves out a share of an image's tokens."""
    names = tuple(map(str, range(len(codes))))
    whole = (visual, codes, torch.zeros(codes.shape[:2]), torch.arange(len(codes)), names)
    return ImageCodes(*whole) if least == 1 else ThinnedCodes(*whole, least=least, seed=seed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--visual", type=Path, required=True, help="tower, codebook and codes.safetensors")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--start", type=Path, help="an earlier result, to go on from: stage 2 alone")
    parser.add_argument("--word-steps", type=int, default=400, help="the projector alone, among words")
    parser.add_argument("--first", type=int, default=960, help="pictures of stage 1")
    parser.add_argument("--pictures", type=int, default=3200, help="pictures of stage 2")
    parser.add_argument("--own", type=int, default=320, help="the LLM's own answers, mixed into stage 2")
    parser.add_argument("--text-share", type=float, default=0.08, help="of those answers in stage 2")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--test", type=int, default=160)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--overfit", type=int, default=0, help="only so many pictures, as a check")
    args = parser.parse_args()
    began = time.monotonic()
    things = concepts(args.cache)
    goal, _, _ = targets(things, args.cache)
    lessons = Lessons(things, Questions(things, name_similarity(goal)), args.seed)
    tower, codebook = load_visual(args.visual)
    visual = VisualTokenizer(tower, codebook).eval()
    data = load_tensors(args.visual / "codes.safetensors")
    useful = torch.tensor([things[i].category not in PASSED_OVER for i in data["train.labels"].tolist()])
    codes, labels = data["train.codes"][useful], data["train.labels"][useful]
    if args.overfit:
        codes, labels = codes[: args.overfit], labels[: args.overfit]

    device = resolve_device(args.device)
    llm, tokenizer = open_llm("smollm2", getattr(torch, args.dtype))
    projector = Projector({"type": "mlp2x_gelu", "in": codebook.dim, "out": llm.config.hidden_size})
    words = name_embeddings(llm, tokenizer, things)
    place = args.start or args.out / "words"
    if not args.start and not (place / "projector/model.safetensors").exists():
        torch.manual_seed(args.seed)
        hits = among_words(
            projector, codebook.lookup(codes.long()), labels, words, args.word_steps, args.seed
        )
        say(f"among words: {hits:.3f} of pictures nearest to their name, {time.monotonic() - began:.0f} s")
        write_json(place / "projector/config.json", projector.config)
        save_tensors(place / "projector/model.safetensors", projector.state_dict())
    mute = Backbone(projector, llm, tokenizer, "chat-template", codebook.fingerprint).to(device)
    shown, concepts_shown = {}, {}
    for name in ("test", "other_artist"):
        listed = data[f"{name}.labels"].tolist()
        keep = [n for n, label in enumerate(listed) if things[label].category not in PASSED_OVER][: args.test]
        shown[name] = pictures(visual, data[f"{name}.codes"][keep])
        concepts_shown[name] = [listed[n] for n in keep]
    few = concepts_shown["test"][: args.test // 2]
    names = [thing.name for thing in things]
    found = {"told in words, before": score(mute, None, lessons.turn, few, names)}
    own: list[Conversation] = []
    if args.own:
        own = kept_answers(args.out / "own.json", mute, lessons.prompts(args.own))
        say(f"{len(own)} answers of its own, {time.monotonic() - began:.0f} s: {own[0].turns[0]}")
    del llm, mute

    order = torch.randperm(len(codes), generator=torch.Generator().manual_seed(args.seed))
    used: list[int] = []

    def draw(count: int, first: bool) -> list[Conversation]:
        chosen = [int(order[(len(used) + n) % len(order)]) for n in range(count)]
        used.extend(chosen)
        rows = lessons.rows([int(labels[row]) for row in chosen], first)
        return [Conversation(c.id, c.turns, chosen[int(c.image)]) for c in rows]  # type: ignore[arg-type]

    shared = {
        "codes": pictures(visual, codes),
        "seed": args.seed,
        "device": args.device,
        "dtype": args.dtype,
        "batch_size": args.batch,
        "max_length": 640,
        "gradient_checkpointing": False,
        "max_grad_norm": 1.0,
        "checkpoint_every": 50,
    }
    first, minutes = args.start or args.out / "first", 0.0
    if not args.start:
        minutes = align(
            "smollm2", visual, draw(args.first, True), "1", first, resume=first.exists(), start=str(place),
            learning_rate=args.learning_rate, questions_per_row=2, lora__merge=False, **shared,
        ).metrics["1"]["minutes"]  # fmt: skip
    last = args.out / "aligned"
    result = align(
        "smollm2", visual, draw(args.pictures, False), "2", last, resume=last.exists(), start=str(first),
        text=own or None, text_share=args.text_share, learning_rate=args.learning_rate,
        questions_per_row=4, lora__rank=args.rank, lora__merge=False,
        **shared | {"codes": pictures(visual, codes, least=0.6, seed=args.seed)},
    )  # fmt: skip
    backbone = load(result.backbone, args.device, "float32").backbone  # as it was written, and is shipped
    found["told in words, after"] = score(backbone, None, lessons.turn, few, names)
    for name, codes_shown in shown.items():
        found[name] = score(backbone, codes_shown, lessons.turn, concepts_shown[name])
    found["picture hidden"] = score(backbone, None, lessons.turn, concepts_shown["test"])
    say(json.dumps(found, indent=2))
    minutes += result.metrics["2"]["minutes"]
    settings = told_settings(args)
    told = {
        "settings": settings,
        "minutes": round(minutes, 1),
        **machine(),
        "steps": result.metrics,
        "perplexity": {when: result.language[when]["perplexity"] for when in ("before", "after")},
        "scores": found,
    }
    write_json(args.out / "scores.json", told)
    where = "one core" if device.type == "cpu" else told["accelerator"]
    atomic_write_text(result.backbone / "README.md", card(settings, found, result.language, minutes, where))
    say(f"{minutes:.1f} min of training, {time.monotonic() - began:.0f} s now; {result.backbone}")


def told_settings(args: argparse.Namespace) -> dict[str, Any]:
    """What is told of a command, JSON-able: all but places, which are of this machine; of an earlier result
    whether it went on from one, and then nothing of the steps that it left out."""
    unsaid = {"cache", "visual", "out"} | ({"word_steps", "first"} if args.start else set())
    settings = {name: value for name, value in vars(args).items() if name not in unsaid}
    return {**settings, "start": args.start is not None}


if __name__ == "__main__":
    main()
