"""Checkpoints that CRAFT refuses by name: LLMs that read continuous features, and pickle files."""

import json

import pytest

from craft.core.errors import CheckpointError
from craft.formats.load import load

JANUS = {  # deepseek-ai/Janus-Pro-1B
    "architectures": ["MultiModalityCausalLM"],
    "model_type": "multi_modality",
    "vision_config": {"cls": "CLIPVisionTower", "model_type": "vision"},
    "gen_vision_config": {"cls": "VQ-16", "model_type": "gen_vision"},
}
JANUS_HF = {"architectures": ["JanusForConditionalGeneration"], "model_type": "janus"}
SHOW_O2 = {  # showlab/show-o2-1.5B: a config of diffusers' kind
    "_class_name": "Showo2Qwen2_5",
    "image_latent_dim": 16,
    "clip_latent_dim": 1152,
    "llm_model_path": "Qwen/Qwen2.5-1.5B-Instruct",
}
ILLUME = {  # ILLUME-MLLM/illume_plus-qwen2_5-7b
    "architectures": ["IllumeQwen2ForCausalLM"],
    "model_type": "illume_qwen2",
}


@pytest.mark.parametrize(
    "config, name, reads",
    [
        (JANUS, "Janus", "SigLIP"),
        (JANUS_HF, "Janus", "SigLIP"),
        (SHOW_O2, "Show-o2", "continuous video VAE"),
        (ILLUME, "ILLUME+", "before they are quantised"),
        ({"model_type": "illume"}, "ILLUME+", "before they are quantised"),
        ({"architectures": ["ILLUMEForConditionalGeneration"]}, "ILLUME+", "before they are quantised"),
    ],
)
@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin", None])
def test_llms_that_read_features_are_refused_before_anything_is_read(tmp_path, config, name, reads, weights):
    (tmp_path / "config.json").write_text(json.dumps(config))
    if weights:
        (tmp_path / weights).write_bytes(b"not read")
    with pytest.raises(CheckpointError) as caught:
        load(tmp_path, "cpu")
    text = str(caught.value)
    assert f"is a {name} checkpoint" in text or f"is an {name} checkpoint" in text
    assert reads in text and str(tmp_path) in text
    assert all(family in text for family in ("reads codes", "VILA-U", "Tar", "UniTok", "Chameleon"))


@pytest.mark.parametrize(
    "names", [["vqgan.ckpt"], ["unitok.pth", "x.txt"], ["a.bin", "b.pt", "c.pt", "d.pt"]]
)
def test_a_folder_of_pickle_files_is_refused_by_their_names(tmp_path, names):
    for name in names:
        (tmp_path / name).write_bytes(b"not read")
    with pytest.raises(CheckpointError, match=rf"no weights but {names[0]}.*pickle files.*safetensors"):
        load(tmp_path, "cpu")


@pytest.mark.parametrize("config", [{}, {"architectures": None}, {"model_type": 7}])
def test_other_folders_get_the_usual_message(tmp_path, config):
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="holds no model: neither"):
        load(tmp_path, "cpu")
