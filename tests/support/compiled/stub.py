"""A stand-in for Triton's driver: kernels are specialised and compiled by the launchers' own arguments, and none is started."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

if TYPE_CHECKING:
    from collections.abc import Iterator

SHARED_MEMORY = {90: 232_448, 80: 166_912, "gfx942": 65_536}
"""The most bytes of shared memory that a program may have, by architecture."""


class Compiled(NamedTuple):
    """A kernel as it was compiled for one launch."""

    name: str
    """As `pack.gpu._pack`."""
    case: str
    kernel: Any
    """Triton's `CompiledKernel`."""
    keywords: dict[str, Any]
    """What it was started with by name."""


class _Driver:
    """What Triton asks of a driver before a launch."""

    def __init__(self, target: GPUTarget) -> None:
        self.target, self.utils = target, self

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int | str:
        return self.target.arch  # Triton keeps the kernels that it compiled by device

    def get_current_stream(self, device: int | str) -> int:
        return 0

    def get_device_properties(self, device: int | str) -> dict[str, int]:
        return {"max_shared_mem": SHARED_MEMORY[self.target.arch], "multiprocessor_count": 132}


def target_of(name: str) -> GPUTarget:
    """The target that is called `cuda:90` or `hip:gfx942`."""
    backend, arch = name.split(":")
    return GPUTarget("cuda", int(arch), 32) if backend == "cuda" else GPUTarget("hip", arch, 64)


@contextmanager
def compiling(target: GPUTarget, compiled: dict[str, Compiled], problems: list[str]) -> Iterator[list[str]]:
    """While open, a launch compiles: `compiled` gets what is new by its hash, `problems` what does not compile.

    Yields a list of one: the name of the case that launches belong to.
    """
    launch, empty, case = JITFunction.run, torch.empty, [""]

    def run(self: Any, *arguments: Any, grid: Any, warmup: bool, **keywords: Any) -> Any:
        try:
            kernel = launch(self, *arguments, grid=grid, warmup=True, **keywords)
        except Exception as error:
            said = f"{type(error).__name__}: {str(error)[-600:]} {error.__cause__ or ''}"
            problems.append(f"{case[0]}: {self.__name__} does not compile: {said}")
            return None
        name = f"{self.fn.__module__.removeprefix('actstore.kernels.')}.{self.fn.__name__}"
        compiled.setdefault(kernel.hash, Compiled(name, case[0], kernel, keywords))
        return kernel

    # Nothing runs: what would be undefined must be harmless to what a launcher does with it afterwards.
    JITFunction.run, torch.empty = run, lambda *shape, **keywords: empty(*shape, **keywords).zero_()
    driver.set_active(_Driver(target))
    try:
        yield case
    finally:
        JITFunction.run, torch.empty = launch, empty
