"""`craft serve`: opens the LLM and its encoders, and answers HTTP until it is stopped."""

import socket
from pathlib import Path

import torch

from craft.core.errors import ConfigError
from craft.core.progress import say
from craft.evaluation.engine import Engine, refuse_lora
from craft.formats.load import load
from craft.serving.codes import BoundedCodes
from craft.serving.settings import ServeConfig, access_of, read_keys
from craft.serving.towers import Towers
from craft.serving.worker import Worker

THREADS = 2
"""Batches that are answered at the same time on a CPU."""


def need_server() -> None:
    """Check that the extra `serve` is installed.

    Raises:
        ConfigError: it is not.
    """
    try:
        import uvicorn  # noqa: F401

        import craft.serving.app  # noqa: F401
    except ModuleNotFoundError as error:
        raise ConfigError(f'A server needs {error.name}: pip install "craft-vlm[serve]".') from error


def serve_encoder(model: str, encoder: Path, name: str, device: str | None = None) -> None:
    """Serve one encoder to this machine, and print the address of the page to ask it.

    Args:
        model: the LLM with its base tower.
        encoder: the artefact.
        name: of the encoder; characters that a name cannot have become dashes.
        device: as for `craft.load`.

    Raises:
        ConfigError, CraftError: as for `serve`.
    """
    name = "".join(sign if sign.isalnum() or sign in "-_." else "-" for sign in name)
    name = name if name not in ("base", "auto") else f"{name}-1"
    port = _free_port(ServeConfig().port)
    say(f"page: http://127.0.0.1:{port}/   (Ctrl-C ends the server)")
    serve(ServeConfig(model=model, encoder=(f"{name}={encoder}",), port=port, device=device))


def _free_port(wanted: int) -> int:
    """The wanted port on loopback, or a free one if another program listens at it."""
    for port in (wanted, 0):
        with socket.socket() as door:
            door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                door.bind(("127.0.0.1", port))
            except OSError:
                continue
            return door.getsockname()[1]
    raise ConfigError("No port is free on 127.0.0.1.")


def serve(config: ServeConfig) -> None:
    """Serve until SIGTERM or Ctrl-C; what was asked before is still answered.

    Raises:
        ConfigError: no model is named, the port is in use, or the extra `serve` is not installed.
        CraftError: the model or an encoder is missing or damaged, or they do not share a codebook.
    """
    need_server()
    import uvicorn

    from craft.serving.app import make_app

    if config.model is None:
        raise ConfigError("Name the model to serve: a shipped model, a folder, or a hub id.")
    access, folders = access_of(config), config.folders()
    lvlm = load(config.model, config.device, config.dtype, llm_bits=config.llm_bits)
    lvlm.check_keep_ratio(config.keep_ratio)
    if config.engine is not None:
        refuse_lora(lvlm)
    towers = Towers(lvlm, folders, config.encoders, config.max_encoders)
    worker = Worker(
        towers.base,
        BoundedCodes(config.cache_mib * 2**20),
        batch_size=config.batch_size,
        window=config.window,
        waiting=config.queue,
        margin=config.margin,
        threads=THREADS if lvlm.device.type == "cpu" and torch.get_num_threads() > 1 else 1,
    )
    engine = None
    if config.engine is not None:
        key = read_keys(config.engine_key, "CRAFT_ENGINE_KEY", "--engine-key")
        engine = Engine(config.engine, config.engine_model, key[0] if key else None, config.timeout)
    app = make_app(towers, worker, access, engine)
    names = [lvlm.name, *(f"{lvlm.name}:{name}" for name in towers.names())]
    say(f"serving {', '.join(names)} at http://{config.host}:{config.port}/v1")
    if not access.keys and config.host not in ("127.0.0.1", "localhost", "::1"):
        say("note: everyone who reaches this address may ask; --keys FILE asks for an API key")
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            host=config.host,
            port=config.port,
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=int(config.timeout) + 1,
        )
    )
    worker.start()
    try:
        server.run()
    except SystemExit as error:  # uvicorn could not listen
        raise ConfigError(
            f"{config.host}:{config.port} cannot be listened at; is the port in use? Choose another --port."
        ) from error
    finally:
        worker.stop()
