"""A judge on this machine: any image-and-text model that transformers loads."""

import functools
import io
from pathlib import Path
from typing import Any

import torch

from craft.core.device import resolve_device, resolve_dtype
from craft.core.errors import CheckpointError
from craft.core.seeding import stable_seed
from craft.evaluation.judge import Ask, Case, Judge, Prompt, Reply, reply_of
from craft.evaluation.judge_prompt import png, read_prompt, user_text


def local_judge(
    model: str | Path,
    temperature: float | None = 0.6,
    max_tokens: int = 1024,
    device: str | None = None,
    dtype: str | None = None,
    prompt: str | Path | None = None,
) -> Judge:
    """A judge from a folder or hub id with an image-and-text model, its processor and a chat template.

    Where it samples, the draw is seeded by the case: the same case gets the same verdict on one machine.

    Args:
        model: the folder or hub id.
        temperature: of sampling; 0 or None is greedy.
        max_tokens: cap on a reply.
        device, dtype: where and in what to run.
        prompt: a file with another rubric; None is ours.

    Raises:
        ConfigError: that file cannot be used.

    Its `start` raises a CheckpointError where the model cannot be loaded.
    """
    told = read_prompt(prompt)
    identity = {
        "judge": "local",
        "model": str(model),
        "temperature": temperature,
        "max_tokens": max_tokens,
        "dtype": dtype or "auto",
        "prompt": told.identity,
    }
    start = functools.partial(_start, str(model), told, temperature, max_tokens, device, dtype)
    return Judge(str(model), identity, start, prompt=told)


def _start(
    model: str,
    prompt: Prompt,
    temperature: float | None,
    max_tokens: int,
    device: str | None,
    dtype: str | None,
) -> Ask:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    place = resolve_device(device)
    try:
        processor: Any = AutoProcessor.from_pretrained(model)
        llm: Any = AutoModelForImageTextToText.from_pretrained(model, dtype=resolve_dtype(dtype, place))
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(
            f"{model} cannot judge: it must be a folder or hub id with an image-and-text model, its "
            f"processor and a chat template ({type(error).__name__}: {reason})."
        ) from error
    llm = llm.to(place).eval()
    sampling: dict[str, Any] = {"do_sample": True, "temperature": temperature} if temperature else {}

    @torch.no_grad()
    def ask(case: Case) -> Reply:
        from PIL import Image

        content: list[dict[str, Any]] = [{"type": "text", "text": user_text(prompt, case)}]
        if case.image is not None:
            content.insert(0, {"type": "image", "image": Image.open(io.BytesIO(png(case.image)))})
        inputs = processor.apply_chat_template(
            [
                {"role": "system", "content": [{"type": "text", "text": prompt.system}]},
                {"role": "user", "content": content},
            ],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        ).to(place, dtype=llm.dtype)
        read = inputs["input_ids"].shape[1]
        with torch.random.fork_rng(devices=[place] if place.type == "cuda" else []):
            torch.manual_seed(stable_seed("judge", case.content))
            written = llm.generate(**inputs, max_new_tokens=max_tokens, **({"do_sample": False} | sampling))[
                0, read:
            ]
        text = processor.decode(written, skip_special_tokens=True)
        return reply_of(text, model, (read, len(written)), cut=len(written) >= max_tokens)

    return ask
