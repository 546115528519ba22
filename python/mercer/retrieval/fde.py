"""Fixed dimensional encodings: two ordinary vectors whose inner product approximates Chamfer similarity.

Source: Dhulipala, Hadian, Jayaram, Lee, Mirrokni 2024, "MUVERA: Multi-Vector Retrieval via Fixed Dimensional
Encodings" (arXiv 2405.19504). Space is cut into blocks by SimHash; a query's block is the *sum* of its tokens there, a
document's the *mean*, and a document's empty block takes its token that is nearest by Hamming distance:

    <F_query(Q), F_document(P)> / repetitions  ~  Chamfer(Q, P) = sum over q of max over p of <q, p>

Without projections the estimate never exceeds Chamfer. For a few thousand documents exact `chamfer_batch` is as fast
and needs no encoding.
"""

from __future__ import annotations

import os
from typing import Any, Self

import numpy as np

from mercer import _checks, _core, _state
from mercer._memory import empty
from mercer.lsh import SimHash
from mercer.lsh._family import given_array
from mercer.retrieval._tokens import as_core, packed

__all__ = ["FixedDimensionalEncoder"]

#: Streams of the generator.
DENSE, SPARSE, FINAL = 27, 28, 29
#: Coordinates of an encoding before the final projection: beyond this the arguments are a mistake.
LONGEST = 1 << 34
KIND = "mercer.retrieval.FixedDimensionalEncoder"
PARAMETERS = (
    "dim", "k_sim", "repetitions", "d_proj", "projection", "final_dim", "final", "fill_empty", "seed",
)  # fmt: skip


class FixedDimensionalEncoder:
    """MUVERA's encoder.

    Parameters
    ----------
    dim : int
        Coordinates d of a token.
    k_sim : int
        Hyperplanes of a repetition, 0 … 30; 2^k_sim blocks, in Gray numbering.
    repetitions : int
        Independent partitions R.
    d_proj : int, optional
        Coordinates of a block: by default d for "identity", else 16 (or d where that is less).
    projection : {"dense", "sparse", "identity"}
        Of tokens within blocks: signs over the root of d_proj (the paper's), one random sign a token coordinate (that
        of its authors' code, "AMS sketch"), or none. Partitions are always those of the tokens themselves.
    final_dim : int, optional
        Bring the R · 2^k_sim · d_proj coordinates down to this many, without ever storing them. A multiple of 16 is
        sketched an order of magnitude faster than another number.
    final : {"count_sketch", "dense"}
        One place and sign a coordinate; or random signs over the root of final_dim, whose cost is that of the matrix
        product, final_dim multiply-adds a coordinate.
    fill_empty : bool
        Whether a document's empty blocks take its nearest token. Never done for queries.
    seed : int
        All the randomness: the same seed gives the same bits on any machine and any number of threads.
    partitions : (R, dim, k_sim) array, optional
        Hyperplanes, given instead of drawn.
    projections : (R, dim, d_proj) array, optional
        Inner projections, given instead of drawn.
    final_projection : (index, sign) or (R · 2^k_sim · d_proj, final_dim) array, optional
        Given instead of drawn: place and sign of each coordinate for "count_sketch", the matrix for "dense".

    Attributes
    ----------
    n_features : int
        Coordinates of an encoding: repetition by repetition, in it block by block; or final_dim.
    fingerprint : str
        Equal for encoders that give the same encodings; an index refuses queries of another one.

    Notes
    -----
    Cost a document of T tokens: R (T d k_sim + min(T, 2^k_sim) d d_proj) multiply-adds. float64 tokens are encoded in
    float64, others in float32.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> docs = rng.standard_normal((60, 16)); docs /= np.linalg.norm(docs, axis=1, keepdims=True)
    >>> offsets = np.array([0, 20, 60])
    >>> encoder = FixedDimensionalEncoder(16, k_sim=4, repetitions=40, projection="identity")
    >>> q = docs[:5]
    >>> estimate = encoder.score(encoder.encode_queries(q), encoder.encode_documents(docs, offsets))
    >>> from mercer.retrieval import chamfer_batch
    >>> exact = chamfer_batch(q, None, docs, offsets)
    >>> bool((estimate <= exact + 1e-9).all() and estimate[0, 0] > estimate[0, 1])
    True
    """

    def __init__(
        self,
        dim: int,
        k_sim: int = 5,
        repetitions: int = 20,
        d_proj: int | None = None,
        projection: str = "dense",
        final_dim: int | None = None,
        final: str = "count_sketch",
        fill_empty: bool = True,
        seed: Any = 1,
        partitions: Any = None,
        projections: Any = None,
        final_projection: Any = None,
    ) -> None:
        self.dim = _checks.integer("dim", dim, 1)
        self.k_sim = _checks.integer("k_sim", k_sim, 0, high=30)
        self.repetitions = _checks.integer("repetitions", repetitions, 1)
        self.projection = _checks.choice("projection", projection, ("dense", "sparse", "identity"))
        identity = self.projection == "identity"
        if d_proj is None:
            d_proj = self.dim if identity else min(16, self.dim)
        self.d_proj = _checks.integer("d_proj", d_proj, 1)
        if identity and self.d_proj != self.dim:
            raise ValueError(f"d_proj must be dim = {self.dim} for projection='identity', got {self.d_proj}")
        if self.d_proj > self.dim:
            raise ValueError(f"d_proj must be at most dim = {self.dim}, got {self.d_proj}")
        self.final_dim = (
            None if final_dim is None else _checks.integer("final_dim", final_dim, 1, high=1 << 31)
        )
        self.final = _checks.choice("final", final, ("count_sketch", "dense"))
        self.fill_empty = _checks.flag("fill_empty", fill_empty)
        self.seed = _checks.random_seed(seed)
        self._length = self.repetitions * (1 << self.k_sim) * self.d_proj
        if self._length > LONGEST:
            raise ValueError(
                f"repetitions * 2**k_sim * d_proj must be at most 2**34, got {self._length:,}; lower k_sim"
            )
        if final_projection is not None and self.final_dim is None:
            raise ValueError("final_projection needs final_dim")
        self._given: dict[str, np.ndarray] = {}
        if partitions is not None:
            shape = (self.repetitions, self.dim, self.k_sim)
            self._given["partitions"] = given_array("partitions", partitions, shape)
        if projections is not None:
            if identity:
                raise ValueError("projections must be None for projection='identity'")
            shape = (self.repetitions, self.dim, self.d_proj)
            self._given["projections"] = given_array("projections", projections, shape)
        if final_projection is not None:
            self._check_final(final_projection)
        self._core = self._build()

    @property
    def n_features(self) -> int:
        """Coordinates of an encoding."""
        return self._length if self.final_dim is None else self.final_dim

    @property
    def partitions(self) -> np.ndarray:
        """The hyperplanes, (R, dim, k_sim)."""
        if "partitions" in self._given:
            return self._given["partitions"]
        return self._hash().planes

    @property
    def projections(self) -> np.ndarray | None:
        """The inner projections, (R, dim, d_proj), or None for "identity"."""
        if "projections" in self._given or self.projection == "identity":
            return self._given.get("projections")
        R, d, p = self.repetitions, self.dim, self.d_proj
        if self.projection == "dense":
            words = _core.lsh_bits(self.seed, DENSE, R * p, -(-d // 64))
            bits = np.unpackbits(words.astype("<u8").view(np.uint8), axis=1, bitorder="little")[:, :d]
            return ((1.0 - 2.0 * bits) / np.sqrt(p)).reshape(R, p, d).transpose(0, 2, 1)
        words = _core.lsh_bits(self.seed, SPARSE, R, d)
        column = ((words >> np.uint64(32)) * np.uint64(p)) >> np.uint64(32)
        sparse = np.zeros((R, d, p))
        sign = 1.0 - 2.0 * (words & np.uint64(1)).astype(np.float64)
        np.put_along_axis(sparse, column.astype(np.int64)[..., None], sign[..., None], 2)
        return sparse

    @property
    def count_sketch(self) -> tuple[np.ndarray, np.ndarray]:
        """Place (int64) and sign of each coordinate, two arrays of R · 2^k_sim · d_proj."""
        if self.final_dim is None or self.final != "count_sketch":
            raise ValueError("there is a count sketch only with final_dim and final='count_sketch'")
        if "index" in self._given:
            return self._given["index"].astype(np.int64), self._given["sign"]
        return _core.fde_sketch(self.seed, FINAL, self._length, self.final_dim)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all that decides an encoding."""
        return _state.fingerprint(KIND, self._parameters(), self._given)

    def encode_queries(
        self, tokens: Any, offsets: Any = None, *, sparse: bool = False, threads: int | None = None
    ) -> Any:
        """Sums of each set's tokens, block by block.

        Parameters
        ----------
        tokens : (n_tokens, dim) array of float16, float32 or float64, or a list of such, one a query
        offsets : (n + 1,) integers, optional
            Query i owns ``tokens[offsets[i]:offsets[i + 1]]``; None: all tokens are one query.
        sparse : bool
            A ``scipy.sparse.csr_array``: at most (tokens of a query) · R · d_proj entries a row. Not with final_dim.
        threads : int, optional
            None: ``MERCER_NUM_THREADS``, else all cores.

        Returns
        -------
        (n, n_features) array of float32, or float64 for float64 tokens

        Raises
        ------
        ValueError
            Another width, offsets that do not ascend, NaN or infinity.
        """
        threads = _checks.threads("threads", threads)
        rows, offsets = packed("tokens", tokens, offsets, self.dim)
        if not _checks.flag("sparse", sparse):
            return self._encode(rows, offsets, True, threads)
        if self.final_dim is not None:
            raise ValueError("sparse must be False with final_dim: what is sketched is dense")
        from scipy.sparse import csr_array

        starts, columns, values = self._core.encode_sparse(as_core(rows), offsets, threads)
        found = csr_array((values, columns, starts), shape=(len(offsets) - 1, self._length))
        found.sort_indices()
        return found

    def encode_documents(self, tokens: Any, offsets: Any = None, *, threads: int | None = None) -> np.ndarray:
        """Means of each set's tokens, block by block; empty blocks filled where ``fill_empty``.

        As `encode_queries`; a document without tokens is refused where ``fill_empty``, and 0 otherwise.
        """
        threads = _checks.threads("threads", threads)
        rows, offsets = packed("tokens", tokens, offsets, self.dim)
        if self.fill_empty:
            lengths = np.diff(offsets)
            if (lengths == 0).any():
                at = int((lengths == 0).argmax())
                raise ValueError(
                    f"offsets must leave no document empty with fill_empty: document {at} has no tokens"
                )
            if len(lengths) and lengths.max() >= 1 << 26:
                raise ValueError(f"a document must have fewer than 2**26 tokens, got {lengths.max()}")
        return self._encode(rows, offsets, False, threads)

    def partition(self, tokens: Any, *, threads: int | None = None) -> np.ndarray:
        """The block of each token in each repetition, (n_tokens, R) int64, in Gray numbering."""
        rows, _ = packed("tokens", tokens, None, self.dim)
        out = np.empty((len(rows), self.repetitions), np.int64)
        self._core.partition(as_core(rows), out, _checks.threads("threads", threads))
        return out

    def score(self, queries: Any, documents: Any) -> np.ndarray:
        """Estimates of Chamfer similarity from encodings, (n_queries, n_documents): products over R."""
        if np.ndim(documents) != 2 or documents.shape[1] != self.n_features:
            raise ValueError(f"documents must be (n, {self.n_features}) encodings, got {np.shape(documents)}")
        if len(queries.shape) != 2 or queries.shape[1] != self.n_features:
            raise ValueError(f"queries must be (n, {self.n_features}) encodings, got {queries.shape}")
        return np.asarray(queries @ np.asarray(documents).T) / self.repetitions

    def require_same(self, fingerprint: str) -> None:
        """Refuse what another encoder made.

        Raises
        ------
        ValueError
            The fingerprints differ: products of encodings of different partitions mean nothing.
        """
        if fingerprint != self.fingerprint:
            raise ValueError(
                f"encoder must be the one of the documents: its fingerprint is {self.fingerprint[:16]}..., "
                f"theirs {fingerprint[:16]}..."
            )

    def get_state(self) -> dict[str, Any]:
        """What `from_state` makes the same encoder from: arguments, and arrays where they were given."""
        given = dict(self._given)
        if "index" in given:
            given["final_projection"] = (given.pop("index"), given.pop("sign"))  # type: ignore[assignment]
        return {**self._parameters(), **given}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Self:
        """The encoder of a state."""
        return cls(**state)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the state, whole or not at all (an npz with a JSON header; nothing is pickled)."""
        _state.write(path, KIND, self._parameters(), self._given)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read what `save` wrote; ``ValueError`` for a file that is damaged or of another kind."""
        parameters, arrays = _state.read(path, KIND)
        return cls.from_parts(parameters, arrays)

    @classmethod
    def from_parts(cls, parameters: dict[str, Any], arrays: dict[str, np.ndarray]) -> Self:
        """From plain parameters and arrays, as files hold them."""
        known = {"partitions", "projections", "final_projection", "index", "sign"}
        if set(parameters) != set(PARAMETERS) or not set(arrays) <= known:
            raise _state.CorruptState(f"not the state of an encoder: {sorted({*parameters, *arrays})}")
        state = {**parameters, **arrays}
        if "index" in state:
            state["final_projection"] = (state.pop("index"), state.pop("sign"))
        return cls(**state)

    def parts(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """What `from_parts` takes."""
        return self._parameters(), dict(self._given)

    def __repr__(self) -> str:
        return f"FixedDimensionalEncoder({', '.join(f'{k}={v!r}' for k, v in self._parameters().items())})"

    def _parameters(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in PARAMETERS}

    def _hash(self) -> SimHash:
        return SimHash(
            self.dim, self.k_sim, tables=self.repetitions, numbering="gray", random_state=self.seed
        )

    def _check_final(self, given: Any) -> None:
        size = self.final_dim
        if self.final == "dense":
            self._given["final_projection"] = given_array(
                "final_projection", given, (self._length, size or 0)
            )
            return
        if not isinstance(given, list | tuple) or len(given) != 2:
            raise ValueError("final_projection must be a pair (index, sign) for final='count_sketch'")
        index, sign = np.asarray(given[0]), given_array("final_projection[1]", given[1], (self._length,))
        if index.shape != (self._length,) or index.dtype.kind not in "iu":
            raise ValueError(
                f"final_projection[0] must be {self._length} integers, got {index.dtype} of shape {index.shape}"
            )
        if ((index < 0) | (index >= size)).any():
            raise ValueError(f"final_projection[0] must lie in 0 ... {(size or 0) - 1}")
        self._given["index"], self._given["sign"] = np.ascontiguousarray(index, np.int64), sign

    def _build(self) -> _core.FdeEncoder:
        planes = np.ascontiguousarray(self.partitions.transpose(0, 2, 1))
        projections = self.projections
        if projections is not None:
            projections = np.ascontiguousarray(projections.transpose(0, 2, 1))
        return _core.FdeEncoder(
            planes,
            projections,
            self.fill_empty,
            self.final_dim,
            self.final == "dense",
            self._given.get("index"),
            self._given.get("sign"),
            self._given.get("final_projection"),
            self.seed,
            FINAL,
        )

    def _encode(
        self, rows: np.ndarray, offsets: np.ndarray, queries: bool, threads: int | None
    ) -> np.ndarray:
        dtype = np.float64 if rows.dtype == np.float64 else np.float32
        out = empty((len(offsets) - 1, self.n_features), np.dtype(dtype))
        self._core.encode(as_core(rows), offsets, queries, out, threads)
        return out
