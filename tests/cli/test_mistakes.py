"""What a user can get wrong: exit status 2, one paragraph that names it and the remedy, nothing on stdout."""

import errno
import json
import resource
import shutil

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from cli.conftest import COLOURS, FAST, paint
from craft import evaluate
from craft.core.errors import ConfigError
from craft.recipes.prior import build_prior


@pytest.fixture
def broken(family, tmp_path):
    """A copy of the family to damage."""
    return shutil.copytree(family, tmp_path / "tiny")


def test_wrong_path_of_the_model(craft, pictures, tmp_path):
    said = craft("adapt", tmp_path / "nowhere", "--data", pictures, "--out", tmp_path / "run").complaint
    assert "nowhere" in said and "neither a folder nor a shipped model" in said
    assert not (tmp_path / "run").exists()


def test_wrong_path_of_the_data(craft, family, tmp_path):
    said = craft("adapt", family / "llama", "--data", "aparel", "--out", tmp_path / "run").complaint
    assert "'aparel'" in said and "Did you mean 'apparel'?" in said
    assert not (tmp_path / "run").exists()


def test_wrong_path_of_the_encoder(craft, family, tmp_path):
    said = craft("eval", family / "llama", "--encoder", tmp_path / "none").complaint
    assert "none does not exist" in said


def test_encoders_and_data_that_do_not_pair(craft, family, encoder, pictures):
    run, _ = encoder
    said = craft("eval", family / "llama", "--encoder", run, run, "--data", "a", "b", "c").complaint
    assert "2 encoders and 3 data sets" in said


@pytest.mark.parametrize(
    "words",
    [
        ("eval", "m", "--limit", "0"),
        ("eval", "m", "--limit=-3"),
        ("eval", "m", "--batch-size", "0"),
        ("demo", "--limit", "0"),
        ("judge", "m", "--concurrency", "0"),
        ("judge", "m", "--limit", "0"),
        ("prior", "apparel", "--limit=-5"),
        ("transfer", "--limit", "0"),
        ("data", "captions", "d", "--out", "o", "--model", "m", "--concurrency", "0"),
    ],
)
def test_counts_begin_with_one(craft, words):
    assert "Must be >= 1" in craft(*words).complaint


def test_a_limit_of_nothing_in_python(pictures, family):
    with pytest.raises(ConfigError, match="'limit' cannot be 0"):
        evaluate(family / "llama", data=pictures, limit=0)
    with pytest.raises(ConfigError, match="limit must be at least 1, not -5"):
        build_prior(pictures, family / "llama", limit=-5)


def test_compare_other_questions(craft, family, pictures, tmp_path):
    for limit in ("4", "5"):
        words = ("eval", family / "llama", "--data", pictures, "--limit", limit, "--out", tmp_path / limit)
        assert craft(*words).status == 0
    said = craft("compare", tmp_path / "4", tmp_path / "5").complaint
    assert "A has 4 questions, B has 5" in said and "limit" in said


def test_corrupt_checkpoint(craft, broken, pictures):
    file = broken / "llama" / "llm" / "model.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    said = craft("eval", broken / "llama", "--data", pictures).complaint
    assert "model.safetensors" in said and "llm" in said


def test_corrupt_encoder(craft, family, encoder, tmp_path):
    copy = shutil.copytree(encoder[0], tmp_path / "run")
    file = copy / "encoder" / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))
    said = craft("eval", family / "llama", "--encoder", copy).complaint
    assert "model.safetensors" in said and "damaged" in said


def test_missing_shard(craft, broken, pictures):
    folder = broken / "llama" / "llm"
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    mapping = {"model.embed_tokens.weight": "model-00002-of-00002.safetensors"}
    index = {"metadata": {}, "weight_map": {**mapping, "lm_head.weight": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    said = craft("eval", broken / "llama", "--data", pictures).complaint
    assert "model-00002-of-00002.safetensors" in said


def test_wrong_codebook(craft, stranger, encoder):
    said = craft("eval", stranger, "--encoder", encoder[0]).complaint
    told = craft("inspect", encoder[0], "--json").json["encoder"]["codebook"]["fingerprint"]
    other = craft("inspect", stranger, "--json").json["codebook"]["fingerprint"]
    assert told in said and other in said
    transfer = craft("transfer", "--encoders", encoder[0], "--backbones", stranger).complaint
    assert told in transfer and other in transfer


def test_wrong_codebook_in_the_demo(craft, family, stranger, pictures, tmp_path):
    models = ("--surrogate", family / "llama", "--other", stranger)
    said = craft("demo", *models, "--data", pictures, "--out", tmp_path / "demo").complaint
    assert "codebook" in said
    assert not (tmp_path / "demo").exists()


def test_empty_data(craft, family, tmp_path):
    (tmp_path / "empty").mkdir()
    said = craft("adapt", family / "llama", "--data", tmp_path / "empty", "--out", tmp_path / "run").complaint
    assert "empty" in said and "class" in said


def test_single_class(craft, family, tmp_path):
    data = paint(tmp_path / "one", {"coat": COLOURS["coat"]}, 6)
    said = craft("adapt", family / "llama", "--data", data, "--out", tmp_path / "run").complaint
    assert "single class, 'coat'" in said


def test_corrupt_image(craft, family, tmp_path):
    data = paint(tmp_path / "blobs", COLOURS, 4)
    file = data / "shoe" / "2.png"
    file.write_bytes(file.read_bytes()[:-40])
    said = craft("adapt", family / "llama", "--data", data, "--out", tmp_path / "run").complaint
    assert str(file) in said
    assert str(file) in craft("data", "check", data).complaint
    assert not (tmp_path / "run").exists()


def test_corrupt_image_in_a_jsonl_is_named_with_its_line(craft, family, tmp_path):
    rows = []
    for number, (name, colour) in enumerate(COLOURS.items()):
        Image.new("RGB", (24, 24), colour).save(tmp_path / f"{number}.png")
        rows.append({"image": f"{number}.png", "question": "What is it?", "answer": name})
    (tmp_path / "3.png").write_bytes(b"no picture")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows * 2))
    words = ("adapt", family / "llama", "--data", tmp_path / "rows.jsonl", "--out", tmp_path / "run")
    said = craft(*words).complaint
    assert "rows.jsonl:" in said and "3.png" in said


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (("adapt", "--learning-rte", "1"), "--set NAME=VALUE"),
        (("adapt", "--max-stps", "1"), "Did you mean --max-steps?"),
        (("eval", "x", "--limt", "3"), "Did you mean --limit?"),
        (("evl", "x"), 'Did you mean "eval"?'),
        (("adapt", "--set", "learning_rte=1"), "Did you mean 'optimizer.learning_rate'?"),
        (("adapt", "--losses.comitment.weight", "1"), "Did you mean 'losses.commitment.weight'?"),
        (("adapt", "--set", "batch_size=many"), "batch_size"),
        (("adapt", "--set", "batch_size"), "NAME=VALUE"),
        (("adapt", "--set", "losses.contrastive.weight="), "null is none"),
        (("adapt", "--losses.contrastive.weight"), "not 'losses.contrastive.weight='"),
        (("adapt", "--data.root", "--dry-run"), "not 'data.root='"),
        (("adapt", "--config", "none.yaml"), "none.yaml"),
        (("eval", "x", "--config", "none.yaml"), "none.yaml"),
        (("eval", "x", "--seeds", "a,b"), "--seeds 0,1,2"),
        (("eval", "x", "--seeds", "1", "--seed", "1"), "not both"),
        (("eval", "x", "--seeds", "0,1,0"), "a seed twice"),
        (("eval",), "backbone"),
        (("eval", "x", "--resume"), "--resume needs --out"),
        (("eval", "x", "--card"), "name the --encoder"),
        (("eval", "x", "--protocol", "guess"), "protocol"),
        (("compare", "none", "other"), "none has no samples"),
        (("eval", "x", "--limit", "few"), "limit"),
        (("inspect", "craft-tinny"), "craft-tinny"),
        (("data", "check", "digit"), "Did you mean 'digits'?"),
    ],
)
def test_words_that_are_not_understood(craft, words, meant):
    assert meant.lower() in craft(*words).complaint.lower()


def test_unknown_keys_in_config_files(craft, tmp_path):
    (tmp_path / "adapt.yaml").write_text("batch_sise: 3\n")
    assert "Did you mean 'batch_size'?" in craft("adapt", "--config", tmp_path / "adapt.yaml").complaint
    (tmp_path / "eval.yaml").write_text("keep_ration: 0.5\n")
    said = craft("eval", "x", "--config", tmp_path / "eval.yaml").complaint
    assert "Did you mean 'keep_ratio'?" in said
    (tmp_path / "flag.yaml").write_text("resume: true\n")
    assert "give --resume" in craft("eval", "x", "--config", tmp_path / "flag.yaml").complaint
    (tmp_path / "transfer.yaml").write_text("limit: 3\n")
    said = craft("transfer", "--config", tmp_path / "transfer.yaml").complaint
    assert "say ask.limit or adapt.data.limit" in said
    (tmp_path / "list.yaml").write_text("- 1\n")
    assert "name: value" in craft("eval", "x", "--config", tmp_path / "list.yaml").complaint


def test_a_run_is_not_overwritten_by_accident(craft, family, encoder, pictures):
    words = ("adapt", family / "llama", "--data", pictures, "--out", encoder[0], "--max-steps", "3", *FAST)
    before = (encoder[0] / "encoder" / "craft.json").read_bytes()
    said = craft(*words).complaint
    assert "--overwrite" in said
    assert craft(*words, "--resume").status == 0  # finished already: nothing to do
    assert (encoder[0] / "encoder" / "craft.json").read_bytes() == before


def test_out_that_cannot_be_written(craft, family, pictures, tmp_path):
    (tmp_path / "file").write_text("in the way")
    out = tmp_path / "file" / "run"
    said = craft("adapt", family / "llama", "--data", pictures, "--out", out, "--max-steps", "1", *FAST)
    assert "file" in said.complaint


def test_out_that_cannot_be_written_is_refused_before_the_work(craft, family, tmp_path):
    """Before the data are looked at, even."""
    file = tmp_path / "file"
    file.write_text("in the way")
    none, out = tmp_path / "none", ("--out", file / "out")
    for words in (
        ("eval", family / "llama", "--data", none),
        ("prior", none),
        ("show", none),
        ("transfer", "--encoders", none),
        ("data", "stats", none),
        ("data", "options", none, "--clip", none),
    ):
        assert f"{file} is a file" in craft(*words, *out).complaint, words
    with pytest.raises(ConfigError, match="is a file"):
        evaluate(none, data=none, out=file / "out")


@pytest.mark.parametrize("data", ["hub:some/trees", "q.tar"])
def test_what_must_be_prepared_first(craft, tmp_path, monkeypatch, data):
    """Every verb but `prepare` names the command that writes the data to a folder, and that folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "q.tar").write_bytes(b"")
    name = "trees" if data.startswith("hub:") else "q"
    for words in (
        ("data", "check", data),
        ("data", "stats", data),
        ("data", "captions", data, "--out", "c.jsonl", "--model", "m"),
        ("adapt", "no-model", "--data", data, "--out", "run"),
    ):
        complaint = craft(*words).complaint
        assert f"`craft data prepare {data}`" in complaint and f"prepared/{name} " in complaint, words
    assert [path.name for path in tmp_path.iterdir()] == ["q.tar"]


def test_a_full_disk_and_a_name_without_end(craft, pictures, tmp_path, monkeypatch):
    assert "long" in craft("data", "check", "x" * 300).complaint

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")  # as a write says it: without a name

    monkeypatch.setattr("craft.data.manifest._row", full)
    said = craft("data", "prepare", pictures, "--out", tmp_path / "m").complaint
    assert "No space left on device" in said and "Free some space" in said
    assert not (tmp_path / "m").exists()


def test_a_full_disk_where_safetensors_writes(craft, tmp_path, monkeypatch):
    """As transformers' `save_pretrained` does. A file that may not grow stands for the disk."""

    def full() -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
        try:
            save_file({"weight": torch.zeros(4096)}, tmp_path / "model.safetensors")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    monkeypatch.setattr("craft.data.catalogue", full)
    said = craft("data", "list").complaint
    assert "File too large" in said and "Free some space" in said


def test_our_own_faults_show_their_traceback(craft, monkeypatch):
    def fail() -> None:
        raise RuntimeError("a broken invariant")

    monkeypatch.setattr("craft.data.catalogue", fail)
    said = craft("data", "list")
    assert said.status == 1
    assert "Traceback" in said.err and "a broken invariant" in said.err and "report it" in said.err


def test_pruning_without_a_prior(craft, family, encoder, pictures):
    said = craft("eval", family / "llama", "--data", pictures, "--keep-ratio", "0.8").complaint
    assert "came without a code prior" in said and "craft prior DATA --out FILE" in said
    words = ("eval", family / "llama", "--encoder", encoder[0], "--keep-ratio")
    assert "without a general code prior" in craft(*words, "0.8", "--prior", "general").complaint
    assert "above 0 and at most 1" in craft(*words, "8").complaint
    assert "nowhere does not exist" in craft(*words, "0.8", "--prior", "nowhere").complaint


def test_verbs_of_the_paper_say_where_they_are(craft):
    assert "run `python -m paper table1 --quick`" in craft("reproduce", "table1", "--quick").complaint
    assert "run `python -m paper bench train`" in craft("bench", "train").complaint
