"""What decides, beside weights and batch, how the activations of a model are rounded."""

from __future__ import annotations

import hashlib
from contextlib import contextmanager, nullcontext
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final

import torch
from torch.nn import functional

from actstore.kernels.torch_threads import torch_threads
from actstore.store.capture.workers.numerics import admit, first_numerics, read_numerics
from actstore.store.errors import FormatError
from actstore.store.version import version as own_version

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from contextlib import AbstractContextManager

    from actstore.engine.models.load import LoadedModel
    from actstore.store.storage.folder import Folder

_THREADS: Final = "threads"


@contextmanager
def same_numerics(folder: Folder, capture: str, model: LoadedModel, *, allow_mixed: bool) -> Iterator[None]:
    """While open, this thread computes as those do who compute other blocks of a capture, as many threads of torch included.

    `InvalidInputError` naming what differs where it cannot, unless `allow_mixed`: then it goes on as it is, which is recorded.
    """
    with torch_threads(torch.get_num_threads()):
        numerics = numerics_of(model)
        first = first_numerics(folder, capture, numerics)
        with nullcontext() if allow_mixed else _threads_of(first, model):
            admit(folder, capture, numerics | _threads(model), allow_mixed=allow_mixed)
            yield


def threads_as_captured(folder: Folder, capture: str, model: LoadedModel) -> AbstractContextManager[None]:
    """While open, this thread computes a block anew with as many threads of torch as those had who first computed blocks.

    Captures that do not say (of earlier versions, or damaged there) are computed with as many as there are.
    """
    try:
        return _threads_of(read_numerics(folder, capture), model)
    except FormatError:
        return _threads_of({}, model)


def _threads_of(numerics: Mapping[str, str], model: LoadedModel) -> AbstractContextManager[None]:
    written = numerics.get(_THREADS, "")
    known = model.device.type == "cpu" and written.isdecimal() and int(written) > 0
    return torch_threads(int(written) if known else torch.get_num_threads())


def numerics_of(model: LoadedModel) -> dict[str, str]:
    """Name → value of everything that is known to change bits, for messages and for records.

    What no name stands for is held against a trial computation in the model's number type, on its device. On a CPU the number
    of threads is there: of 1, 2 and 3, MKL sums a product of 5 × 96 and 96 × 80 numbers in another order with 2.
    """
    device = model.device
    packages = ["torch", "transformers", "triton" if device.type == "cuda" else "numba"]
    found = {"device": _device_name(device), "dtype": str(model.dtype).removeprefix("torch.")}
    found |= {"actstore": own_version(), **{name: version(name) for name in packages}}
    found |= _threads(model)
    found["attention"] = str(getattr(model.model.config, "_attn_implementation", None) or "eager")
    found["trial computation"] = trial(device, model.dtype)
    return found


def _threads(model: LoadedModel) -> dict[str, str]:
    """The number of torch's threads, on a CPU: the one entry of `numerics_of` that this process sets."""
    return {_THREADS: str(torch.get_num_threads())} if model.device.type == "cpu" else {}


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        return f"cuda of compute capability {major}.{minor}"
    return f"{device.type} with {torch.backends.cpu.get_cpu_capability()}" if device.type == "cpu" else device.type


def trial(device: torch.device, dtype: torch.dtype) -> str:
    """A checksum of what products, attention, norms and activation functions give there in one thread, as 12 digits."""
    digest = hashlib.sha256()
    with torch_threads(1), torch.inference_mode():
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
