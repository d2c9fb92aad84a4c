"""docs/results: every page is made of the JSON beside it; no figure was typed by hand."""

import json
import re

import pytest

from craft.pages.matrix import matrix_page
from docs.reading import ROOT, script
from paper import development, experiments

RESULTS = ROOT / "docs" / "results"
EXPERIMENTS = {**experiments.EXPERIMENTS, **development.DEVELOPMENT}
WRITTEN = {"README.md", "development.md"}
"""Pages that people wrote; test_numbers.py checks what they quote."""
PAGES = sorted(path for path in RESULTS.rglob("*.md") if path.name not in WRITTEN)


domains_page = script("measure_domains").page

MADE_BY = {
    **{name: experiment.page for name, experiment in EXPERIMENTS.items()},
    "transfer": matrix_page,
    "apparel": domains_page,
    "apparel-800": domains_page,
    **{f"retention-{weight}": domains_page for weight in (0, 1)},
    **{f"retention-{weight}-seeds": domains_page for weight in (0, 1)},
    "apparel-seeds": domains_page,
    "digits": domains_page,
    "table-gradient": script("measure_table_gradient").page,
}
"""What makes a page of its JSON, by the file's name."""


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(RESULTS).as_posix())
def test_a_page_is_made_of_its_json(path):
    assert path.stem in MADE_BY, f"nothing makes {path.name}; put what writes it into MADE_BY"
    told = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    assert MADE_BY[path.stem](told) == path.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["apparel", "digits"])
def test_pages_of_domains_tell_how_many_questions_there_were(name):
    asked = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))["settings"]["limit"]
    assert f"at most {asked} questions" in (RESULTS / f"{name}.md").read_text(encoding="utf-8")


def test_results_of_experiments_have_their_pages():
    for path in RESULTS.rglob("*.json"):
        if path.stem in EXPERIMENTS:
            assert path.with_suffix(".md") in PAGES
            plan = json.loads(path.read_text())["provenance"]["plan"]
            assert not plan.get("quick"), "a quick run is no result"


def test_results_name_no_place_on_a_machine():
    """What was measured stays true elsewhere; where its files lay does not. Folders are told from where the
    command ran."""
    for path in RESULTS.rglob("*.json"):
        found = re.findall(r'"(/[^"]*|[A-Za-z]:[\\\\/][^"]*)"', path.read_text(encoding="utf-8"))
        assert not found, f"{path.name}: {found[:3]}"
