"""What a figure was measured on."""

from __future__ import annotations

import platform
from pathlib import Path

import torch


def machine(device: str = "cpu") -> str:
    """The processor or the CUDA device, cores and threads, and the versions of Python and torch."""
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    if device.startswith("cuda"):
        return f"{torch.cuda.get_device_name()}; {versions}"
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name}, {len(names) or '?'} cores, {torch.get_num_threads()} threads; {versions}"
