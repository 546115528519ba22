"""Multi-vector retrieval at single-vector cost: sets of token vectors, as ColBERT-like models give them.

`FixedDimensionalEncoder` (MUVERA) turns sets into ordinary vectors whose products approximate Chamfer similarity;
`chamfer_batch` computes it exactly; `cluster_tokens` (CRISP) stores fewer vectors a set; `ProductQuantizer` makes bytes
of vectors; `MultiVectorIndex` puts them together, in memory or on disk. Sets are packed everywhere: rows of all of them
in one array, and offsets.
"""

from mercer.retrieval.clustering import PRESETS, TokenClusters, cluster_tokens, prune_spaced, prune_tail
from mercer.retrieval.fde import FixedDimensionalEncoder
from mercer.retrieval.index import CorruptIndex, Hits, IndexLocked, MultiVectorIndex, TokenMatch
from mercer.retrieval.quantizer import ProductQuantizer
from mercer.retrieval.similarity import ball_carve, chamfer, chamfer_batch, single_vector_heuristic

__all__ = [
    "PRESETS",
    "CorruptIndex",
    "FixedDimensionalEncoder",
    "Hits",
    "IndexLocked",
    "MultiVectorIndex",
    "ProductQuantizer",
    "TokenClusters",
    "TokenMatch",
    "ball_carve",
    "chamfer",
    "chamfer_batch",
    "cluster_tokens",
    "prune_spaced",
    "prune_tail",
    "single_vector_heuristic",
]
