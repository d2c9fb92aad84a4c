"""`load_visual_tokenizer` on Tar's and UniTok's folders: the tokenizer of `craft.load`, without an LLM."""

import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

import craft
from builders import tiny_lvlm
from craft.core.errors import CheckpointError, CodebookMismatchError, ConfigError
from craft.core.tensors import hash_tensors, load_tensors, save_tensors
from craft.data.chats import Conversation
from craft.formats.artefact import save_artefact
from craft.formats.load import load_visual_tokenizer
from craft.formats.native import save_native

GOLDEN = Path(__file__).parents[1] / "golden"
TAR, UNITOK = GOLDEN / "tar_small", GOLDEN / "unitok_small"
NAMES = [f"{TAR}/Tar-a", f"{TAR}/Tar-b?scale=2", f"{TAR}/Tar-a?visual={TAR}/Tar-b", str(UNITOK)]
IDS = ["beside", "scale", "visual", "unitok"]
everywhere = pytest.mark.parametrize("name", NAMES, ids=IDS)


@everywhere
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_it_is_that_of_the_whole_model(name: str, dtype: str) -> None:
    whole = craft.load(name, device="cpu", dtype=dtype).visual
    alone = load_visual_tokenizer(name, "cpu", dtype)
    assert hash_tensors(alone.state_dict()) == hash_tensors(whole.state_dict())
    assert alone.codebook.fingerprint == whole.codebook.fingerprint
    assert (alone.grid, alone.aspect, alone.training) == (whole.grid, whole.aspect, False)


def test_a_neighbour_named_visual_is_not_taken_for_it(tmp_path: Path) -> None:
    save_native(tmp_path, "tiny", tiny_lvlm("llama"))
    shutil.copytree(UNITOK, tmp_path / "unitok")
    assert load_visual_tokenizer(tmp_path / "unitok").need_codes("it").is_product
    assert not load_visual_tokenizer(tmp_path / "tiny").need_codes("it").is_product


def test_errors_are_those_of_the_whole_model(tmp_path: Path) -> None:
    tar = shutil.copytree(TAR / "Tar-a", tmp_path / "Tar-a")
    unitok = shutil.copytree(UNITOK, tmp_path / "unitok")
    path = unitok / "unitok_mllm" / "model.safetensors"
    tensors = load_tensors(path)
    tensors["model.multi_embedder.quantizer.codebooks.1.codebook.weight"][0, 0] += 1
    save_tensors(path, tensors)
    config = tmp_path / "janus" / "config.json"
    config.parent.mkdir()
    config.write_text('{"model_type": "multi_modality"}')
    for name, kind, message in (
        (str(tar), CheckpointError, "TA-Tok, its visual tokenizer, is neither in its shards"),
        (str(unitok), CodebookMismatchError, "different checkpoints"),
        (f"{unitok}?scale=2", ConfigError, "for Tar's layout"),
        (f"{tar}?size=2", ConfigError, "takes scale=NUMBER"),
        (str(config.parent), CheckpointError, "a Janus checkpoint"),
    ):
        for load in (craft.load, load_visual_tokenizer):
            with pytest.raises(kind, match=message):
                load(name, "cpu")


@pytest.mark.parametrize("name", [NAMES[1], NAMES[3]], ids=["tar", "unitok"])
def test_an_llm_is_aligned_to_its_codebook_and_takes_an_encoder_of_the_family(
    name: str, tmp_path: Path
) -> None:
    save_native(tmp_path / "tiny", "llama", tiny_lvlm("llama"), dtype="float32")
    turns = (("What colour?", "red"),)
    said = [
        Conversation(str(shade), turns, Image.new("RGB", (32, 32), (shade, 20, 20))) for shade in (200, 220)
    ]
    craft.align(
        tmp_path / "tiny" / "llama", name, said, out=tmp_path / "run", stage="1", device="cpu",
        max_steps=1, batch_size=2,
    )  # fmt: skip
    whole = craft.load(name, device="cpu", dtype="float32")
    aligned = craft.load(tmp_path / "run", device="cpu", dtype="float32")
    pixels = torch.rand(1, 3, whole.visual.image_size, whole.visual.image_size)
    assert torch.equal(aligned.encode(pixels).codes, whole.encode(pixels).codes)
    with torch.no_grad():
        next(whole.visual.vision_tower.parameters()).mul_(3)
    counts = torch.ones(whole.visual.codebook.size, dtype=torch.long)
    folder = save_artefact(tmp_path / "encoder", whole.visual, prior=counts, manifest={})
    assert torch.equal(aligned.with_encoder(folder).encode(pixels).codes, whole.encode(pixels).codes)
