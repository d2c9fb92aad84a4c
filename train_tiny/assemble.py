"""Assemble the trained parts into the shipped family, in the native layout.

`python -m train_tiny.assemble --visual DIR --backbones DIR [--smollm2 DIR] [--continuous DIR]
--out SHIPPED/craft-tiny`
"""

import argparse
import json
import shutil
from pathlib import Path

import torch

from craft.core.files import write_json
from craft.core.tensors import load_tensors
from craft.formats.llm_source import load_tokenizer, read_llm
from craft.formats.native import save_native, save_visual
from craft.formats.visual_folder import load_text_encoder
from craft.models.backbone import Backbone
from craft.models.lvlm import LVLM
from craft.models.projector import Projector
from craft.models.visual_tokenizer import VisualTokenizer
from craft.quantize import code_counts
from train_tiny.backbone import load_visual


def visual_tokenizer(folder: Path) -> VisualTokenizer:
    """Tower, codebook, τ, text encoder, and the code prior of the general training images."""
    tower, codebook = load_visual(folder)
    temperature = load_tensors(folder / "model.safetensors")["log_temperature"]
    codes = load_tensors(folder / "codes.safetensors")["train.codes"].long()
    prior = code_counts(codes, codebook.size)
    return VisualTokenizer(tower, codebook, load_text_encoder(folder / "text_encoder"), temperature, prior)


def backbone(folder: Path, fingerprint: str) -> Backbone:
    """Projector, LLM and text tokenizer, from the files of the recipe."""
    projector = Projector(json.loads((folder / "projector/config.json").read_text()))
    state = load_tensors(folder / "projector/model.safetensors")
    projector.load_state_dict({name: tensor.float() for name, tensor in state.items()})
    llm = read_llm(folder / "llm", torch.float32)
    tokenizer = load_tokenizer(folder / "llm")
    return Backbone(projector, llm, tokenizer, "plain", fingerprint)


def add_smollm2(folder: Path, out: Path, fingerprint: str) -> Path:
    """Copy the result of `train_tiny.smollm2`: projector, LoRA, the LLM's name and the model card.

    LoRA then acts on prompts with an image only, so that without one the LLM answers as published.
    """
    manifest = json.loads((folder / "backbone/craft.json").read_text())
    if manifest["codebook"] != fingerprint or manifest.get("llm") != "smollm2":
        raise SystemExit(f"{folder} is not a SmolLM2 backbone of codebook {fingerprint}")
    copied = Path(shutil.copytree(folder / "backbone", out / "smollm2", dirs_exist_ok=True))
    write_json(copied / "craft.json", {**manifest, "version": 2, "lora_scope": "image"})
    return copied


def add_continuous(folder: Path, out: Path, visual: VisualTokenizer) -> Path:
    """Save the twin that `train_tiny.continuous` made. It reads the family's tower without the codebook."""
    twin = visual.unquantised()
    lvlm = LVLM(twin, backbone(folder, twin.codebook.fingerprint), "craft-tiny/continuous-qwen2")
    saved = save_native(out, "continuous-qwen2", lvlm, "bfloat16")
    shutil.copyfile(folder / "README.md", saved / "README.md")
    return saved


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--visual", type=Path, required=True)
    parser.add_argument("--backbones", type=Path, required=True, help="folder with llama/ and qwen2/")
    parser.add_argument("--smollm2", type=Path, help="the --out of `train_tiny.smollm2`")
    parser.add_argument("--continuous", type=Path, help="the --out of `train_tiny.continuous`")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    visual = visual_tokenizer(args.visual)
    save_visual(args.out / "visual", visual, "bfloat16")
    for folder in sorted(path.parent for path in args.backbones.glob("*/projector")):
        lvlm = LVLM(visual, backbone(folder, visual.codebook.fingerprint), f"craft-tiny/{folder.name}")
        print(save_native(args.out, folder.name, lvlm, "bfloat16"))
    if args.smollm2:
        print(add_smollm2(args.smollm2 / "aligned", args.out, visual.codebook.fingerprint))
    if args.continuous:
        print(add_continuous(args.continuous, args.out, visual))


if __name__ == "__main__":
    main()
