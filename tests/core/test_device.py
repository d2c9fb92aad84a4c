"""Names of devices and dtypes, and what "auto" means."""

import contextlib

import pytest
import torch

from craft.core.device import autocast, resolve_device, resolve_dtype
from craft.core.errors import ConfigError

CPU = torch.device("cpu")


def test_devices():
    assert resolve_device("cpu") == CPU
    assert resolve_device(None) == resolve_device("auto")
    with pytest.raises(ConfigError, match="unknown device 'gpu'"):
        resolve_device("gpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_absent_device_is_named():
    with pytest.raises(ConfigError, match="'cuda' is not available"):
        resolve_device("cuda")


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
