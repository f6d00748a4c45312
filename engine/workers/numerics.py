"""What decides, beside weights and batch, how the activations of a model are rounded."""

from __future__ import annotations

import hashlib
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

if TYPE_CHECKING:
    from actstore.engine.models.load import LoadedModel


def numerics_of(model: LoadedModel) -> dict[str, str]:
    """Name → value of everything that is known to change bits, for messages and for records.

    The number of threads is not among them: torch divides rows among threads, and sums each row in one. That, and what no name
    stands for, is held against a trial computation in the model's number type, on its device.
    """
    device = model.device
    packages = ["torch", "transformers", "triton" if device.type == "cuda" else "numba"]
    found = {"device": _device_name(device), "dtype": str(model.dtype).removeprefix("torch.")}
    found |= {name: version(name) for name in ("actstore", *packages)}
    found["attention"] = str(getattr(model.model.config, "_attn_implementation", None) or "eager")
    found["trial computation"] = trial(device, model.dtype)
    return found


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        return f"cuda of compute capability {major}.{minor}"
    return f"{device.type} with {torch.backends.cpu.get_cpu_capability()}" if device.type == "cpu" else device.type


def trial(device: torch.device, dtype: torch.dtype) -> str:
    """A checksum of what products, attention, norm and activation functions give there; 12 hexadecimal digits."""
    digest = hashlib.sha256()
    with torch.inference_mode():
        for rows, columns in ((5, 96), (64, 1024), (33, 4096)):
            x, weight = _numbers(rows, columns, device, dtype), _numbers(80, columns, device, dtype)
            y = functional.linear(x, weight)
            heads = y[: rows // 2 * 2].reshape(1, 2, -1, 80)
            results: list[Any] = [
                y,
                functional.scaled_dot_product_attention(heads, heads, heads, is_causal=True),
                functional.rms_norm(x, (columns,)),
                functional.layer_norm(x, (columns,)),
                functional.silu(x),
                functional.gelu(x),
                torch.softmax(x.float(), -1),
            ]
            for result in results:
                digest.update(result.float().cpu().numpy().tobytes())
    return digest.hexdigest()[:12]


def _numbers(rows: int, columns: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """Numbers between -1 and 1, [rows, columns], the same on every machine: only whole numbers are computed with."""
    steps = torch.arange(rows * columns, dtype=torch.int64) * 40_503 % 65_537
    return ((steps - 32_768).float() / 32_768).reshape(rows, columns).to(device, dtype)
