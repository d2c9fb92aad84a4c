"""A plan of random tiny models: seconds where the shipped models take hours."""

import pytest

from builders import tiny_lvlm
from cli.conftest import COLOURS, encoder, family, paint, pictures  # noqa: F401 (the last are fixtures)
from craft.formats.native import save_native
from craft.models.backbone import Backbone
from craft.models.lvlm import LVLM
from paper.plan import Plan


@pytest.fixture(scope="session")
def plan(tmp_path_factory):
    """Two random backbones with a general prior and a continuous twin, two sets of pictures, one seed, two
    steps."""
    base = tmp_path_factory.mktemp("experiments")
    for kind in ("llama", "qwen2"):
        lvlm = tiny_lvlm(kind)
        lvlm.visual.prior = (lvlm.visual.codebook.codewords[0, :, 0] * 100).abs().long()
        save_native(base / "models" / "tiny", kind, lvlm, dtype="float32")
    save_native(base / "models" / "twin", "qwen2", twin(tiny_lvlm("qwen2")), dtype="float32")
    names = [str(base / "models" / "tiny" / kind) for kind in ("qwen2", "llama")]
    blobs = paint(base / "blobs", COLOURS, count=6)
    others = paint(base / "others", dict(reversed(COLOURS.items())), count=5)
    return Plan(
        work=base / "work",
        domains=(str(blobs),),
        general=(str(blobs), str(others)),
        surrogates=tuple(names),
        backbones=tuple(names),
        continuous=str(base / "models" / "twin" / "qwen2"),
        explainer=names[1],
        seeds=(0,),
        limit=8,
        explained=3,
        explain_tokens=6,
        lora={},
        adapt={"max_steps": 2, "batch_size": 4, "device": "cpu"},
        benches=base / "benches",
    )


def twin(lvlm):
    """The same LVLM without its codebook."""
    visual, reader = lvlm.visual.unquantised(), lvlm.backbone
    fingerprint = visual.codebook.fingerprint
    backbone = Backbone(reader.projector, reader.llm, reader.tokenizer, reader.prompt, fingerprint)
    return LVLM(visual, backbone, "twin")
