"""Settings of `craft eval` and `craft transfer`: files, overrides, and the flags that come from them."""

from pathlib import Path

import pytest
import yaml

from builders import tiny_lvlm
from craft.cli.flags import config_of, flags_of
from craft.cli.options import Common
from craft.core.errors import ConfigError
from craft.core.settings import leaves
from craft.evaluation.config import EvalConfig, TransferConfig
from craft.evaluation.run import evaluate_lvlm
from craft.recipes import evaluate, transfer
from craft.recipes.benchmarks import evaluate_all
from tiny_data import tiny_data


def names_of(flags) -> set[str]:
    """The fields of a dataclass of flags, those of its sections included."""
    fields = flags.__dataclass_fields__.values()
    return {name for f in fields for name in (names_of(f.type) if hasattr(f.type, "__mro__") else {f.name})}


@pytest.mark.parametrize(
    "entries",
    [
        {"data": {"name": ["1e3", "b"], "answer_with": "letter"}, "limit": 5},
        {"data.name": ["1e3", "b"], "data.answer_with": "letter", "limit": 5},
        {"data": ["1e3", "b"], "answer-with": "letter", "limit": 5},  # names of flags
    ],
)
def test_a_file_is_nested_dotted_or_names_flags(tmp_path, entries):
    (tmp_path / "eval.yaml").write_text(yaml.safe_dump(entries))
    config = EvalConfig.build(tmp_path / "eval.yaml")
    assert (config.data.name, config.data.answer_with, config.limit) == (("1e3", "b"), "letter", 5)
    config.save(tmp_path / "again.yaml")
    assert EvalConfig.build(tmp_path / "again.yaml") == config


def test_one_text_is_a_list_of_one_and_paths_are_texts():
    config = EvalConfig.build({"encoder": "runs/a", "seeds": "0,1"}, {"data": Path("2024"), "out": Path("o")})
    assert (config.encoder, config.data.name, config.out) == (("runs/a",), ("2024",), "o")
    assert config.all_seeds() == [0, 1] and EvalConfig.build({"seeds": 3}).all_seeds() == [3]
    assert EvalConfig.build(None, {"encoder": "[a, b]"}).encoder == ("a", "b")


def test_flags_go_before_set_and_set_before_the_file(tmp_path):
    (tmp_path / "c.yaml").write_text("limit: 1\nbatch_size: 1\nsplit: train\nseeds: 0,1\n")
    flags = flags_of(EvalConfig, ["backbone", "seed"])(limit=3)
    entries = ["limit=2", "batch_size=2", "answer_with=letter"]
    common = Common(config=tmp_path / "c.yaml", settings=entries, seed=7)
    config = config_of(EvalConfig, flags, common, backbone="m")
    assert (config.limit, config.batch_size, config.split, config.backbone) == (3, 2, "train", "m")
    assert config.data.answer_with == "letter" and config.all_seeds() == [7]


def test_every_setting_is_a_flag_except_those_of_another_verb():
    last = {leaf.rpartition(".")[2] for leaf in leaves(EvalConfig)}
    assert names_of(flags_of(EvalConfig, ["seed"])) == last - {"seed"}
    own = {leaf.rpartition(".")[2] for leaf in leaves(TransferConfig) if not leaf.startswith("adapt.")}
    assert names_of(flags_of(TransferConfig, [])) == own


def test_mistakes_name_the_setting():
    for ask in (evaluate, evaluate_all):
        with pytest.raises(ConfigError, match="Did you mean 'keep_ratio'"):
            ask(tiny_lvlm(), keep_ration=0.5)
    with pytest.raises(ConfigError, match="Did you mean 'protocol'"):
        evaluate_lvlm(tiny_lvlm(), [], protocoll="both")
    with pytest.raises(ConfigError, match=r"say ask\.batch_size or adapt\.batch_size"):
        transfer([], [tiny_lvlm()], batch_size=3)
    with pytest.raises(ConfigError, match="not both"):
        EvalConfig.build({"seed": 1, "seeds": [2]})
    with pytest.raises(ConfigError, match="cannot be 'gram' any more"):
        EvalConfig.build({"search": "gram"})
    with pytest.raises(ConfigError, match="One evaluation takes one data set, not 2"):
        evaluate(tiny_lvlm(), config={"data": ["a", "b"]})


def test_python_takes_a_config_and_arguments_go_before_it(tmp_path):
    config = {"limit": 6, "max_new_tokens": 2, "out": str(tmp_path / "answers.jsonl")}
    report = evaluate(tiny_lvlm(), data=tiny_data(), limit=4, config=config)
    assert len(report.samples) == 4 and report.settings["max_new_tokens"] == 2
    assert (tmp_path / "answers.jsonl").is_file()
