"""Hard options by CLIP: against a slow reference, on a small random CLIP on disk."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers.processors import TemplateProcessing
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPProcessor,
    CLIPTextConfig,
    CLIPVisionConfig,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
    SiglipProcessor,
)

from builders import tiny_tokenizer
from craft.core.errors import CheckpointError, DataError
from craft.data import Wanted, load_data, prepare, read_data
from craft.recipes.options import clip_options
from replicas import class_folders

NAMES = ("ash", "elm", "fir", "oak", "yew", "birch")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    common = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = CLIPTextConfig(
        vocab_size=300, max_position_embeddings=16, eos_token_id=1, bos_token_id=0, **common
    )
    vision = CLIPVisionConfig(image_size=16, patch_size=8, **common)
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("clip")
    config = CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=8)
    CLIPModel(config).save_pretrained(folder)
    square = {"height": 16, "width": 16}
    processor = CLIPImageProcessorPil(size=square, crop_size=square, do_center_crop=False)
    tokenizer = tiny_tokenizer()
    ends = TemplateProcessing(single="$A <s>", special_tokens=[("<s>", 1)])  # CLIP pools where a text ends
    tokenizer.backend_tokenizer.post_processor = ends
    CLIPProcessor(processor, tokenizer).save_pretrained(folder)
    return folder


def test_the_nearest_names_last_and_never_the_right_one(clip: Path, tmp_path: Path) -> None:
    raw = read_data(class_folders(tmp_path / "p", NAMES, each=2))
    found = clip_options(raw, clip, count=4, device="cpu", batch_size=5)
    assert sum(map(len, found.values())) == 12
    model, processor = CLIPModel.from_pretrained(clip).eval(), CLIPProcessor.from_pretrained(clip)
    names = sorted(NAMES)
    for name, entries in found.items():
        for entry in entries:
            assert entry["options"][0] == entry["groundtruth"] == name and len(set(entry["options"])) == 5
            with Image.open(entry["image"]) as image, torch.no_grad():
                text = [f"an image of a {n}" for n in names]
                given = processor(text=text, images=image.convert("RGB"), padding=True, return_tensors="pt")
                scores = model(**given).logits_per_image[0].numpy()
            order = [names[i] for i in np.argsort(scores) if names[i] != name]
            assert entry["options"][1:] == order[-4:]


def test_from_options_to_questions(clip: Path, tmp_path: Path) -> None:
    from craft.core.files import write_json

    raw = read_data(class_folders(tmp_path / "p", NAMES, each=4))
    write_json(tmp_path / "o.json", found := clip_options(raw, clip, device="cpu"))
    prepare(tmp_path / "p", None, tmp_path / "m", Wanted(options=tmp_path / "o.json"), progress=False)
    hardest = {e["image"]: set(e["options"][-3:]) for entries in found.values() for e in entries}
    data = load_data(tmp_path / "m")
    for sample in data.test:
        assert set(sample.choices) - {sample.label} == hardest[str(sample.image)]
    assert data.held_out and all(not set(s.choices) & set(data.held_out) for s in data.train)


def test_siglip_reads_a_name_alike_beside_any_others(tmp_path: Path) -> None:
    """It takes a text's features at the end of its padding, which went as far as the longest name."""
    common = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = common | {"vocab_size": 300, "max_position_embeddings": 48, "bos_token_id": 1, "eos_token_id": 2}
    torch.manual_seed(0)
    vision = common | {"image_size": 16, "patch_size": 8}
    SiglipModel(SiglipConfig(text_config=text, vision_config=vision)).save_pretrained(tmp_path / "siglip")
    processor = SiglipImageProcessorPil(size={"height": 16, "width": 16})
    SiglipProcessor(processor, tiny_tokenizer()).save_pretrained(tmp_path / "siglip")
    class_folders(tmp_path / "p", NAMES, each=2)
    long = "an old tree with a long name"
    few = clip_options(read_data(tmp_path / "p"), tmp_path / "siglip", device="cpu")
    class_folders(tmp_path / "p", (long,), each=1)
    many = clip_options(read_data(tmp_path / "p"), tmp_path / "siglip", device="cpu")
    for name, entries in few.items():
        for entry, other in zip(entries, many[name], strict=True):
            assert entry["options"] == [option for option in other["options"] if option != long]


def test_what_cannot_be_compared(clip: Path, tmp_path: Path) -> None:
    raw = read_data(class_folders(tmp_path / "p", NAMES, each=1))
    with pytest.raises(CheckpointError, match="cannot be loaded as a CLIP model"):
        clip_options(raw, tmp_path / "none", device="cpu")
    raw.samples = [s.__class__(**{**s.__dict__, "label": None}) for s in raw.samples]
    with pytest.raises(DataError, match="options need classes"):
        clip_options(raw, clip, device="cpu")
