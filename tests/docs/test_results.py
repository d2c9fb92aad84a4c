"""docs/results: every page is made of the JSON beside it; no figure was typed by hand."""

import importlib.util
import json

import pytest

from craft.experiments import EXPERIMENTS
from craft.recipes.matrix_page import page as matrix_page
from docs.reading import ROOT

RESULTS = ROOT / "docs" / "results"
PAGES = sorted(path for path in RESULTS.rglob("*.md") if path.name != "README.md")


def domains_page(told):
    """The page of scripts/measure_domains.py."""
    spec = importlib.util.spec_from_file_location("measure", ROOT / "scripts" / "measure_domains.py")
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script.page(told)


MADE_BY = {
    **{name: experiment.page for name, experiment in EXPERIMENTS.items()},
    "transfer": matrix_page,
    "apparel": domains_page,
    "digits": domains_page,
}
"""What makes a page of its JSON, by the file's name."""


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(RESULTS).as_posix())
def test_a_page_is_made_of_its_json(path):
    assert path.stem in MADE_BY, f"nothing makes {path.name}; put what writes it into MADE_BY"
    told = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    assert MADE_BY[path.stem](told) == path.read_text(encoding="utf-8")


def test_results_of_experiments_have_their_pages():
    for path in RESULTS.rglob("*.json"):
        if path.stem in EXPERIMENTS:
            assert path.with_suffix(".md") in PAGES
            plan = json.loads(path.read_text())["provenance"]["plan"]
            assert not plan.get("quick"), "a quick run is no result"


def values(told):
    """Every number and text in a result, as it is written."""
    if isinstance(told, dict):
        return {written for part in told.values() for written in values(part)}
    if isinstance(told, list):
        return {written for part in told for written in values(part)}
    return {str(told)}


def test_measured_tables_of_the_benchmarks_are_in_their_json():
    known = {
        written
        for path in RESULTS.glob("*.json")
        if path.stem not in EXPERIMENTS
        for written in values(json.loads(path.read_text(encoding="utf-8")))
    }
    text = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    measured = text.partition("## Measured")[2]
    lines = [line for line in measured.splitlines() if line.startswith("| ") and "---" not in line]
    cells = {cell.strip() for line in lines for cell in line.strip("|").split("|")}
    numbers = {cell for cell in cells if cell[:1].isdigit()}
    assert len(numbers) > 100
    missing = {cell for cell in numbers if not {cell, cell.rstrip("x")} & known}
    assert not missing, "not in docs/results; put there what the benchmark wrote"
