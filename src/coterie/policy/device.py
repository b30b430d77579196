"""Device and number format of the model: CUDA, Apple's MPS, Intel's XPU, another accelerator of torch, or the CPU."""

from __future__ import annotations

import re

import torch

from coterie import machine
from coterie.algo.sampling import has_float64
from coterie.errors import ConfigError

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32, "float64": torch.float64}


def device_named(name: str) -> torch.device:
    """The device of a setting, tried out with one sum.

    Args:
        name: as `torch.device` reads it; `auto` is the first CUDA device, else the CPU.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(
            f"model.device = {name!r} is not a device of torch; expected auto, {_present()}, or another name that "
            "torch.device takes"
        ) from error
    if device.type == "meta":
        raise ConfigError(f"model.device = 'meta' holds shapes and no numbers; expected auto, {_present()}")
    if device.type != "cpu":
        try:
            torch.ones(2, device=device).sum().item()
        except Exception as error:  # each backend fails in its own way: RuntimeError, AssertionError, ImportError …
            raise ConfigError(
                f"model.device = {name!r}, but torch cannot compute on it here ({_reason(error, device)}); "
                f"use auto, {_present()}"
            ) from error
    return device


def dtype_named(name: str, device: torch.device) -> torch.dtype:
    """The number format of a setting; `auto` is bfloat16 where the hardware multiplies it natively, else float32."""
    if name == "auto":
        if device.type == "cuda":
            native = torch.cuda.is_bf16_supported(including_emulation=False)
        else:  # other accelerators: float32, which all of them have
            native = device.type == "cpu" and machine.facts().native_bf16
        return torch.bfloat16 if native else torch.float32
    if name == "float64" and not has_float64(device.type):
        raise ConfigError(f"model.dtype = 'float64', which {device.type} does not have; use float32, or device = cpu")
    return DTYPES[name]


def free_bytes(device: torch.device) -> int:
    """Memory that this process can still have on the device, with what it holds there already."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    backend = getattr(torch, device.type, None)
    if device.type != "cpu" and hasattr(backend, "mem_get_info"):
        return int(backend.mem_get_info(device)[0])
    return machine.facts().memory_free + machine.resident()  # MPS shares the machine's memory


def _reason(error: Exception, device: torch.device) -> str:
    """The first sentence of a backend's error, which may go on with a list of all its operators."""
    if "Could not run 'aten::" in str(error):
        return f"this build of torch has no {device.type.upper()}"
    line = next(iter(str(error).strip().splitlines()), type(error).__name__)
    sentence = re.split(r"(?<=[a-z'])\. ", line)[0].rstrip(".")
    return sentence if len(sentence) <= 160 else f"{sentence[:159]}…"


def _present() -> str:
    """The devices of this machine, for a message."""
    return " or ".join(["cpu", *dict.fromkeys(gpu.device for gpu in machine.gpus())])
