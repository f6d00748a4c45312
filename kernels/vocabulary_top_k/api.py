"""The tokens that every neuron promotes and suppresses most: checks and dispatch.

What a neuron adds to every token's logit, up to its activation, is `w · (γ ⊙ u)`; the tokens with the largest are what
the neuron is for (Pan et al. 2024, arXiv 2311.07470).
"""

from typing import TYPE_CHECKING

from actstore.kernels.contribution.targets import Targets
from actstore.kernels.floats import FloatArray, as_array, on_gpu
from actstore.kernels.jit import default_threads
from actstore.kernels.vocabulary_top_k.naive import VocabularyTopK

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    Array = torch.Tensor | FloatArray

__all__ = ["VocabularyTopK", "vocabulary_top_k"]


def vocabulary_top_k(
    write_vectors: "Array", unembedding: "Array", k: int, gain: "Array | None" = None, threads: int | None = None
) -> VocabularyTopK:
    """Every neuron's k largest and k smallest products `w · (gain ⊙ u)` over the vocabulary, and their token ids.

    Ties go to the smaller id. NaN is never among them, nor is -inf among the largest or +inf among the smallest: entries
    that no product is left for are -inf, or +inf among the smallest, with token -1.

    write_vectors: [neuron, d]; may be a transposed view of a module's weight. unembedding: [vocabulary, d]. Both float32,
    float16 or bfloat16 (in numpy: uint16 bits); neither is copied to float32 as a whole. gain: [d], that of the final
    norm; 1 unless given. Products are in float32; beyond its inputs and result it needs a tile of directions in float32
    and one of products for each thread.

    Where both lie on a GPU, all is done there; the result is on the CPU all the same. The result does not depend on
    `threads`. Raises ValueError for shapes that do not fit, TypeError for other dtypes.
    """
    if unembedding.ndim != 2:
        raise ValueError(f"unembedding must be [vocabulary, d], not {list(unembedding.shape)}")
    d = unembedding.shape[1]
    if write_vectors.ndim != 2 or write_vectors.shape[1] != d:
        raise ValueError(f"write_vectors must be [neuron, d] with d = {d}, not {list(write_vectors.shape)}")
    if k < 0:
        raise ValueError(f"k must be 0 or more, not {k}")
    if on_gpu(write_vectors) != on_gpu(unembedding):
        raise ValueError("write_vectors and unembedding must lie on the same device: move one of them")
    weights: NDArray[np.float32] | None = Targets(unembedding, gain=gain).gain
    if on_gpu(write_vectors) and on_gpu(unembedding):
        from actstore.kernels.vocabulary_top_k import gpu  # only here: Triton takes its time to load

        return gpu.vocabulary_top_k(write_vectors, unembedding, k, weights).to_host()
    from actstore.kernels.vocabulary_top_k import cpu  # only here: so does torch

    arrays = as_array(write_vectors, "write_vectors"), as_array(unembedding, "unembedding")
    return cpu.vocabulary_top_k(*arrays, k, weights, threads or default_threads())
