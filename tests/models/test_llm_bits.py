"""A frozen LLM in 4 or 8 bits: the gradient is right, nothing moves, and what cannot be is refused at once.

bitsandbytes is an extra: without it the refusals and the arithmetic are tested, and the rest is skipped.
"""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from builders import tiny_images, tiny_lvlm
from craft.cli import main
from craft.core.errors import CheckpointError, ConfigError
from craft.formats.load import load
from craft.formats.native import save_native
from craft.formats.vila_u import save_vila_u
from craft.lessons.adapt import adaptation
from craft.losses.sal import surrogate_alignment
from craft.models import llm_bits
from craft.models.freezing import parameter_table, part_hashes
from craft.models.llm_bits import bits_of, check_bits
from craft.models.memory import weight_bytes
from craft.models.paper_sizes import paper_lvlm
from craft.recipes import adapt, evaluate
from craft.recipes.opening import Model
from craft.training.config import AdaptConfig
from craft.training.fit import fit
from craft.training.run_folder import RunFolder
from paper.bench.plan import Run, packed_saving, plan
from tiny_data import tiny_data

CPU = torch.device("cpu")
GOLDEN = Path(__file__).parents[1] / "golden" / "vila_u_small"
QUESTIONS, ANSWERS = ["What is it?", "How many are there?"], ["a red shirt", "seven"]


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny"
    for kind in ("llama", "qwen2"):  # with a bias in its linear maps, and without
        save_native(folder, kind, tiny_lvlm(kind), dtype="float32")
    return folder


@pytest.fixture
def installed():
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: pip install 'craft-vlm[bnb]'")


def loss_and_gradient(lvlm):
    """SAL of two questions, and its gradient with respect to what the projector reads."""
    backbone, tokens = (
        lvlm.backbone,
        lvlm.requires_grad_(False).eval().encode(tiny_images(2, size=lvlm.visual.image_size)),
    )
    given = tokens.quantized.clone().requires_grad_(True)
    inputs = backbone.inputs(replace(tokens, quantized=given), QUESTIONS, ANSWERS)
    loss = surrogate_alignment(backbone.hidden_states(inputs), backbone.lm_head, inputs["labels"])
    (gradient,) = torch.autograd.grad(loss, given)
    return loss.detach(), gradient


def near(found, wanted, share):
    """The two differ by at most `share` of the wanted one's size."""
    assert float(wanted.norm()) > 0
    assert float((found - wanted).norm() / wanted.norm()) < share


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
@pytest.mark.parametrize("bits, share", [(4, 1e-5), (8, 0.1)])
def test_loss_and_gradient_are_those_of_the_unpacked_weights(family, installed, kind, bits, share):
    """8 bits round what the maps read as well, so there it is no more than near."""
    packed, plain = (load(family / kind, "cpu", llm_bits=bits) for _ in range(2))
    plain.backbone.llm = plain.backbone.llm.dequantize()
    assert bits_of(packed.backbone.llm) == bits and bits_of(plain.backbone.llm) is None
    for found, wanted in zip(loss_and_gradient(packed), loss_and_gradient(plain), strict=True):
        near(found, wanted, share)


@pytest.mark.parametrize("bits, off", [(4, 0.5), (8, 0.1)])
def test_a_trained_llm_in_few_bits_asks_for_much_the_same(installed, bits, off):
    whole, packed = load("craft-tiny/qwen2", "cpu"), load("craft-tiny/qwen2", "cpu", llm_bits=bits)
    wanted, found = loss_and_gradient(whole), loss_and_gradient(packed)
    near(found[0], wanted[0], off / 5)
    near(found[1], wanted[1], off)


@pytest.mark.parametrize("bits", [4, 8])
def test_a_tower_learns_and_the_packed_llm_stays(family, installed, tmp_path, bits):
    lvlm = load(family / "qwen2", "cpu", llm_bits=bits)
    before = part_hashes(lvlm)
    assert before["llm"] != part_hashes(load(family / "qwen2", "cpu"))["llm"]
    assert before == part_hashes(load(family / "qwen2", "cpu", llm_bits=bits))  # packed alike each time
    lvlm.answer(tiny_images(2), QUESTIONS)
    assert part_hashes(lvlm) == before  # reading changes nothing
    settings = {"max_steps": 3, "batch_size": 4, "device": "cpu", "blend": 1.0}
    config = AdaptConfig.build(settings, {"out": str(tmp_path / "run"), "llm_bits": bits})
    run = RunFolder(tmp_path / "run")
    run.open(config)
    fit(lvlm, tiny_data().train, config, run, make_lesson=adaptation)  # compares the hashes itself
    changed = {part for part, value in part_hashes(lvlm).items() if before[part] != value}
    assert changed == {"vision_tower"}


def test_answering_leaves_the_gradient_where_the_processor_has_avx512_bf16(family, installed, monkeypatch):
    """There bitsandbytes would pack 4 bits anew at the first answer, and gradient would no longer pass."""
    _, wanted = loss_and_gradient(load(family / "qwen2", "cpu", llm_bits=4))
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: True)
    lvlm = load(family / "qwen2", "cpu", llm_bits=4)
    hashes = part_hashes(lvlm)
    lvlm.answer(tiny_images(2), QUESTIONS)
    assert torch.equal(loss_and_gradient(lvlm)[1], wanted)
    assert part_hashes(lvlm) == hashes


def test_one_packed_weight_changed_is_noticed(family, installed):
    lvlm = load(family / "llama", "cpu", llm_bits=4)
    before = part_hashes(lvlm)["llm"]
    next(p for p in lvlm.backbone.llm.parameters() if p.dtype == torch.uint8).data[0] ^= 1
    assert part_hashes(lvlm)["llm"] != before


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_memory_and_parameters_are_counted_as_they_are(family, installed, kind, bits):
    lvlm = load(family / kind, "cpu", llm_bits=bits)
    whole, packed = load(family / kind, "cpu").backbone.llm, lvlm.backbone.llm
    saving = weight_bytes(whole) - weight_bytes(packed)
    maps = sum(isinstance(module, torch.nn.Linear) for module in whole.modules())
    assert saving == pytest.approx(
        packed_saving(whole, bits), abs=256 * maps
    )  # code book and sizes of each map
    assert saving > 0.6 * packed_saving(whole, 8)
    counts = {part: count for part, count, _ in parameter_table(lvlm)}
    assert counts["llm"] == sum(parameter.numel() for parameter in {*whole.parameters()})


def test_what_is_packed_is_not_written(family, installed, tmp_path):
    lvlm = load(family / "llama", "cpu", llm_bits=8)
    with pytest.raises(CheckpointError, match=r"8 bits.* without llm_bits"):
        save_native(tmp_path / "family", "llama", lvlm)
    golden = load(GOLDEN, "cpu", "float32", llm_bits=4)
    with pytest.raises(CheckpointError, match=r"4 bits.* VILA-U's layout"):
        save_vila_u(golden, tmp_path / "checkpoint")
    assert list(tmp_path.iterdir()) == []


def test_from_the_command_line(family, installed, tmp_path, capsys):
    name, out = str(family / "llama"), str(tmp_path / "run")
    words = ["--data", "digits", "--device", "cpu", "--json"]
    few = ["--set", "max_steps=2", "--set", "batch_size=2", "--set", "data.limit=20", "--set", "llm_bits=4"]
    assert main(["adapt", name, *words, *few, "--out", out]) == 0
    assert json.loads(capsys.readouterr().out)["config"]["llm_bits"] == 4
    assert main(["eval", name, *words, "--encoder", out, "--limit", "4", "--llm-bits", "4"]) == 0
    assert json.loads(capsys.readouterr().out)["reports"][0]["settings"]["llm_bits"] == 4


def known(monkeypatch, *devices):
    """As if bitsandbytes were installed, and ran on these devices."""
    fake = SimpleNamespace(__version__="0", supported_torch_devices={*devices}, __spec__=None)
    monkeypatch.setitem(sys.modules, "bitsandbytes", fake)
    monkeypatch.setattr(llm_bits, "find_spec", lambda name: fake)


def test_refused_before_anything_is_loaded(monkeypatch, tmp_path):
    nowhere = str(tmp_path / "nowhere")  # would be the error if it came to loading
    with pytest.raises(ConfigError, match="llm_bits is 3; use 4 or 8"):
        load(nowhere, "cpu", llm_bits=3)
    monkeypatch.setattr(llm_bits, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r'llm_bits=4 needs bitsandbytes: pip install "craft-vlm\[bnb\]"'):
        load(nowhere, "cpu", llm_bits=4)
    with pytest.raises(ConfigError, match="needs bitsandbytes"):
        adapt(nowhere, "digits", tmp_path / "run", llm_bits=8, device="cpu")
    with pytest.raises(ConfigError, match="needs bitsandbytes"):
        evaluate(nowhere, data="digits", llm_bits=8, device="cpu")
    assert main(["eval", nowhere, "--llm-bits", "8", "--device", "cpu"]) == 2
    known(monkeypatch, "cuda")
    with pytest.raises(ConfigError, match=r"bitsandbytes 0 .*cuda.*cpu"):
        check_bits(4, CPU)
    assert not (tmp_path / "run").exists()


def test_refused_where_weights_are_trained_sharded_or_given(monkeypatch):
    known(monkeypatch, "cpu")
    settings = AdaptConfig.build({"llm_bits": 4, "device": "cpu"})
    with pytest.raises(ConfigError, match=r"llm_bits=4.*frozen"):
        Model("x/y", settings, ("llm",))
    with pytest.raises(ConfigError, match=r"craft\.load\(..., llm_bits=4\)"):
        Model(tiny_lvlm(), settings)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ConfigError, match="not offered with FSDP2"):
        Model("x/y", settings)
    monkeypatch.delenv("ACCELERATE_USE_FSDP")
    Model("x/y", settings)  # DDP


def test_refused_where_the_llm_is_not_in_a_folder_of_its_own(monkeypatch, family, tmp_path):
    known(monkeypatch, "cpu")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llava"}))
    with pytest.raises(ConfigError, match="is a LLaVA checkpoint"):
        load(tmp_path, "cpu", llm_bits=4)
    borrowed = shutil.copytree(family, tmp_path / "family") / "llama"
    told = json.loads((borrowed / "craft.json").read_text())
    (borrowed / "craft.json").write_text(json.dumps({**told, "llm": "smollm2"}))
    with pytest.raises(ConfigError, match="takes its LLM from smollm2"):
        load(borrowed, "cpu", llm_bits=4)


def test_the_plan_knows_packed_weights():
    run = Run("A100-40", "llama2-7b", 8)
    whole, eight, four = (
        plan(replace(run, llm_bits=bits))["memory MiB per GPU"]["weights"] for bits in (None, 8, 4)
    )
    llm = paper_lvlm("paper/llama2-7b").backbone.llm
    maps = 32 * (4 * 4096 * 4096 + 3 * 4096 * 11008)  # weights of Llama 2 7B's layers
    assert packed_saving(llm, 4) == maps * 2 - maps // 2 - maps // 64 * 4
    assert whole - eight == pytest.approx(maps / 2**20, rel=0.002)
    assert whole - four == pytest.approx(maps * (2 - 0.5625) / 2**20, abs=2)
    for wrong in ({"trains": "lora"}, {"parallel": "fsdp2"}):
        with pytest.raises(ConfigError, match="--llm-bits 4 is for a frozen LLM"):
            plan(replace(run, llm_bits=4, **wrong))
