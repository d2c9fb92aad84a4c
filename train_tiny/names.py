"""The concepts of the general images: names, categories and keywords, from emoji data and drawings."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

# Words of the embedded domains, as keywords of the general images that show the same thing.
SYNONYMS = {
    "t-shirt": ["tee", "top", "shirt"],
    "jeans": ["trousers", "pants", "denim"],
    "coat": ["jacket", "overcoat"],
    "dress": ["gown", "frock"],
    "woman’s sandal": ["sandal", "slipper"],
    "thong sandal": ["sandal", "flip-flop"],
    "running shoe": ["sneaker", "trainer"],
    "woman’s boot": ["ankle boot", "boot"],
    "hiking boot": ["boot", "ankle boot"],
    "handbag": ["bag", "purse"],
    "clutch bag": ["bag", "pouch"],
    "woman’s clothes": ["blouse", "shirt", "pullover"],
    "kimono": ["robe", "pullover"],
    "backpack": ["bag", "rucksack"],
    "man’s shoe": ["shoe", "loafer"],
}
DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
COLOURS = {
    "red": (220, 40, 40),
    "orange": (245, 140, 30),
    "yellow": (245, 215, 50),
    "green": (50, 165, 70),
    "blue": (45, 95, 215),
    "purple": (140, 70, 180),
    "pink": (240, 130, 180),
    "brown": (125, 80, 45),
}
SHAPES = ["circle", "square", "triangle", "star", "cross", "ring", "diamond", "heart"]
WORDS = (
    "cat", "dog", "sun", "tree", "car", "fish", "bird", "milk", "book", "door", "home", "rain", "snow",
    "gold", "king", "ship",
)  # fmt: skip
SKIPPED = {"People & Body", "Flags", "Component"}
CATEGORIES = {
    "Smileys & Emotion": "face",
    "Animals & Nature": "nature",
    "Food & Drink": "food",
    "Travel & Places": "place",
    "Activities": "activity",
    "Objects": "object",
    "Symbols": "symbol",
}


@dataclass(frozen=True)
class Concept:
    """One thing that images show: its name, its group, other words for it, and its emoji file."""

    name: str
    category: str
    keywords: tuple[str, ...]
    emoji: str | None = None
    upright: bool = False


def clean(text: str) -> str:
    """The common spelling of all parts: lower case, plain apostrophes, no other signs."""
    return re.sub(r"[^a-z0-9 '\-]", "", text.lower().replace("’", "'")).strip()


def _group(subcategory: str, category: str) -> str:
    fine = {
        "clothing": "clothing", "animal-mammal": "animal", "animal-bird": "bird",
        "animal-marine": "sea animal",
        "animal-bug": "insect", "animal-reptile": "reptile", "plant-flower": "flower", "plant-other": "plant",
        "food-fruit": "fruit", "food-vegetable": "vegetable", "drink": "drink", "sport": "sport",
        "musical-instrument": "instrument", "tool": "tool", "transport-ground": "vehicle",
        "transport-air": "aircraft", "transport-water": "boat", "sky & weather": "weather", "time": "clock",
        "zodiac": "zodiac sign", "arrow": "arrow", "place-building": "building", "office": "office item",
        "household": "household item", "heart": "heart", "geometric": "shape", "keycap": "digit",
        "animal-amphibian": "animal", "food-sweet": "sweet", "food-prepared": "meal",
    }  # fmt: skip
    return fine.get(subcategory, CATEGORIES.get(category, "thing"))


def concepts(cache: Path) -> list[Concept]:
    """All concepts: emoji, then drawn ones (digits, letters, coloured shapes, counts, words)."""
    emoji = json.loads((cache / "google/package/emoji.json").read_text())
    base = json.loads((cache / "emojibase/package/en/data.json").read_text())
    info = {entry["hexcode"].replace("-FE0F", ""): entry for entry in base}
    by_name: dict[str, Concept] = {}
    for entry in emoji:
        if entry["category"] in SKIPPED or not (entry["has_img_google"] and entry["has_img_twitter"]):
            continue
        if entry["subcategory"] == "keycap":
            continue  # digits are drawn below, under one name
        about = info.get(entry["unified"].replace("-FE0F", ""), {})
        label = about.get("label") or entry["name"].lower()
        name = clean(label)
        extra = SYNONYMS.get(label.replace("'", "’"), [])
        words = [clean(w) for w in [*extra, *about.get("tags", [])]]
        keywords = tuple(dict.fromkeys(w for w in words if w and w != name and len(w) < 18))[:8]
        symbol = entry["category"] == "Symbols"
        if name and len(name) < 32:
            group = _group(entry["subcategory"], entry["category"])
            by_name.setdefault(name, Concept(name, group, keywords, entry["image"], symbol))
    drawn = [Concept(word, "digit", (f"number {word}", f"digit {word}"), upright=True) for word in DIGITS]
    drawn += [Concept(f"letter {c}", "letter", (c,), upright=True) for c in "abcdefghijklmnopqrstuvwxyz"]
    drawn += [Concept(f"{c} {s}", "shape", (c, s), upright=False) for c in COLOURS for s in SHAPES]
    drawn += [Concept(f"{DIGITS[n]} {s}s", "count", (DIGITS[n], s)) for n in range(2, 7) for s in SHAPES[:4]]
    drawn += [Concept(f"word {w}", "word", (w,), upright=True) for w in WORDS]
    for concept in drawn:
        by_name[concept.name] = concept
    return list(by_name.values())
