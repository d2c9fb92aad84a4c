"""`craft inspect`: what a folder or model is, and which models fit it."""

from pathlib import Path
from typing import Any

from craft.cli.options import COMMON, Common
from craft.cli.output import listed, show_json, show_line, show_pairs, show_table
from craft.core.files import read_json, user_path
from craft.core.text import percent

READS = {
    "features": "features of the vision tower, unquantised",
    "projector": "codewords, through a projector",
    "token table": "codes, as rows of its own embedding (a token table)",
}
"""How images enter the LLM, in words."""


def inspect(thing: str, *, common: Common = COMMON) -> None:
    """Describe a run folder, an adapted encoder or a model (shipped, a folder, or a hub id).

    Args:
        thing: the path or name.
    """
    description = describe(thing, common)
    if common.json:
        show_json(description)
    else:
        _show(description)


def describe(thing: str, common: Common = COMMON) -> dict[str, Any]:
    """A description for JSON; `kind` is "run", "adapted encoder", "set of tuned parts", "family" or "model".

    Raises:
        CraftError: nothing has that name, or it is damaged.
    """
    from craft.formats.artefact import FORMAT
    from craft.formats.checks import format_of
    from craft.formats.names import shipped
    from craft.formats.tuned import FORMAT as TUNED

    path = user_path(thing)
    if thing not in shipped() and path.is_dir():
        if (path / "run.json").is_file():
            return _run(path, common)
        if format_of(path / "craft.json") in (FORMAT, TUNED):
            return _encoder(path)
        members = sorted(manifest.parent.name for manifest in path.glob("*/craft.json"))
        if len(members) > 1 and (path / "visual").is_dir():
            return {"kind": "family", "path": str(path), "backbones": members}
    return _model(thing, common)


def _run(path: Path, common: Common) -> dict[str, Any]:
    """A run folder: its state, and its result if there is one."""
    from craft.training.run_folder import RunFolder, read_record

    record = read_record(path / "run.json")
    stages = sorted(path.glob("stage-*/run.json"))  # of `craft align`; the last one is the current stage
    current = stages[-1].parent if stages else path
    stage_record, lines = read_record(current / "run.json"), RunFolder(current).metrics()
    before, after = stage_record.get("hashes_before") or {}, stage_record.get("hashes_after") or {}
    config, data = record.get("config") or {}, (record.get("data") or {}).get("name")
    if stages:
        data = ", ".join(dict.fromkeys(config["data"]))
    description = {
        "kind": "run",
        "path": str(path),
        "status": record.get("status"),
        "reason": record.get("reason"),
        "surrogate": record.get("surrogate"),
        "aligned": config.get("llm"),
        "stage": current.name.removeprefix("stage-") if stages else None,
        "seed": record.get("seed", config.get("seed")),
        "data": data,
        "held_out": record.get("held_out"),
        "step": lines[-1]["step"] if lines else 0,
        "steps": stage_record.get("steps"),
        "last": lines[-1] if lines else None,
        "changed_parts": sorted(part for part in after if before.get(part) != after[part]) or None,
    }
    for name in ("encoder", "tuned"):
        if (path / name / "craft.json").is_file():
            description["encoder"] = _encoder(path / name)
    if (path / "backbone" / "craft.json").is_file():
        description["backbone"] = _model(str(path / "backbone"), common)
    return description


def _encoder(path: Path) -> dict[str, Any]:
    """An adapted encoder or the tuned parts of a baseline; loading them checks the weights."""
    from craft.formats.load import load_artefact
    from craft.formats.tuned import Tuned

    artefact = load_artefact(path)
    manifest = artefact.manifest
    sizes = {"vision_tower": sum(tensor.numel() for tensor in artefact.state.values())}
    shared = ("codebook", "surrogate", "data", "held_out", "metrics", "seed", "tower")
    facts = {"path": str(path), **{key: manifest.get(key) for key in shared}}
    if isinstance(artefact, Tuned):
        sizes["rest"] = sum(tensor.numel() for tensor in artefact.rest.values())
        more = {key: manifest.get(key) for key in ("method", "parts")}
        return {"kind": "set of tuned parts", **facts, **more, "parameters": sizes}
    return {
        "kind": "adapted encoder",
        **facts,
        "base_tower": manifest.get("base_tower"),
        "fits": _fitting_models(artefact.codebook_fingerprint, manifest.get("surrogate")),
        "codes_used": int((artefact.prior > 0).sum()),
        "parameters": sizes,
    }


def _model(thing: str, common: Common) -> dict[str, Any]:
    """A model. Its weights are loaded in bfloat16 by default, since CRAFT only counts them."""
    from craft.formats.chameleon import is_chameleon
    from craft.formats.llava import is_llava
    from craft.formats.load import load
    from craft.formats.names import shipped
    from craft.formats.tar import is_tar
    from craft.formats.unitok import is_unitok
    from craft.formats.vila_u import is_vila_u
    from craft.models.freezing import parameter_table

    lvlm = load(thing, common.device or "cpu", common.dtype or "bfloat16")
    codebook, llm = lvlm.visual.codebook, lvlm.backbone.llm
    layouts = {
        "VILA-U": is_vila_u,
        "Tar": is_tar,
        "UniTok": is_unitok,
        "Chameleon": is_chameleon,
        "LLaVA": is_llava,
    }
    table = lvlm.backbone.table
    layout = next((name for name, fits in layouts.items() if lvlm.origin and fits(lvlm.origin)), "native")
    return {
        "kind": "model",
        "name": lvlm.name,
        "path": None if thing in shipped() or lvlm.origin is None else str(lvlm.origin),
        "layout": layout,
        "reads": "features" if lvlm.visual.continuous else "projector" if table is None else "token table",
        "codebook": {
            "fingerprint": codebook.fingerprint,
            "levels": codebook.num_levels,
            "size": codebook.size,
            "dim": codebook.dim,
        },
        "shares_codebook_with": [name for name in _fitting_models(codebook.fingerprint) if name != lvlm.name],
        "parameters": {part: count for part, count, _ in parameter_table(lvlm)},
        "llm": llm.config.model_type,  # type: ignore[union-attr]
        "vocabulary": len(lvlm.backbone.tokenizer),
        "prompt": lvlm.backbone.prompt,
        "image_size": lvlm.visual.image_size,
        "grid": list(lvlm.visual.grid),
        "text_encoder": lvlm.visual.text_encoder is not None,
    }


def _fitting_models(fingerprint: str, surrogate: str | None = None) -> list[str]:
    """The shipped models with this codebook, and the surrogate if it is not one of them."""
    from craft.formats.names import shipped, shipped_folder

    names = [
        name
        for name in shipped()
        if read_json(shipped_folder(name) / "craft.json").get("codebook") == fingerprint
    ]
    return names + ([surrogate] if surrogate and surrogate not in names else [])


def _show(description: dict[str, Any]) -> None:
    kind = description["kind"]
    article = "an" if kind[0] in "aeiou" else "a"
    show_line(f"{description.get('path') or description.get('name')}: {article} {kind}")
    result = description.get("encoder") or description.get("backbone")
    if kind == "run":
        last = description["last"] or {}
        losses = [
            f"{name} {last[name]:.4g}"
            for name in ("loss", "sal", "commitment", "contrastive", "retention")
            if name in last
        ]
        show_pairs(
            {
                "status": description["status"],
                "reason": description["reason"],
                "aligned LLM": description["aligned"],
                "stage": description["stage"],
                "step": f"{description['step']} of {description['steps']}" if description["steps"] else None,
                "surrogate": description["surrogate"],
                "data": description["data"],
                "seed": description["seed"],
                "never trained on": listed(description["held_out"] or []),
                "losses at the end": ", ".join(losses),
                "changed parts": ", ".join(description["changed_parts"] or []),
            }
        )
        if result is None:
            show_line("There is no result yet. The same command with --resume continues the run.")
            return
        show_line()
        show_line(f"{result['path']}: the {result['kind']}")
        description = result
    if kind == "family":
        show_pairs({"backbones": ", ".join(description["backbones"])})
        return
    _show_parts(description)


def _show_parts(description: dict[str, Any]) -> None:
    codebook, grid = description["codebook"], description.get("grid")
    data, metrics = description.get("data") or {}, description.get("metrics") or {}
    levels = f"{codebook['levels']} levels of {codebook['size']} codewords, d = {codebook['dim']}"
    pairs = {
        "codebook": levels if codebook["levels"] else f"none: a continuous LVLM, d = {codebook['dim']}",
        "fingerprint": codebook["fingerprint"],
        "tuned parts": listed(description.get("parts") or []),
        "by": description.get("method"),
        "fits": None,
        "same codebook as": ", ".join(description.get("shares_codebook_with") or []),
        "layout": description.get("layout"),
        "LLM reads": READS.get(description.get("reads", "")),
        "LLM": None,
        "prompt format": description.get("prompt"),
        "images": f"{description['image_size']} pixels, {grid[0]} x {grid[1]} tokens" if grid else None,
        "adapted with": description.get("surrogate"),
        "adapted to": data.get("name"),
        "licence of the data": data.get("licence"),
        "never trained on": listed(description.get("held_out") or []),
        "steps": metrics.get("steps"),
        "validation accuracy": None,
        "level-1 codes in use": None,
    }
    if "fits" in description:
        pairs["fits"] = ", ".join([*description["fits"], "any backbone of this codebook"])
    if "llm" in description:
        pairs["LLM"] = f"{description['llm']}, {description['vocabulary']} tokens in its vocabulary"
    if metrics.get("best_validation") is not None:
        pairs["validation accuracy"] = f"{percent(metrics['best_validation'])} %"
    if "codes_used" in description:
        pairs["level-1 codes in use"] = f"{description['codes_used']} of {codebook['size']}"
    show_pairs(pairs)
    rows = [(part, f"{count:,}") for part, count in description["parameters"].items()]
    show_table("Parameters", ("part", "parameters"), rows)
