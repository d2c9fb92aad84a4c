"""`craft inspect`: what a folder or a model is, and what fits it."""

from pathlib import Path
from typing import Any

from craft.cli.options import COMMON, Common
from craft.cli.output import listed, show_json, show_pairs, show_table
from craft.core.files import read_json, user_path


def inspect(thing: str, *, common: Common = COMMON) -> None:
    """Say what something is: a run folder, an adapted encoder, a model (shipped, a folder, a hub id).

    Args:
        thing: its path or name.
    """
    found = describe(thing, common)
    if common.json:
        show_json(found)
    else:
        _show(found)


def describe(thing: str, common: Common = COMMON) -> dict[str, Any]:
    """A JSON-able description; `kind` is "run", "adapted encoder", "family" or "model".

    Raises:
        CraftError: there is nothing of that name, or it is damaged.
    """
    from craft.formats.artefact import FORMAT
    from craft.formats.names import shipped
    from craft.formats.tuned import FORMAT as TUNED

    path = user_path(thing)
    if thing not in shipped() and path.is_dir():
        if (path / "run.json").is_file():
            return _run(path, common)
        kind = read_json(path / "craft.json").get("format") if (path / "craft.json").is_file() else None
        if kind in (FORMAT, TUNED):
            return _encoder(path)
        members = sorted(found.parent.name for found in path.glob("*/craft.json"))
        if len(members) > 1 and (path / "visual").is_dir():
            return {"kind": "family", "path": str(path), "backbones": members}
    return _model(thing, common)


def _run(path: Path, common: Common) -> dict[str, Any]:
    """A run folder: its state, and what it made, if it has come so far."""
    from craft.training.run_folder import RunFolder

    record = read_json(path / "run.json")
    stages = sorted(path.glob("stage-*/run.json"))  # of an alignment; the last one is where it stands
    place = stages[-1].parent if stages else path
    told, lines = read_json(place / "run.json"), RunFolder(place).metrics()
    before, after = told.get("hashes_before") or {}, told.get("hashes_after") or {}
    config, data = record.get("config") or {}, (record.get("data") or {}).get("name")
    if stages:
        data = ", ".join(dict.fromkeys(config["data"]))
    found = {
        "kind": "run",
        "path": str(path),
        "status": record.get("status"),
        "reason": record.get("reason"),
        "surrogate": record.get("surrogate"),
        "aligned": config.get("llm"),
        "stage": place.name.removeprefix("stage-") if stages else None,
        "seed": record.get("seed", config.get("seed")),
        "data": data,
        "held_out": record.get("held_out"),
        "step": lines[-1]["step"] if lines else 0,
        "steps": told.get("steps"),
        "last": lines[-1] if lines else None,
        "changed_parts": sorted(part for part in after if before.get(part) != after[part]) or None,
    }
    for name in ("encoder", "tuned"):
        if (path / name / "craft.json").is_file():
            found["encoder"] = _encoder(path / name)
    if (path / "backbone" / "craft.json").is_file():
        found["backbone"] = _model(str(path / "backbone"), common)
    return found


def _encoder(path: Path) -> dict[str, Any]:
    """An adapted encoder or a baseline's tuned parts, with the weights checked."""
    from craft.formats.encoder import load_artefact
    from craft.formats.tuned import Tuned

    artefact = load_artefact(path)
    told = artefact.manifest
    sizes = {"vision_tower": sum(tensor.numel() for tensor in artefact.state.values())}
    if isinstance(artefact, Tuned):
        return {
            "kind": "set of tuned parts",
            "path": str(path),
            **{key: told.get(key) for key in ("method", "parts", "codebook", "surrogate", "data")},
            **{key: told.get(key) for key in ("held_out", "metrics", "seed", "tower")},
            "parameters": {**sizes, "rest": sum(tensor.numel() for tensor in artefact.rest.values())},
        }
    return {
        "kind": "adapted encoder",
        "path": str(path),
        "codebook": told["codebook"],
        "fits": _takers(artefact.codebook_fingerprint, told.get("surrogate")),
        "surrogate": told.get("surrogate"),
        "data": told.get("data"),
        "held_out": told.get("held_out"),
        "metrics": told.get("metrics"),
        "seed": told.get("seed"),
        "parameters": sizes,
        "tower": told.get("tower"),
        "base_tower": told.get("base_tower"),
        "codes_used": int((artefact.prior > 0).sum()),
    }


def _model(thing: str, common: Common) -> dict[str, Any]:
    """A model; its weights are read in bfloat16, since they are only counted."""
    from craft.formats.llava import is_llava
    from craft.formats.load import load
    from craft.formats.names import shipped
    from craft.formats.vila_u import is_vila_u
    from craft.models.freezing import parameter_table

    lvlm = load(thing, common.device or "cpu", common.dtype or "bfloat16")
    book, llm = lvlm.visual.codebook, lvlm.backbone.llm
    layouts = {"VILA-U": is_vila_u, "LLaVA": is_llava}
    layout = next((name for name, fits in layouts.items() if lvlm.origin and fits(lvlm.origin)), "native")
    return {
        "kind": "model",
        "name": lvlm.name,
        "path": None if thing in shipped() or lvlm.origin is None else str(lvlm.origin),
        "layout": layout,
        "codebook": {
            "fingerprint": book.fingerprint,
            "levels": book.num_levels,
            "size": book.size,
            "dim": book.dim,
        },
        "shares_codebook_with": [name for name in _takers(book.fingerprint) if name != lvlm.name],
        "parameters": {part: count for part, count, _ in parameter_table(lvlm)},
        "llm": llm.config.model_type,  # type: ignore[union-attr]
        "vocabulary": len(lvlm.backbone.tokenizer),
        "prompt": lvlm.backbone.prompt,
        "image_size": lvlm.visual.image_size,
        "grid": list(lvlm.visual.grid),
        "text_encoder": lvlm.visual.text_encoder is not None,
    }


def _takers(fingerprint: str, surrogate: str | None = None) -> list[str]:
    """The shipped models of a codebook, and the surrogate where it is another one."""
    from craft.formats.names import shipped, shipped_folder

    names = [
        name
        for name in shipped()
        if read_json(shipped_folder(name) / "craft.json").get("codebook") == fingerprint
    ]
    return names + ([surrogate] if surrogate and surrogate not in names else [])


def _show(found: dict[str, Any]) -> None:
    kind = found["kind"]
    print(f"{found.get('path') or found.get('name')}: {'an' if kind[0] in 'aeiou' else 'a'} {kind}")
    made = found.get("encoder") or found.get("backbone")
    if kind == "run":
        last = found["last"] or {}
        losses = [
            f"{name} {last[name]:.4g}"
            for name in ("loss", "sal", "commitment", "contrastive", "retention")
            if name in last
        ]
        show_pairs(
            {
                "status": found["status"],
                "reason": found["reason"],
                "LLM that is aligned": found["aligned"],
                "stage": found["stage"],
                "step": f"{found['step']} of {found['steps']}" if found["steps"] else None,
                "surrogate": found["surrogate"],
                "data": found["data"],
                "seed": found["seed"],
                "never trained on": listed(found["held_out"] or []),
                "losses at the end": ", ".join(losses),
                "changed parts": ", ".join(found["changed_parts"] or []),
            }
        )
        if made is None:
            print("nothing made yet: the same command with --resume goes on")
            return
        print(f"\n{made['path']}: the {made['kind']}")
        found = made
    if kind == "family":
        show_pairs({"backbones": ", ".join(found["backbones"])})
        return
    _show_parts(found)


def _show_parts(found: dict[str, Any]) -> None:
    book, data, metrics = found["codebook"], found.get("data") or {}, found.get("metrics") or {}
    shape = f"{book['levels']} levels of {book['size']} codewords, d = {book['dim']}"
    if not book["levels"]:
        shape = f"none: a continuous LVLM, d = {book['dim']}"
    validation = metrics.get("best_validation")
    grid = found.get("grid")
    show_pairs(
        {
            "codebook": shape,
            "fingerprint": book["fingerprint"],
            "tuned parts": listed(found.get("parts") or []),
            "by": found.get("method"),
            "fits": ", ".join([*found["fits"], "any backbone of this codebook"]) if "fits" in found else None,
            "shares it with": ", ".join(found.get("shares_codebook_with") or []),
            "layout": found.get("layout"),
            "LLM": f"{found['llm']}, {found['vocabulary']} words in its vocabulary"
            if "llm" in found
            else None,
            "prompt format": found.get("prompt"),
            "images": f"{found['image_size']} pixels, {grid[0]} x {grid[1]} tokens" if grid else None,
            "adapted with": found.get("surrogate"),
            "adapted to": data.get("name"),
            "licence of the data": data.get("licence"),
            "never trained on": listed(found.get("held_out") or []),
            "steps": metrics.get("steps"),
            "validation accuracy": None if validation is None else f"{100 * validation:.1f} %",
            "level-1 codes in use": f"{found['codes_used']} of {book['size']}"
            if "codes_used" in found
            else None,
        }
    )
    rows = [(part, f"{count:,}") for part, count in found["parameters"].items()]
    show_table("Parameters", ("part", "parameters"), rows)
