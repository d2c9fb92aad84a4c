"""Damaged manifests: whatever a field of one is changed to, it is refused or read, and never a traceback."""

import copy
import json
import shutil

import pytest

from builders import tiny_images, tiny_lvlm
from craft.cli.inspect import _show, describe
from craft.core.errors import CheckpointError, CraftError
from craft.formats.artefact import model_card
from craft.formats.load import load, load_artefact
from craft.formats.native import save_native
from craft.recipes import adapt, evaluate
from craft.recipes.questions import checked
from craft.training.run_folder import RunFolder
from tiny_data import tiny_data

WRONG = (None, "abc", -1, 10**12, 1e300, 0.5, True, [], ["a", 1], {}, {"a": {"b": 1}}, [[1, 2, 3]])
GONE = object()


def fields(tree, path=()):
    """The path of every field in a JSON object, at any depth."""
    for key, value in tree.items():
        yield (*path, key)
        if isinstance(value, dict):
            unread = key in ("config", "machine", "made_with")  # only the surrogate is read
            inner = {name: value[name] for name in value if name == "surrogate"} if unread else value
            yield from fields(inner, (*path, key))


def mutants(content, values=WRONG):
    """(what was changed, the changed content) for every field and every wrong value, and for the whole."""
    for path in fields(content):
        for value in (GONE, *values):
            changed = copy.deepcopy(content)
            at = changed
            for key in path[:-1]:
                at = at[key]
            if value is GONE:
                del at[path[-1]]
            elif at[path[-1]] == value and type(at[path[-1]]) is type(value):
                continue
            else:
                at[path[-1]] = value
            yield f"{'.'.join(path)} {'missing' if value is GONE else repr(value)}", changed
    yield from ((f"whole {value!r}", value) for value in WRONG)


def faults(path, use, values=WRONG):
    """The mutants of a JSON file with which `use` ends in anything but a `CraftError` or a result."""
    before = path.read_bytes()
    wrong = []
    try:
        for about, changed in mutants(json.loads(before), values):
            path.write_text(json.dumps(changed))
            try:
                use()
            except CraftError as error:
                assert len(str(error)) < 2000
            except Exception as error:
                wrong.append(f"{about}: {type(error).__name__}: {str(error)[:80]}")
    finally:
        path.write_bytes(before)
    return wrong


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_native(tmp_path_factory.mktemp("family") / "tiny", "llama", tiny_lvlm())


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    adapt(tiny_lvlm(), tiny_data(), out, max_steps=2, batch_size=4, device="cpu")
    return out


@pytest.mark.parametrize(
    "name",
    ["craft.json", "projector/config.json", "../visual/config.json", "../visual/text_encoder/config.json"],
)
def test_a_model(model, name):
    assert not faults(model / name, lambda: load(model, "cpu"))


@pytest.mark.slow
def test_the_config_of_an_llm(model):
    def use():
        load(model, "cpu").answer(tiny_images(1), ["What is it?"])

    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        assert not faults(model / "llm" / name, use, ("abc", -1, [], {"a": {"b": 1}})), name


@pytest.mark.slow
def test_an_encoder(run):
    lvlm, data = tiny_lvlm(), tiny_data()
    evaluate(lvlm, run, data, limit=1)

    def use():
        artefact = load_artefact(run)
        lvlm.with_encoder(artefact)
        checked(data, artefact.manifest)
        _show(describe(str(run)))
        model_card(artefact.manifest, run)

    assert not faults(run / "encoder" / "craft.json", use)


def test_the_crafted_manifests_of_the_issue(run, tmp_path):
    folder = tmp_path / "encoder"
    shutil.copytree(run / "encoder", folder)
    path = folder / "craft.json"
    whole = json.loads(path.read_text())
    for field, value in {
        "log_temperature": "abc",
        "held_out": [["bag"], ["coat"]],
        "data": [1, 2],
        "codebook": {"size": "32"},
        "vision_tower": 5,
        "version": 99,
        "config": ["surrogate"],
        "departures": "abc",
        "typical_score": "abc",
    }.items():
        path.write_text(json.dumps({**whole, field: value}))
        with pytest.raises(CheckpointError, match=rf"craft\.json.*{field}"):
            load_artefact(folder)
    path.write_text(json.dumps(whole).replace('"log_temperature": ', '"log_temperature": NaN, "was": '))
    with pytest.raises(CheckpointError, match="log_temperature"):
        load_artefact(folder)


@pytest.mark.slow
def test_a_run_folder(run):
    settings = {"max_steps": 2, "batch_size": 4, "device": "cpu"}
    config = adapt(tiny_lvlm(), tiny_data(), run, resume=True, **settings).config

    def use():
        folder = RunFolder(run)
        folder.check(config, resume=True)
        assert folder.metrics()
        _show(describe(str(run)))

    assert not faults(run / "run.json", use)
    (run / "metrics.jsonl").write_text('{"step": 1}\n{"step": }\n')
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl"):
        RunFolder(run).metrics()
