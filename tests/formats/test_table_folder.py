"""Token tables in the native layout."""

from pathlib import Path

import pytest
import torch

import craft
from builders import tiny_lvlm
from craft.core.errors import CheckpointError
from craft.core.tensors import load_tensors, save_tensors
from craft.formats.native import save_native
from craft.formats.table_folder import append_rows
from craft.formats.visual_folder import load_visual
from craft.models.backbone import Backbone, Borrowed
from craft.models.decoding import generate_ids
from craft.models.freezing import answer_hashes
from craft.models.lvlm import LVLM
from craft.models.token_table import TokenTable

QUESTIONS = ["what is it?", "is it red?"]


@pytest.fixture(params=["qwen2", "llama"])
def family(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A family of two backbones: one with a projector, and `table`, which borrows its LLM."""
    kind, family = request.param, tmp_path / "family"
    save_native(family, "plain", tiny_lvlm(kind), "float32")
    plain = craft.load(family / "plain", device="cpu")
    save_native(family, "table", with_table(plain, family / "plain"), "float32")
    return family


def with_table(lvlm: LVLM, source: Path) -> LVLM:
    """`lvlm` with random rows instead of its projector."""
    old, codebook = lvlm.backbone, lvlm.visual.codebook
    first, width = old.embeddings.weight.shape
    sizes = (codebook.num_levels, codebook.levels.shape[1])
    generator = torch.Generator().manual_seed(5)
    append_rows(old.llm, torch.randn(sizes[0] * sizes[1], width, generator=generator))
    table = TokenTable.consecutive(first, *sizes)
    borrowed = Borrowed(str(source), {})
    backbone = Backbone(table, old.llm, old.tokenizer, old.prompt, old.codebook_fingerprint, borrowed)
    return LVLM(lvlm.visual, backbone, "family/table", lvlm.origin)


def pixels() -> torch.Tensor:
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_an_image_token_is_the_sum_of_its_rows(family: Path) -> None:
    lvlm = craft.load(family / "table", device="cpu", dtype="float32")
    table, tokens = lvlm.backbone.table, lvlm.encode(pixels())
    assert lvlm.backbone.projector is None and table is not None
    rows = table.rows(lvlm.backbone.embeddings)
    expected = sum(rows[level][tokens.codes[..., level]] for level in range(table.levels))
    assert torch.equal(lvlm.backbone.read(tokens), expected)
    assert len(lvlm.answer(pixels(), QUESTIONS)) == 2


def test_text_is_that_of_the_bare_llm_and_no_code_is_written(family: Path) -> None:
    plain, table = (craft.load(family / name, device="cpu", dtype="float32") for name in ("plain", "table"))
    inputs = [lvlm.backbone.inputs(None, QUESTIONS) for lvlm in (plain, table)]
    logits = [lvlm.backbone.logits(prompt) for lvlm, prompt in zip((plain, table), inputs, strict=True)]
    assert torch.equal(*logits)
    shown = table.backbone.inputs(table.encode(pixels()), QUESTIONS)
    assert table.backbone.logits(shown).shape[-1] == plain.backbone.embeddings.weight.shape[0]
    first = int(table.backbone.table.ids.min()) if table.backbone.table else 0
    assert all(token < first for row in generate_ids(table.backbone, shown, 20) for token in row)


def test_saved_loaded_saved_is_the_same(family: Path, tmp_path: Path) -> None:
    lvlm = craft.load(family / "table", device="cpu", dtype="float32")
    again = tmp_path / "again" / "family"
    save_native(again, "table", lvlm, "float32")
    for file in sorted((family / "table").rglob("*")):
        if file.is_file():
            assert file.read_bytes() == (again / "table" / file.relative_to(family / "table")).read_bytes()
    assert not (again / "table" / "llm").exists() and not (again / "table" / "projector").exists()


def test_rows_that_an_llm_folder_cannot_hold_are_not_saved(family: Path, tmp_path: Path) -> None:
    lvlm = craft.load(family / "table", device="cpu", dtype="float32")
    lvlm.backbone.borrowed = None
    with pytest.raises(CheckpointError, match="more input than output tokens"):
        save_native(tmp_path / "held", "table", lvlm, "float32")
    assert not (tmp_path / "held" / "table").exists()


def test_files_that_do_not_fit_are_refused(family: Path) -> None:
    path = family / "table" / "table" / "model.safetensors"
    tensors = load_tensors(path)
    for changed, words in (
        ({"ids": tensors["ids"]}, "token id"),
        ({"rows": tensors["rows"]}, "no token ids"),
        ({**tensors, "rows": tensors["rows"][1:]}, "made for another LLM"),
        ({**tensors, "ids": tensors["ids"] + 1}, "made for another LLM"),
        ({"ids": tensors["ids"][:1, :4], "rows": tensors["rows"][:4]}, "1 levels of 4 codes"),
    ):
        save_tensors(path, changed)
        with pytest.raises(CheckpointError, match=words):
            craft.load(family / "table", device="cpu")
    path.write_bytes(b"no tensors")
    with pytest.raises(CheckpointError, match="damaged"):
        craft.load(family / "table", device="cpu")


def test_the_table_is_part_of_what_answers_depend_on(family: Path) -> None:
    lvlm = craft.load(family / "table", device="cpu", dtype="float32")
    before = answer_hashes(lvlm)
    assert "projector" not in before
    assert lvlm.backbone.table is not None
    lvlm.backbone.table.ids = lvlm.backbone.table.ids.flip(1)
    after = answer_hashes(lvlm)
    assert before["llm"] == after["llm"] and before["words"] != after["words"]
    with torch.no_grad():
        lvlm.backbone.embeddings.weight[-1] += 1
    assert answer_hashes(lvlm)["llm"] != before["llm"]


def test_codes_of_features_that_are_not_finite_are_not_read_as_a_row(family: Path) -> None:
    lvlm = craft.load(family / "table", device="cpu", dtype="float32")
    features = torch.zeros(1, 4, lvlm.visual.codebook.dim)
    features[0, 1] = float("nan")
    read = lvlm.backbone.read(lvlm.visual.quantize(features, None))
    assert read[0, 1].isnan().all() and read[0, [0, 2, 3]].isfinite().all()


def test_a_derived_codebook_keeps_the_fingerprint_of_its_sources(tmp_path: Path) -> None:
    golden = Path(__file__).parents[1] / "golden" / "tar_small" / "Tar-a"
    lvlm = craft.load(golden, device="cpu", dtype="float32")
    again = craft.load(save_native(tmp_path, "tar", lvlm, dtype="float32"), device="cpu", dtype="float32")
    assert again.visual.codebook.fingerprint == lvlm.visual.codebook.fingerprint
    image = golden.parent / "images" / "image_0_rgb_96x70.png"
    assert torch.equal(again.encode([image]).codes, lvlm.encode([image]).codes)
    assert again.answer([image], ["What is it?"]) == lvlm.answer([image], ["What is it?"])
    path = tmp_path / "visual" / "model.safetensors"
    tensors = load_tensors(path)
    tensors["codebook.codewords"][0, 0, 0] += 1
    save_tensors(path, tensors)
    with pytest.raises(CheckpointError, match="one of the two files is from another model or damaged"):
        load_visual(tmp_path / "visual")
