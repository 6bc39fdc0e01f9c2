"""Finds devices by name."""

from __future__ import annotations

import torch

KINDS = ("cpu", "cuda", "mps", "xpu")
"""The kinds of device that may hold a model; torch knows others, which hold none or have not been tried."""

ON_THE_COMMAND_LINE = "(on the command line: --set device=auto)"


def named_device(name: str | torch.device) -> torch.device:
    """Returns a device by name, whether it is here or not.

    Raises:
        ValueError: for a name of no device.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in KINDS:
        raise ValueError(f"there is no device {str(name)!r}: it is auto, cpu, cuda (the first GPU), cuda:1 (the second) or mps")
    return device


def pick_device(name: str | torch.device = "auto") -> torch.device:
    """Returns a device by name; "auto" is CUDA, else MPS, else the CPU.

    Raises:
        ValueError: for a name of no device, or a device that is not there.
    """
    if str(name) == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    device = named_device(name)
    here = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available()), "xpu": torch.xpu.device_count()}
    count = here.get(device.type, 1)
    if not count:
        raise ValueError(f"device {device} is not available here; use device='auto' {ON_THE_COMMAND_LINE}")
    if (device.index or 0) >= count:
        last = f"{device.type}:{count - 1}"
        raise ValueError(
            f"device {device} is not available here, where the last one is {last}; use "
            f"device={last!r} or 'auto' {ON_THE_COMMAND_LINE}"
        )
    return device
