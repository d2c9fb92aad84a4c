"""Every prompt word for word, as users and papers will quote it: tests/evaluation/prompts.md.

A changed wording changes every figure that was measured with the old one. After a change that is meant:
`pytest tests/evaluation/test_prompts.py --update-prompts`, and read the difference before it is committed.
"""

from pathlib import Path

import pytest

from builders import tiny_backbone, tiny_tokenizer
from craft.data import BENCHMARKS, DIRECTIVES, load_data
from craft.models.prompts import FORMATS, build_prompt
from replicas import REPLICAS

SNAPSHOT = Path(__file__).with_name("prompts.md")
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def shown(text: str) -> str:
    """Text as a block in which line breaks are line breaks."""
    return "\n".join(f"    {line}".rstrip() for line in text.split("\n"))


def question_of(name: str, root: Path | None) -> list[str]:
    """What the first test samples of a data set ask and expect, both ways of answering."""
    lines: list[str] = []
    for answer_with in ("option", "letter"):
        sample = sorted(
            load_data(name, root=root, answer_with=answer_with, partial=True).test, key=lambda s: s.id
        )[0]
        block = f"{shown(sample.prompt())}\n    => {sample.answer}"
        if block not in lines:
            lines += [f"{name}, answered with the {answer_with}:", "", block, ""]
    return lines


def format_of(name: str) -> list[str]:
    """A prompt format around a question: at inference and in training, with an image and without."""
    words = tiny_tokenizer()
    words.chat_template = None if name == "llava" else CHAT  # LLaVA-1.5's own, without a template
    lines = []
    for answer, image in ((None, True), ("a coat", True), (None, False)):
        prompt = build_prompt(name, words, "What is shown?\nA. a coat\nB. a bag", answer, image)
        before, after, said = (words.decode(ids) for ids in (prompt.before, prompt.after, prompt.answer))
        title = f"{name}, {'training' if answer else 'inference'}{'' if image else ', no image'}:"
        lines += [title, "", shown(before + ("<IMAGE>" if image else "") + after + f"[{said}]"), ""]
    return lines


def everything(folder: Path) -> str:
    """The whole snapshot."""
    lines = [
        "# Prompts, word for word",
        "",
        "Made by `pytest tests/evaluation/test_prompts.py --update-prompts`.",
    ]
    lines += ["", "## Questions, and the answers that count as right", ""]
    for name in ("apparel", "digits"):
        lines += question_of(name, None)
    for name in BENCHMARKS:
        lines += question_of(name, REPLICAS[name](folder / name))
    lines += ["## Questions whose answers a judge reads: another directive, all else the same", ""]
    for name in ("eurosat", "vqa-rad"):
        sample = load_data(name, root=folder / name, partial=True).test[0]
        lines += [f"{name}:", "", shown(sample.prompt(DIRECTIVES["reasons"])), ""]
    lines += ["## Prompt formats; what the LLM writes is in brackets", ""]
    for name in FORMATS:
        lines += format_of(name)
    return "\n".join(lines)


def test_prompts_are_what_they_were(tmp_path, request):
    found = everything(tmp_path)
    if request.config.getoption("--update-prompts"):
        SNAPSHOT.write_text(found, encoding="utf-8")
        pytest.skip(f"{SNAPSHOT.name} is written; read the difference")
    assert found == SNAPSHOT.read_text(encoding="utf-8")


def test_the_llm_reads_what_the_snapshot_says():
    """What is spliced is the prompt's ids, nothing before, between or behind them."""
    backbone = tiny_backbone()
    prompt = build_prompt(backbone.prompt, backbone.tokenizer, "What is shown?", "a coat", False)
    spliced = backbone.inputs(None, ["What is shown?"], ["a coat"])
    ids = prompt.before + prompt.after + prompt.answer
    table = backbone.llm.get_input_embeddings().weight
    assert spliced["inputs_embeds"][0].equal(table[ids])
