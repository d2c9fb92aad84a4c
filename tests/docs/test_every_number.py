"""Every number of the documentation stands in a result file that its section names, or is a listed constant.

A section is the text between two headings. Its sources are the files of docs/results that it links or names,
with the JSON file of each page. A number that is no measurement is listed in constants.json, with what it is.
test_numbers.py computes what stands between `numbers:` markers, and the tables of two pages.
"""

import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from docs.measured import DERIVED, RESULTS
from docs.reading import ROOT, prose

PAGES = [
    "README.md",
    *(path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "docs").glob("*.md"))),
    "docs/results/README.md",
    "docs/results/development.md",
    "benchmarks/README.md",
    *(path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "src").rglob("shipped/**/README.md"))),
]
TABLES_CHECKED = {"docs/results/development.md", "benchmarks/README.md"}
CONSTANTS = json.loads((Path(__file__).parent / "constants.json").read_text(encoding="utf-8"))
"""Per page: what it is -> the numbers as they are written."""

NUMBER = re.compile(
    r"(?<![\w.,/-])[-+−]?(\d[\d,]*(?:\.\d+)?)(?![\d.]*\w*\d)(?=(\s?(?:%|x\b|points?\b|minutes?\b|times\b))?)"
)
NAMED = re.compile(
    r"(§|Eqs?\. |Tables? |Figures? |Level |Python |torch |transformers |notes? |arXiv:? ?)\d+(\.\d+)*"
    r"((, | and | to |, and )\d+(\.\d+)*)*"
)
"""Numbers that name a thing: a section, an equation, a table, a version."""


def measured_text(page: str) -> str:
    """A page without code, links' targets, comments, and what other tests check."""
    text = prose((ROOT / page).read_text(encoding="utf-8"))
    text = re.sub(r"<!-- numbers:([\w-]+):begin -->.*?<!-- numbers:\1:end -->", " ", text, flags=re.DOTALL)
    if page in TABLES_CHECKED:
        text = re.sub(r"^\|.*$", "", text, flags=re.MULTILINE)
    return text


def numbers_of(section: str) -> Iterator[str]:
    """The numbers of a section; counts below 13 without a unit are words."""
    text = re.sub(r"`[^`]*`|\]\([^)]*\)|https?://\S+|<!--.*?-->|\[\d+\]", " ", section, flags=re.DOTALL)
    for match in NUMBER.finditer(NAMED.sub(" ", text)):
        number = match.group(1).rstrip(",").replace(",", "")
        if "." in number or int(number) > 12 or match.group(2):
            yield number


def sources(page: str, section: str) -> set[Path]:
    """The files of docs/results that a section links or names."""
    folder = (ROOT / page).parent
    linked = re.findall(r"\]\(([^)\s#]+)[^)]*\)", section)
    named = re.findall(r"`([\w/.-]+\.json)`", section)
    paths = {(folder / name).resolve() for name in linked}
    paths |= {(base / name).resolve() for name in named for base in (folder, RESULTS, ROOT)}
    paths = {path for path in paths if RESULTS in path.parents and path.suffix in {".md", ".json"}}
    return {path.with_suffix(suffix) for path in paths for suffix in (".md", ".json")}


def values(result: Any) -> Iterator[float]:
    """Every number in a result, in its texts and names too."""
    if isinstance(result, dict):
        for name, part in result.items():
            yield from values(str(name))
            yield from values(part)
    elif isinstance(result, list):
        for part in result:
            yield from values(part)
    elif isinstance(result, str):
        if len(result) < 2000:  # not an image or the marks of all answers
            yield from (
                float(number.replace(",", "")) for number in re.findall(r"\d[\d,]*(?:\.\d+)?", result)
            )
    elif isinstance(result, int | float) and not isinstance(result, bool):
        yield abs(float(result))


@cache
def written(path: Path) -> frozenset[str]:
    """Every way in which a page may write a number of a file: rounded, as a fraction or in percent."""
    if not path.exists() or path.name in {"README.md", "development.md"}:
        return frozenset()
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        return frozenset(number.replace(",", "") for number, _ in NUMBER.findall(text))
    return frozenset(
        f"{scale * value:.{digits}f}"
        for value in values(json.loads(text))
        for scale in (1, 100)
        for digits in range(4)
    )


@pytest.mark.parametrize("page", PAGES)
def test_every_number_is_a_result_or_a_constant(page):
    listed = {number for numbers in CONSTANTS.get(page, {}).values() for number in numbers}
    derived = set(DERIVED.get(page, {}).values())
    unknown, used = [], set()
    for section in re.split(r"^(?=#)", measured_text(page), flags=re.MULTILINE):
        known = derived.union(*map(written, sources(page, section)))
        for number in numbers_of(section):
            if number in known:
                continue
            used.add(number)
            if number not in listed:
                unknown.append(f"{section.splitlines()[0]}: {number}")
    assert unknown == [], "link the result file in that section, or list the number in constants.json"
    assert listed - used == set(), "constants.json lists numbers that the page does not need"


def test_constants_name_pages_that_exist():
    assert set(CONSTANTS) <= set(PAGES)


@pytest.mark.parametrize(
    "text, numbers",
    [
        ("gains 24.6 points in 3 runs", ["24.6"]),
        ("Table 5 and Figures 2 and 4 of §4.1", []),
        ("1,536 pieces, 5 % and 3 times", ["1536", "5", "3"]),
        ("`keep=0.8`, torch 2.13, Qwen2-0.5B and ViT-L/16", []),
    ],
)
def test_numbers_are_recognised(text, numbers):
    assert list(numbers_of(text)) == numbers
