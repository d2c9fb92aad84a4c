"""Freezing: who trains, what the table says, and hashes that notice one changed weight."""

import pytest
import torch

from builders import tiny_lvlm
from craft.core.errors import ConfigError
from craft.models.freezing import answer_hashes, freeze_all_but, parameter_table, part_hashes
from craft.models.memory import estimate_memory, weight_bytes


def test_freeze_all_but_the_vision_tower() -> None:
    lvlm = tiny_lvlm(tower="siglip").train()
    training = freeze_all_but(lvlm, ["vision_tower", "log_temperature"])
    wanted = {id(p) for p in lvlm.visual.vision_tower.parameters()} | {id(lvlm.visual.log_temperature)}
    assert {id(p) for p in training} == wanted
    assert not lvlm.backbone.training
    rows = {name: (total, trained) for name, total, trained in parameter_table(lvlm)}
    tower = sum(p.numel() for p in lvlm.visual.vision_tower.parameters())
    assert rows["vision_tower"] == (tower, tower)
    assert rows["codebook"] == (2 * 32 * 16, 0)
    assert rows["llm"][1] == rows["projector"][1] == 0
    assert rows["log_temperature"] == (1, 1)


def test_parts_of_the_vision_tower() -> None:
    lvlm = tiny_lvlm(tower="siglip")
    training = freeze_all_but(lvlm, ["vision_tower.layers.1", "projector"])
    names = {name for name, p in lvlm.named_parameters() if any(p is q for q in training)}
    parts = ("visual.vision_tower.layers.1.", "backbone.projector.")
    assert names == {name for name, p in lvlm.named_parameters() if name.startswith(parts)}
    assert {part for part in parts if any(name.startswith(part) for name in names)} == set(parts)


@pytest.mark.parametrize("name", ["codebook", "tower", "vision_tower.nothing", "log_temperature.x"])
def test_unknown_names_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        freeze_all_but(tiny_lvlm(tower="siglip"), [name])


def test_tied_weights_are_counted_once() -> None:
    lvlm = tiny_lvlm("qwen2", tower="siglip")
    rows = {name: total for name, total, _ in parameter_table(lvlm)}
    assert rows["llm"] == sum(p.numel() for p in lvlm.backbone.llm.parameters())


@pytest.mark.parametrize("part", ["vision_tower", "projector", "llm", "codebook"])
def test_hashes_name_the_part_that_changed(part: str) -> None:
    lvlm = tiny_lvlm(tower="siglip")
    before = part_hashes(lvlm)
    assert before == part_hashes(tiny_lvlm(tower="siglip"))
    modules = {
        "vision_tower": lvlm.visual.vision_tower,
        "projector": lvlm.backbone.projector,
        "llm": lvlm.backbone.llm,
        "codebook": lvlm.visual.codebook,
    }
    with torch.no_grad():
        next(iter(modules[part].state_dict().values())).view(-1)[0] += 1
    after = part_hashes(lvlm)
    assert [name for name in before if before[name] != after[name]] == [part]


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_activation_estimate_is_near_what_autograd_keeps(kind: str) -> None:
    lvlm = tiny_lvlm(kind, tower="siglip")
    freeze_all_but(lvlm, ["vision_tower"])
    kept: dict[int, int] = {}
    weights = {p.untyped_storage().data_ptr() for p in [*lvlm.parameters(), *lvlm.buffers()]}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        inputs = lvlm.backbone.inputs(
            lvlm.visual(torch.randn(4, 3, 32, 32)), ["what is shown?"] * 4, ["cat"] * 4
        )
        hidden = lvlm.backbone.hidden_states(inputs)
    estimate = estimate_memory(lvlm, 4, inputs["inputs_embeds"].shape[1])
    assert hidden.requires_grad
    assert 0.5 < estimate["activations"] / sum(kept.values()) < 2
    assert estimate["weights"] == weight_bytes(lvlm)
    assert estimate["total"] == sum(value for name, value in estimate.items() if name != "total")


def test_answers_depend_on_more_than_weights() -> None:
    lvlm = tiny_lvlm(tower="siglip")
    before = answer_hashes(lvlm)
    lvlm.backbone.tokenizer(["one", "one two"], padding=True, truncation=True, max_length=4)
    assert answer_hashes(lvlm) == before == {**part_hashes(lvlm), "words": before["words"]}
    changes = {
        "prompt": lambda: setattr(
            lvlm.backbone, "prompt", "plain" if lvlm.backbone.prompt != "plain" else "vila-u"
        ),
        "aspect": lambda: setattr(lvlm.visual, "aspect", "pad"),
        "template": lambda: setattr(lvlm.backbone.tokenizer, "chat_template", "{{ messages }}"),
        "tokenizer": lambda: lvlm.backbone.tokenizer.add_tokens(["flibber"]),
    }
    seen = {before["words"]}
    for name, change in changes.items():
        change()
        after = answer_hashes(lvlm)["words"]
        assert after not in seen, name
        seen.add(after)
