"""Names of devices and dtypes, and what "auto" means."""

import contextlib
import sys

import pytest
import torch

from craft.core import device
from craft.core.device import autocast, exact_products, resolve_device, resolve_dtype, rounds_products
from craft.core.errors import ConfigError

CPU = torch.device("cpu")


def test_devices():
    assert resolve_device("cpu") == CPU
    assert resolve_device(None) == resolve_device("auto")
    with pytest.raises(ConfigError, match="unknown device 'gpu'"):
        resolve_device("gpu")


@pytest.mark.skipif(
    torch.cuda.is_available(), reason="CUDA is here, and the message is about machines without it"
)
def test_absent_device_is_named():
    with pytest.raises(ConfigError, match="'cuda'"):
        resolve_device("cuda")


@pytest.mark.parametrize("name", ["meta", "xpu", "hpu", "xla:0", "cuda:99"])
def test_names_of_devices_that_no_machine_of_ours_has(name):
    with pytest.raises(ConfigError, match=f"'{name}'"):
        resolve_device(name)


def test_dtypes():
    assert resolve_dtype("auto", CPU) is torch.float32
    assert resolve_dtype(None, CPU) is torch.float32
    assert resolve_dtype("BF16", CPU) is resolve_dtype("torch.bfloat16", CPU) is torch.bfloat16
    with pytest.raises(ConfigError, match="unknown dtype 'int8'"):
        resolve_dtype("int8", CPU)


def test_autocast():
    assert isinstance(autocast(CPU, torch.float32), contextlib.nullcontext)
    with autocast(CPU, torch.bfloat16):
        assert (torch.randn(2, 2) @ torch.randn(2, 2)).dtype == torch.bfloat16


@pytest.mark.parametrize("kind, backend", [("cuda", torch.backends.cuda), ("cpu", torch.backends.mkldnn)])
def test_products_are_exact_whatever_torch_is_allowed(kind, backend):
    device = torch.device(kind)
    assert not rounds_products(device)
    backend.matmul.fp32_precision = "tf32"  # and the older switch stays off: it cannot even be read now
    try:
        assert rounds_products(device)
        with exact_products(device):
            assert not rounds_products(device)
        assert backend.matmul.fp32_precision == "tf32"
    finally:
        backend.matmul.fp32_precision = "none"
    torch.set_float32_matmul_precision("medium")  # TF32 on CUDA, bfloat16 on processors that have it
    try:
        with exact_products(device):
            assert backend.matmul.fp32_precision == "ieee"
        assert rounds_products(device) and torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_the_older_switch_is_read_and_set_where_there_is_no_other(monkeypatch):
    class Matmul:
        allow_tf32 = True

    monkeypatch.setattr(torch.backends.cuda, "matmul", Matmul)
    with exact_products(torch.device("cuda")):
        assert Matmul.allow_tf32 is False
    assert rounds_products(torch.device("cuda"))


@pytest.mark.parametrize("old", [False, True])
def test_memory_of_a_container(tmp_path, monkeypatch, old):
    """3 GiB of which 2 are used, a quarter of these by files that can be dropped; a looser limit above."""
    kind = "memory" if old else ""
    limit, usage = device._OLD_GROUPS if old else ("memory.max", "memory.current")
    own = tmp_path / kind / "jobs/one"
    own.mkdir(parents=True)
    inactive = "total_inactive_file" if old else "inactive_file"
    for folder, most, used in ((own, 3 * 2**30, 2 * 2**30), (own.parent, 8 * 2**30, 2 * 2**30)):
        (folder / limit).write_text(f"{most}\n")
        (folder / usage).write_text(f"{used}\n")
        (folder / "memory.stat").write_text(f"anon 5\n{inactive} {2**29}\n")
    groups = tmp_path / "cgroup"
    groups.write_text(f"5:cpu:/other\n{'4' if old else '0'}:{kind}:/jobs/one\n")
    monkeypatch.setattr(device, "_CGROUPS", tmp_path)
    monkeypatch.setattr(device, "_PROCESS_GROUPS", groups)
    assert device.container_memory() == (3 * 2**30, 3 * 2**29)
    assert device.free_memory(CPU) <= 3 * 2**29
    (own / limit).write_text("max\n")
    (own.parent / limit).write_text("max\n")
    assert device.container_memory() == (sys.maxsize, 0)
    groups.unlink()
    assert device.container_memory() == (sys.maxsize, 0)
