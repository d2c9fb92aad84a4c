"""Questions and answers about general images, as text for the backbones to learn."""

import random
from dataclasses import dataclass

import torch
from torch import Tensor

from train_tiny.names import Concept

LETTERS = "ABCD"
ASK_OPTIONS = (
    "What is shown in the image?",
    "Which of these is shown in the image?",
    "Which of these choices is shown in the image?",
    "What is this?",
    "Which word fits the picture best?",
    "What do you see?",
)
ASK_NAME = (
    "What is shown in the image?",
    "What is this?",
    "What do you see?",
    "Name the thing in the picture.",
)
ASK_CAPTION = ("Describe the image.", "Write a caption for the picture.", "Describe what you see.")
ASK_KIND = ("What kind of thing is this?", "Which category does it belong to?")
ASK_KEYWORDS = ("Give keywords for the image.", "List words that fit the picture.")
BY_LETTER = ("Answer in one letter only.", "Answer with the letter from the given choices directly.")
BY_TEXT = ("Answer with the option only.", "Answer as succinctly as possible.")
JUSTIFY = "Justify your answer."
# Words of a user's domains. They occur as options and in texts, without images of these domains.
DOMAIN_WORDS = (
    "t-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
    "trouser", "sweater", "boot", "shoe", "handbag",
)  # fmt: skip
# A row has two turns with options and two short ones; stage 1 has names and plain options.
LISTED = {1: {"text": 1.0}, 2: {"text": 0.7, "letter": 0.22, "justify": 0.08}}
SHORT = {
    1: {"name": 0.75, "category": 0.25},
    2: {"name": 0.5, "category": 0.2, "keywords": 0.18, "caption": 0.12},
}
SYLLABLES = [c + v for c in "bdfgklmnprstvz" for v in "aeiou"] + ["ar", "en", "ol", "um", "ix", "or", "in"]


@dataclass(frozen=True)
class Turn:
    """One question and its answer.

    Attributes:
        question, answer: the texts.
        task: the kind of question, for scores by task.
        more: (prompt, answer) pairs that follow. The LLM reads the prompts and learns the answers.
    """

    question: str
    answer: str
    task: str
    more: tuple[tuple[str, str], ...] = ()


def invented(rng: random.Random) -> str:
    """A pronounceable word without a meaning."""
    return "".join(rng.choice(SYLLABLES) for _ in range(rng.randint(2, 4)))


def listing(question: str, options: list[str], directive: str) -> str:
    """The layout of four options: question, lettered lines, directive."""
    lines = [
        question,
        *(f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=True)),
        directive,
    ]
    return "\n".join(lines)


class Questions:
    """Draws random turns about concepts.

    Args:
        concepts: all concepts.
        similarity: cosine between the text embeddings of their names `[C, C]`.
    """

    def __init__(self, concepts: list[Concept], similarity: Tensor) -> None:
        self.concepts = concepts
        self.similarity = similarity
        self.groups: dict[str, list[int]] = {}
        for index, concept in enumerate(concepts):
            self.groups.setdefault(concept.category, []).append(index)
        self.near = similarity.topk(24, dim=1).indices.tolist()

    def row(self, index: int, rng: random.Random, stage: int = 2) -> list[Turn]:
        """Four turns about the image of concept `index`: two with options, two short ones."""
        tables = (LISTED[stage], LISTED[stage], SHORT[stage], SHORT[stage])
        tasks = [rng.choices(list(table), list(table.values()))[0] for table in tables]
        if tasks[2] == tasks[3]:
            tasks.pop()
        return [self.about(index, task, rng, stage) for task in tasks]

    def about(self, index: int, task: str, rng: random.Random, stage: int = 2) -> Turn:
        """One turn about the image of concept `index`.

        In stage 1, options are plain names, so that the LLM first learns to read images. In stage 2, they
        also use other words.
        """
        concept = self.concepts[index]
        if task == "name":
            return Turn(rng.choice(ASK_NAME), concept.name, task)
        if task == "caption":
            return Turn(
                rng.choice(ASK_CAPTION), f"a picture of {concept.name}, a kind of {concept.category}", task
            )
        if task == "category":
            return Turn(rng.choice(ASK_KIND), concept.category, task)
        if task == "keywords":
            return Turn(rng.choice(ASK_KEYWORDS), ", ".join(concept.keywords[:3]) or concept.category, task)
        options, right = self.plain_options(index, rng) if stage == 1 else self.options(index, rng)
        if task == "justify":
            why = ", ".join([*concept.keywords[:2], concept.category])
            question = listing(rng.choice(ASK_OPTIONS), options, JUSTIFY)
            return Turn(question, f"{options[right]} because it looks like {concept.name}: {why}", task)
        if task == "text":
            return Turn(listing(rng.choice(ASK_OPTIONS), options, rng.choice(BY_TEXT)), options[right], task)
        return Turn(listing(rng.choice(ASK_OPTIONS), options, rng.choice(BY_LETTER)), LETTERS[right], task)

    def plain_options(self, index: int, rng: random.Random) -> tuple[list[str], int]:
        """The name among three other names."""
        options = [self.concepts[index].name]
        while len(options) < 4:
            other = rng.choice(self.concepts).name
            if other not in options:
                options.append(other)
        name = options[0]
        rng.shuffle(options)
        return options, options.index(name)

    def options(self, index: int, rng: random.Random) -> tuple[list[str], int]:
        """Four different options and the index of the correct one."""
        concept = self.concepts[index]
        draw = rng.random()
        if draw < 0.16:  # the name is not an option, and the option nearest in meaning is correct
            for _ in range(8):
                pool = [*rng.sample(range(len(self.concepts)), 3), rng.choice(self.near[index][1:])]
                rng.shuffle(pool)
                scores = self.similarity[index, pool]
                best = int(scores.argmax())
                gap = scores[best] - scores.topk(2).values[1]
                if index not in pool and scores[best] > 0.4 and gap > 0.1:
                    names = [self.concepts[i].name for i in pool]
                    if len(set(names)) == 4:
                        return names, best
        group = self.groups[concept.category]
        pool = group if rng.random() < 0.45 and len(group) > 6 else range(len(self.concepts))
        right = concept.name
        worded = concept.category not in ("digit", "letter", "count", "shape", "word")
        if draw > 0.66 and concept.keywords and worded:
            right = rng.choice(concept.keywords[:3])
        elif draw > 0.62:
            right = concept.category if worded else concept.name
        elif draw > 0.59:
            right = invented(rng)
        known = {concept.name, concept.category, *concept.keywords}
        wrong: list[str] = []
        while len(wrong) < 3:
            kind = rng.random()
            if kind < 0.06 and right in known:
                word = invented(rng)
            else:
                # Names and keywords are as frequent as among correct options, so that the kind of a word
                # does not reveal whether it is correct.
                other = self.concepts[rng.choice(pool)]
                if right == concept.category and other.category == concept.category:
                    pool = range(len(self.concepts))
                    continue
                reworded = kind > 0.6 and other.keywords and worded
                word = rng.choice(other.keywords[:3]) if reworded else other.name
            if word not in known and word != right and word not in wrong:
                wrong.append(word)
        index = rng.randrange(4)
        return [*wrong[:index], right, *wrong[index:]], index

    def word(self, rng: random.Random) -> str:
        """A name, or a word without a meaning."""
        return rng.choice(self.concepts).name if rng.random() < 0.6 else invented(rng)

    def copying(self, rng: random.Random) -> Turn:
        """One turn of stage 0: repeat the question, or the part of it that it points to."""
        if rng.random() < 0.6:  # long repetitions have the most tokens to copy
            text = ", ".join(self.word(rng) for _ in range(rng.randint(4, 8)))
            return Turn(f"Repeat: {text}", text, "copy")
        return self.binding(rng) if rng.random() < 0.6 else self.text_only(rng)

    def binding(self, rng: random.Random) -> Turn:
        """Letters to options, or options to letters, for all four options of one listing in one turn."""
        words = [self.word(rng) for _ in range(4)]
        order = rng.sample(range(4), 4)
        if rng.random() < 0.6:
            question = listing(f"Which letter is {words[order[0]]}?", words, rng.choice(BY_LETTER))
            more = tuple((f"\n{words[i]}?", LETTERS[i]) for i in order[1:])
            return Turn(question, LETTERS[order[0]], "bind", more)
        question = listing(f"Which option is {LETTERS[order[0]]}?", words, rng.choice(BY_TEXT))
        more = tuple((f"\n{LETTERS[i]}?", words[i]) for i in order[1:])
        return Turn(question, words[order[0]], "pick", more)

    def text_only(self, rng: random.Random) -> Turn:
        """One turn that needs no image: letters, options, copying, or categories."""
        words = rng.sample(self.concepts, 4)
        options = [rng.choice([c.name, *c.keywords]) if rng.random() < 0.7 else invented(rng) for c in words]
        if len(set(options)) < 4:
            options = [c.name for c in words]
        index = rng.randrange(4)
        draw = rng.random()
        if draw < 0.4:
            return self.binding(rng)
        if draw < 0.6:  # the image is described in words
            question = f"It shows {options[index]}. {rng.choice(ASK_OPTIONS)}"
            if rng.random() < 0.6:
                return Turn(listing(question, options, rng.choice(BY_LETTER)), LETTERS[index], "told")
            return Turn(listing(question, options, rng.choice(BY_TEXT)), options[index], "told")
        if draw < 0.7:
            return Turn(f"Repeat: {options[index]}", options[index], "copy")
        concept = words[index]
        if draw < 0.88:
            return Turn(f"What kind of thing is {concept.name}?", concept.category, "kind")
        fitting = self.concepts[rng.choice(range(len(self.concepts)))]
        names = [c.name for c in rng.sample(self.concepts, 3)] + [fitting.name]
        if len(set(names)) < 4 or not fitting.keywords:
            return Turn(f"What kind of thing is {concept.name}?", concept.category, "kind")
        rng.shuffle(names)
        question = listing(f"Which of these is close to {fitting.keywords[0]}?", names, rng.choice(BY_TEXT))
        return Turn(question, fitting.name, "close")


def corpus(concepts: list[Concept], questions: Questions, count: int, seed: int) -> list[str]:
    """Texts for a tokenizer: many turns, all names and keywords, and the words of the domains."""
    rng = random.Random(seed)
    lines = [word for c in concepts for word in (c.name, *c.keywords)]
    lines += [f" {word}" for word in DOMAIN_WORDS for _ in range(60)]
    for _ in range(count):
        about = questions.row(rng.randrange(len(concepts)), rng)[-2:]
        for turn in about if rng.random() < 0.8 else [questions.text_only(rng)]:
            lines.append(f"User: {turn.question}\nAssistant: {turn.answer}")
    return lines


def name_similarity(targets: Tensor) -> Tensor:
    """Cosine between concepts, float `[C, C]`, from their text targets `[C, V, d]`."""
    mean = torch.nn.functional.normalize(targets.mean(1), dim=-1)
    return mean @ mean.T
