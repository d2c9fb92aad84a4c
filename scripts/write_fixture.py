"""Write the fixture of the tests that resume, load and evaluate what an earlier release wrote.

    PYTHONPATH=src:tests OMP_NUM_THREADS=1 python scripts/write_fixture.py tests/fixtures/release_0_1

Everything is written by `craft` commands with relative paths from the fixture's folder, so that a copy of the
folder works at any place:

    models/tiny/               a random family: visual tokenizer, and one backbone ("qwen2")
    data/blobs/CLASS/*.png     five classes of six images; data/chat.json: a question about each
    adapt/                     `craft adapt`, interrupted after step 3 of 6 (retention loss, mixed images)
    adapt-whole/               the same run without the interruption
    baseline/                  `craft baseline projector-ft`, finished
    align/                     `craft align --stage 1`, interrupted after step 3 of 6
    align-projector/           the projector of the same run without the interruption
    expected.json              what the resumed runs must come to, and on which kind of machine

A fixture belongs to the release that wrote it. Do not write an old one again: add a folder for a new release.
"""

import argparse
import contextlib
import json
import os
import platform
import shutil
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import Qwen2Config, Qwen2ForCausalLM

import craft
from builders import TEXT, tiny_codebook, tiny_text_encoder, tiny_tokenizer
from craft.cli import main
from craft.core.tensors import hash_tensors, load_tensors
from craft.data.images import lazy_image
from craft.formats.native import save_native
from craft.models.backbone import Backbone
from craft.models.lvlm import LVLM
from craft.models.projector import Projector
from craft.models.text_encoder import TextEncoder
from craft.models.towers import build_tower
from craft.models.visual_tokenizer import VisualTokenizer
from craft.training.run_folder import RunFolder
from machine import machine_kind

INTERRUPTED_AT, STEPS = 3, 6
DIM, WIDTH, VOCABULARY = 8, 16, 330
TOWER = {
    "type": "hybrid",
    "image_size": 16,
    "stem_blocks": 2,
    "hidden_size": WIDTH,
    "intermediate_size": 2 * WIDTH,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "dim": DIM,
}
COLOURS = {
    "coat": (30, 30, 220),
    "dress": (220, 220, 30),
    "red bag": (220, 30, 30),
    "shirt": (40, 220, 220),
    "shoe": (30, 220, 30),
}
SETTINGS = ("--max-steps", str(STEPS), "--device", "cpu", "--set", "batch_size=4")
ADAPT = ("adapt", "models/tiny/qwen2", "--data", "data/blobs", *SETTINGS, "--set", "learning_rate=1e-3")
BASELINE = ("baseline", "projector-ft", "models/tiny/qwen2", "--data", "data/blobs", *SETTINGS)
ALIGN = (
    *("align", "models/tiny/qwen2", "--visual", "models/tiny", "--stage", "1", "--data", "data/chat.json"),
    *SETTINGS,
)


def write_model(folder: Path) -> None:
    """Write the random family `folder` with the backbone "qwen2"."""
    torch.manual_seed(0)
    tower = build_tower(TOWER)
    with torch.no_grad():
        tower.cls_token.normal_(std=0.5)
        tower.position_embedding.normal_(std=0.1)
        for module in tower.modules():
            if isinstance(module, torch.nn.Conv2d):
                torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    codebook = tiny_codebook(levels=2, size=16, dim=DIM)
    text_sizes = {**TEXT, "hidden_size": DIM, "intermediate_size": WIDTH, "projection_size": DIM}
    text_encoder = TextEncoder(text_sizes, tiny_text_encoder().tokenizer)
    visual = VisualTokenizer(tower, codebook, text_encoder, log_temperature=2.0)
    llm = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=VOCABULARY,
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            initializer_range=0.2,
            tie_word_embeddings=True,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
    )
    projector = Projector({"type": "mlp2x_gelu", "in": DIM, "out": WIDTH})
    backbone = Backbone(projector, llm, tiny_tokenizer(VOCABULARY), "plain", codebook.fingerprint)
    save_native(folder, "qwen2", LVLM(visual, backbone, "tiny/qwen2").eval(), dtype="float32")


def write_data(folder: Path) -> None:
    """Write noisy images of one colour per class, and a file of conversations about them."""
    draw, rows = np.random.default_rng(0), []
    for name, colour in COLOURS.items():
        (folder / "blobs" / name).mkdir(parents=True)
        for number in range(6):
            pixels = np.array(colour) + draw.integers(-25, 25, (6, 6, 3))
            path = folder / "blobs" / name / f"{number}.png"
            Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(path)
            turns = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": name}]
            picture = path.relative_to(folder).as_posix()
            rows.append({"id": f"{name}-{number}", "image": picture, "conversations": turns})
    (folder / "chat.json").write_text(",\n".join(map(json.dumps, rows)).join(("[\n", "\n]\n")))


@contextlib.contextmanager
def interruption() -> Iterator[None]:
    """Send Ctrl-C when step `INTERRUPTED_AT` is logged."""
    log = RunFolder.log

    def log_and_stop(run: RunFolder, line: dict) -> None:
        log(run, line)
        if line["step"] == INTERRUPTED_AT:
            signal.raise_signal(signal.SIGINT)

    RunFolder.log = log_and_stop
    try:
        yield
    finally:
        RunFolder.log = log


def run(words: Sequence[str], out: str, status: int = 0) -> None:
    """Run `craft WORDS --out OUT`, which must end with `status`."""
    ended = main([*words, "--out", out])
    if ended != status:
        raise SystemExit(f"craft {' '.join(words)} ended with {ended} and not with {status}.")


def answers(encoder: str) -> list[str]:
    """What the backbone answers about one image of each class, with `encoder` (a run folder)."""
    lvlm = craft.load("models/tiny/qwen2", "cpu").with_encoder(encoder)
    pictures = [lazy_image(f"data/blobs/{name}/0.png") for name in COLOURS]
    return lvlm.answer(pictures, ["What is it?"] * len(pictures), max_new_tokens=8)


def write(folder: Path) -> None:
    """Write the fixture."""
    if folder.exists():
        raise SystemExit(f"{folder} exists; a fixture is written once.")
    folder.mkdir(parents=True)
    os.chdir(folder)
    platform.platform = platform.system  # run.json need not name this machine's kernel
    write_model(Path("models/tiny"))
    write_data(Path("data"))
    for words, out in ((ADAPT, "adapt"), (ALIGN, "align")):
        with interruption():
            run(words, out, status=130)
        run(words, f"{out}-whole")
    run(BASELINE, "baseline")

    encoder, projector = Path("adapt-whole/encoder"), Path("align-whole/backbone/projector")
    expected = {
        "machine": machine_kind(),
        "tower": json.loads((encoder / "craft.json").read_text())["tower"],
        "prior": load_tensors(encoder / "prior.safetensors")["counts"].tolist(),
        "projector": hash_tensors(load_tensors(projector / "model.safetensors")),
        "answers": answers("adapt-whole"),
        "baseline_answers": answers("baseline"),
    }
    Path("expected.json").write_text(json.dumps(expected, indent=1) + "\n")

    projector.rename("align-projector")
    for name in ("adapt-whole/checkpoints", "baseline/checkpoints", "align-whole", "codes"):
        shutil.rmtree(name)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="a folder that does not exist yet")
    write(parser.parse_args().folder.resolve())
