"""A Chameleon checkpoint on the command line: what it is, its answers, an adapted tower written into it."""

import torch

from chameleons import CODES, save_chameleon
from craft.formats.artefact import save_artefact
from craft.formats.load import load


def test_inspect_eval_and_export(craft, tmp_path):
    base = tmp_path / "base"
    save_chameleon(base)
    description = craft("inspect", base, "--json").json
    assert (description["layout"], description["prompt"]) == ("Chameleon", "chameleon")
    for protocol in ("generate", "options"):
        said = craft("eval", base, "--data", "apparel", "--limit", "4", "--protocol", protocol, "--json")
        assert said.status == 0, said.err
    lvlm = load(base, "cpu")
    with torch.no_grad():
        lvlm.visual.vision_tower.quant_conv.bias.add_(0.5)
    prior = torch.ones(CODES, dtype=torch.int64)
    save_artefact(tmp_path / "encoder", lvlm.visual, prior=prior, manifest={})
    options = ("--format", "chameleon", "--base", base, "--out", tmp_path / "out")
    said = craft("export", tmp_path / "encoder", *options, "--json")
    assert said.status == 0, said.err
    assert said.json == {"format": "chameleon", "written": str(tmp_path / "out")}
    written = load(tmp_path / "out", "cpu").visual.vision_tower
    assert torch.equal(written.quant_conv.bias, lvlm.visual.vision_tower.quant_conv.bias)
    said = craft(
        "export", tmp_path / "encoder", "--format", "chameleon", "--base", tmp_path, "--out", tmp_path / "x"
    )
    assert said.status == 2 and "is not a Chameleon checkpoint" in said.err
