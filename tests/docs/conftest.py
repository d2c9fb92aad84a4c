"""What the tests of the documentation share: small models under the names of the shipped ones."""

import functools
import importlib

import pytest

from builders import tiny_continuous, tiny_lvlm
from craft.formats import names
from craft.formats.native import save_native
from paper import development, experiments


@pytest.fixture
def tiny_family(tmp_path, monkeypatch):
    """Random models under the names of the shipped ones."""
    for kind in ("llama", "qwen2"):
        save_native(tmp_path / "models/craft-tiny", kind, tiny_lvlm(kind), dtype="float32")
    monkeypatch.setattr(names, "_SHIPPED", tmp_path / "models")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def quick_runs(tiny_family, monkeypatch):
    """The tiny family, a few samples of each data set, two steps per run."""
    from craft.recipes import questions

    monkeypatch.setattr(questions, "load_data", limited(questions.load_data))
    for name in ("craft.recipes.adapt", "craft.recipes.baseline"):
        recipe = importlib.import_module(name)
        monkeypatch.setattr(recipe, "run_settings", shortened(recipe.run_settings))


@pytest.fixture
def continuous_twin(tiny_family, tmp_path):
    """craft-tiny/continuous-qwen2, random."""
    save_native(tmp_path / "models/craft-tiny", "continuous-qwen2", tiny_continuous("qwen2"), dtype="float32")


@pytest.fixture
def experiment_names() -> set[str]:
    """The experiments of the paper; their results are checked by their pages."""
    return {*experiments.EXPERIMENTS, *development.DEVELOPMENT}


def limited(load_data):
    """`load_data` with few samples per split."""

    @functools.wraps(load_data)
    def few(*args, **kwargs):
        return load_data(*args, **{**kwargs, "limit": 12})

    return few


def shortened(run_settings):
    """`run_settings` for a run of two small steps."""

    def short(*args, **kwargs):
        return run_settings(*args, **kwargs).model_copy(update={"max_steps": 2, "batch_size": 4})

    return short
