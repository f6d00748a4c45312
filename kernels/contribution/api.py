"""What every neuron adds to the logit of a target token, and its sums over a corpus: checks and dispatch.

Following Pan et al. (2024, arXiv 2311.07470), the contribution of a neuron at a token is `a · (w · d)`: its activation
times its write vector's product with the direction in which the target's logit reads the residual stream. Products are
in float32, as exact as the BLAS or the GPU makes them.
"""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from actstore.kernels.contribution.entries import Entries
from actstore.kernels.contribution.sums import ContributionSums, TopNeurons
from actstore.kernels.contribution.targets import Targets
from actstore.kernels.floats import FloatArray, as_array, on_gpu
from actstore.kernels.jit import default_threads

if TYPE_CHECKING:
    import torch

    Array = torch.Tensor | FloatArray

__all__ = ["ContributionSums", "Targets", "TopNeurons", "contribution", "sum_contributions", "top_contribution"]


def contribution(
    activations: "Array", write_vectors: "Array", targets: Targets, threads: int | None = None
) -> NDArray[np.float32]:
    """The scores [neuron, token] `activation · (write vector · direction)` of every neuron for every token's target.

    They take neurons × tokens × 4 bytes: meant for chosen tokens. What is not finite gives what float arithmetic gives.

    activations: [neuron, token]. write_vectors: [neuron, d]. Both, like the directions of `targets`, are float32, float16
    or bfloat16 (in numpy: uint16 bits); none is copied to float32 as a whole, and write vectors may be a transposed
    view of a module's weight. Activations are copied if not contiguous.

    Where write vectors and directions lie on a GPU, all is done there; the result is on the CPU all the same. The result
    does not depend on `threads`. Raises ValueError for shapes that do not fit, TypeError for other dtypes.
    """
    _check(activations, write_vectors, targets)
    targets.check_rows()
    if on_gpu(write_vectors):
        from actstore.kernels.contribution import gpu  # only here: Triton takes its time to load

        return gpu.to_host(gpu.contribution(activations, write_vectors, targets))
    from actstore.kernels.contribution import cpu  # only here: so does torch

    return cpu.contribution(*_arrays(activations, write_vectors), targets, threads or default_threads())


def top_contribution(
    activations: "Array", write_vectors: "Array", targets: Targets, k: int, threads: int | None = None
) -> TopNeurons:
    """The k neurons with the largest scores for every token's target, [token, k] descending, without keeping all scores.

    Ties go to the smaller neuron. NaN and -inf are never among them: entries that no score is left for are -inf with
    neuron -1. Raises ValueError for a negative k. Everything else is as for `contribution`.
    """
    _check(activations, write_vectors, targets)
    targets.check_rows()
    if k < 0:
        raise ValueError(f"k must be 0 or more, not {k}")
    if on_gpu(write_vectors):
        from actstore.kernels.contribution import gpu

        return gpu.top_contribution(activations, write_vectors, targets, k)
    from actstore.kernels.contribution import cpu

    return cpu.top_contribution(*_arrays(activations, write_vectors), targets, k, threads or default_threads())


def sum_contributions(
    activations: "Array",
    write_vectors: "Array",
    targets: Targets,
    groups: NDArray[np.integer],
    n_groups: int,
    threads: int | None = None,
    *,
    token_major: bool = False,
) -> ContributionSums:
    """The scores summed over the tokens of every group (a label, a cluster), each against its own target.

    groups: [token] or [token, column] integers below `n_groups`, -1 for none, each of a token's groups once. A token
    without a group enters nothing, and its row need not be there. With `token_major`, activations are [token, neuron], as a
    model hands them over: on the CPU they are read where they lie. Activations that are NaN or infinite are counted and
    left out; weights are taken to be finite. Everything else is as for `contribution`.

    A product is made for every distinct target, not for every token, and nothing larger is held than a tile of it and its
    directions. Sums are in float64, in the order of targets, tokens and nothing else: neither `threads` nor the sizes of
    tiles change a bit. For more blocks, merge their sums.
    """
    labels = _check_groups(groups, n_groups, targets.n_tokens)
    _check(activations.T if token_major else activations, write_vectors, targets)
    grouped = np.flatnonzero((labels >= 0).any(axis=1))
    targets.take(grouped).check_rows()
    rows = np.arange(targets.n_tokens) if targets.rows is None else targets.rows
    entries = Entries.of(rows, labels)
    if on_gpu(write_vectors):
        from actstore.kernels.contribution import gpu

        by_neuron = activations.T.contiguous() if token_major else activations  # type: ignore[union-attr]
        return gpu.sum_contributions(by_neuron, write_vectors, targets, entries, n_groups)
    from actstore.kernels.contribution import cpu

    arrays = _arrays(activations, write_vectors)
    n_threads = threads or default_threads()
    return cpu.sum_contributions(*arrays, targets, entries, n_groups, n_threads, token_major=token_major)


def _arrays(activations: "Array", write_vectors: "Array") -> tuple[FloatArray, FloatArray]:
    return as_array(activations, "activations"), as_array(write_vectors, "write_vectors")


def _check(activations: "Array", write_vectors: "Array", targets: Targets) -> None:
    d = targets.directions.shape[1]
    if write_vectors.ndim != 2 or write_vectors.shape[1] != d:
        raise ValueError(f"write_vectors must be [neuron, d] with d = {d}, not {list(write_vectors.shape)}")
    expected = (len(write_vectors), targets.n_tokens)
    if tuple(activations.shape) != expected:
        raise ValueError(
            f"activations must be [{expected[0]} neurons, {expected[1]} tokens], not {list(activations.shape)}"
        )
    if on_gpu(write_vectors) != on_gpu(targets.directions):
        raise ValueError("write_vectors and directions must lie on the same device: move one of them")


def _check_groups(groups: NDArray[np.integer], n_groups: int, n_tokens: int) -> NDArray[np.int64]:
    groups = np.asarray(groups)
    if groups.ndim not in (1, 2) or len(groups) != n_tokens or groups.dtype.kind not in "iu":
        expected = f"[{n_tokens} tokens] or [{n_tokens} tokens, column] integers"
        raise ValueError(f"groups must be {expected}, not {groups.dtype} {list(groups.shape)}")
    if groups.size and not -1 <= groups.min() <= groups.max() < n_groups:
        limits = f"{groups.min()} to {groups.max()}"
        raise ValueError(f"groups must be -1, for none, or below n_groups = {n_groups}; found {limits}")
    return np.atleast_2d(groups.T).T.astype(np.int64)
