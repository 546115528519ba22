"""Multi-vector retrieval that trains: token clustering, the contrastive Chamfer loss, encodings with gradients.

Source: Veneroso, Jayaram, Rao, Hernandez Abrego, Hadian, Cer 2025, "CRISP" (arXiv 2505.11471): k-means inside the
forward pass, assignments held constant, gradients through the means. Dhulipala et al. 2024, "MUVERA": the encoding,
whose partitions are held constant likewise. What is stored and served afterwards: `mercer.retrieval`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mercer import _checks
from mercer._backend import is_reference
from mercer.retrieval import PRESETS, FixedDimensionalEncoder, chamfer_batch
from mercer.retrieval.clustering import clusters_of

__all__ = [
    "ChamferContrastiveLoss",
    "Clusters",
    "CrispEncoder",
    "FixedDimensionalEncoding",
    "TokenClustering",
    "chamfer",
    "chamfer_packed",
    "encode_packed",
]


def chamfer(
    queries: Tensor, query_mask: Tensor | None, documents: Tensor, document_mask: Tensor | None = None
) -> Tensor:
    """Chamfer similarity of each query with each document.

    Parameters
    ----------
    queries : (B, T, d); query_mask : (B, T) bool, True where a token is real, or None
    documents : (C, S, d); document_mask : (C, S) bool or None

    Returns
    -------
    (B, C)
    """
    products = torch.einsum("btd,csd->bcts", queries, documents)
    if document_mask is not None:
        products = products.masked_fill(~document_mask[None, :, None, :], -torch.inf)
    largest = products.amax(-1)  # (B, C, T)
    if query_mask is not None:
        largest = largest.masked_fill(~query_mask[:, None, :], 0.0)
    return largest.sum(-1)


def chamfer_packed(queries: Tensor, query_offsets: Tensor, documents: Tensor, offsets: Tensor) -> Tensor:
    """Chamfer similarity of packed sets, (n_queries, n_documents), without gradients: on a GPU in one fused kernel.

    Parameters
    ----------
    queries, documents : (n_tokens, d) of one dtype and device; float16 and bfloat16 are multiplied in float32
    query_offsets, offsets : (n + 1,) integers
        As in `mercer.retrieval.chamfer_batch`, which this is on the CPU.
    """
    if queries.device.type == "cuda" and not is_reference():
        from mercer.nn import _cuda

        return _cuda.chamfer(queries.detach(), query_offsets, documents.detach(), offsets)
    wide = torch.float64 if queries.dtype == torch.float64 else torch.float32
    arrays = [t.detach().to("cpu", wide).numpy() for t in (queries, documents)]
    ends = [o.cpu().numpy() for o in (query_offsets, offsets)]
    found = chamfer_batch(arrays[0], ends[0], arrays[1], ends[1])
    return torch.from_numpy(found).to(queries.device)


def encode_packed(
    encoder: FixedDimensionalEncoder, tokens: Tensor, offsets: Tensor, *, queries: bool
) -> Tensor:
    """Encodings of packed sets, (n, n_features), without gradients: on a GPU by `cuda/fde.cu`.

    Raises
    ------
    ValueError
        As `FixedDimensionalEncoder.encode_documents`; on a GPU a dense final projection too.
    """
    if tokens.device.type == "cuda" and not is_reference():
        from mercer.nn import _cuda

        layer = FixedDimensionalEncoding(encoder).to(tokens.device)
        if encoder.fill_empty and not queries and bool((offsets.diff() == 0).any()):
            raise ValueError("offsets must leave no document empty with fill_empty")
        sketch = None if layer.places is None or layer.signs is None else (layer.places, layer.signs)
        return _cuda.fde(
            tokens.detach(), offsets, layer.planes.transpose(1, 2), layer.projections, sketch, encoder.n_features,
            queries=queries, fill=encoder.fill_empty,
        )  # fmt: skip
    wide = torch.float64 if tokens.dtype == torch.float64 else torch.float32
    encode = encoder.encode_queries if queries else encoder.encode_documents
    found = encode(tokens.detach().to("cpu", wide).numpy(), offsets.cpu().numpy())
    return torch.from_numpy(found).to(tokens.device)


class Clusters(NamedTuple):
    """What `TokenClustering` gives."""

    #: (B, k, d) centroids, 0 where there is none.
    tokens: Tensor
    #: (B, k) bool: whether there is one.
    mask: Tensor
    #: (B, T) int64: the cluster of each token, -1 for padding.
    assignments: Tensor
    #: (B, k) int64: tokens of each cluster.
    counts: Tensor


class TokenClustering(nn.Module):
    """k-means of each sequence: centroids with gradients through their means, not through the assignment.

    Parameters
    ----------
    n_clusters : int or float
        Clusters of a sequence; a float in (0, 1] is a share of its tokens, rounded up. A sequence with no more tokens
        keeps them.
    init : {"kmeans++", "spaced", "random"}
        "spaced" owes nothing to chance: tokens floor(j T / k). The others draw from `seed`, the same for each call.
    n_iter : int
        Rounds of assignment and means; only the last means are differentiated.
    normalize : bool
        Scale centroids to unit length. Off in the paper, where the norm tells how tight a cluster is.
    weighted : bool
        Centroids times counts: for queries of a model that was not trained with clusters.
    seed : int

    Notes
    -----
    An empty cluster stays where it was, and its centroid gets no gradient. Cost: n_iter · B · T · k · d
    multiply-adds without gradient, and one scatter with. Under autocast distances are taken in float32.

    Examples
    --------
    >>> x = torch.tensor([[[0.0], [0.2], [5.0], [9.0]]], requires_grad=True)
    >>> found = TokenClustering(2, init="spaced")(x, torch.tensor([[True, True, True, False]]))
    >>> found.tokens.squeeze().tolist()
    [0.10000000149011612, 5.0]
    >>> found.tokens.sum().backward(); x.grad.squeeze().tolist()
    [0.5, 0.5, 1.0, 0.0]
    """

    def __init__(
        self,
        n_clusters: int | float,
        init: str = "kmeans++",
        n_iter: int = 10,
        normalize: bool = False,
        weighted: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        clusters_of(np.ones(1, np.int64), n_clusters)  # refuses what is out of range
        self.n_clusters = n_clusters
        self.init = _checks.choice("init", init, ("kmeans++", "spaced", "random"))
        self.n_iter = _checks.integer("n_iter", n_iter, 1)
        self.normalize = _checks.flag("normalize", normalize)
        self.weighted = _checks.flag("weighted", weighted)
        self.seed = _checks.integer("seed", seed, 0)

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Clusters:
        """Cluster (B, T, d) tokens, `mask` (B, T) bool True where a token is real.

        Raises
        ------
        ValueError
            A mask of another shape, a sequence without tokens, NaN or infinity.
        """
        if tokens.ndim != 3:
            raise ValueError(f"tokens must have shape (B, T, d), got {tuple(tokens.shape)}")
        if mask is None:
            mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        if mask.shape != tokens.shape[:2] or mask.dtype != torch.bool:
            raise ValueError(
                f"mask must be bool of shape {tuple(tokens.shape[:2])}, got {mask.dtype} of shape {tuple(mask.shape)}"
            )
        lengths = mask.sum(1)
        if not bool((lengths > 0).all()):
            raise ValueError(
                f"mask must leave each sequence a token, sequence {int(lengths.argmin())} has none"
            )
        clusters = torch.from_numpy(clusters_of(lengths.cpu().numpy(), self.n_clusters)).to(tokens.device)
        exact = torch.float64 if tokens.dtype == torch.float64 else torch.float32
        with torch.no_grad(), torch.autocast(tokens.device.type, enabled=False):
            x = tokens.detach().to(exact).masked_fill(~mask[..., None], 0.0)
            if not bool(torch.isfinite(x).all()):
                raise ValueError("tokens must be finite, they contain NaN or infinity")
            assignments, previous, present = self._lloyd(x, mask, lengths, clusters)
        sums, counts = _sums(tokens, assignments, mask, present.shape[1])
        # Without members: where the cluster was, a constant.
        means = sums / counts.clamp_min(1)[..., None].to(sums.dtype)
        means = torch.where((counts > 0)[..., None], means, previous.to(sums.dtype))
        means = means.masked_fill(~present[..., None], 0.0)
        if self.normalize:
            means = F.normalize(means, dim=-1)
        if self.weighted:
            means = means * counts[..., None].to(means.dtype)
        return Clusters(means, present, assignments.masked_fill(~mask, -1), counts)

    def extra_repr(self) -> str:
        """As it was made."""
        return f"{self.n_clusters}, init={self.init!r}, n_iter={self.n_iter}"

    def _lloyd(
        self, x: Tensor, mask: Tensor, lengths: Tensor, clusters: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(assignments, the centroids they were made for, which clusters there are), none with a gradient."""
        B, T, _ = x.shape
        k = int(clusters.max())
        present = torch.arange(k, device=x.device) < clusters[:, None]  # (B, k)
        place = mask.cumsum(1) - 1  # of each token among the real ones
        order = torch.where(mask, place, T).argsort(dim=1, stable=True)  # real ones first
        if self.init == "spaced":
            nth = torch.arange(k, device=x.device) * lengths[:, None] // clusters[:, None]
        else:
            nth = self._drawn(x, mask, order, lengths, clusters, k)
        nth = torch.where(clusters[:, None] == lengths[:, None], torch.arange(k, device=x.device), nth)
        chosen = order.gather(1, nth.clamp(0, T - 1))
        centroids = x.gather(1, chosen[..., None].expand(-1, -1, x.shape[2]))
        assignments = torch.zeros(B, T, dtype=torch.long, device=x.device)
        for i in range(self.n_iter):
            # Differences rather than |x|^2 - 2 x.c: what is equal is at distance 0.
            apart = torch.cdist(x, centroids, compute_mode="donot_use_mm_for_euclid_dist")
            assignments = apart.masked_fill(~present[:, None], torch.inf).argmin(2)
            # With as many clusters as tokens each token is its own, doubles too.
            whole = (clusters == lengths)[:, None] & mask
            assignments = torch.where(whole, place, assignments)
            if i + 1 < self.n_iter:
                sums, counts = _sums(x, assignments, mask, k)
                means = sums / counts.clamp_min(1)[..., None]
                centroids = torch.where((counts > 0)[..., None], means, centroids)
        return assignments, centroids, present

    def _drawn(
        self, x: Tensor, mask: Tensor, order: Tensor, lengths: Tensor, clusters: Tensor, k: int
    ) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed)
        chance = torch.rand(x.shape[0], k, generator=generator, dtype=torch.float64).to(x.device)
        if self.init == "random":
            # The k least of random keys, one a real token.
            keys = torch.rand(x.shape[:2], generator=generator).to(x.device)
            keys = torch.where(torch.arange(x.shape[1], device=x.device) < lengths[:, None], keys, 2.0)
            return keys.argsort(1)[:, :k]
        x = x.gather(1, order[..., None].expand_as(x))
        real = torch.arange(x.shape[1], device=x.device) < lengths[:, None]
        chosen = [(chance[:, 0] * lengths).long().clamp_max(lengths - 1)]
        apart = torch.full(x.shape[:2], torch.inf, dtype=torch.float64, device=x.device)
        taken = torch.zeros_like(real)
        rows = torch.arange(len(x), device=x.device)
        for j in range(1, k):
            taken[rows, chosen[-1]] = True
            last = x[rows, chosen[-1]][:, None]
            apart = torch.minimum(apart, (x - last).square().sum(2).double())
            weight = torch.where(real & ~taken, apart, 0.0)
            # Where all that is left lies on chosen ones: any of them.
            weight = torch.where(weight.sum(1, keepdim=True) > 0, weight, (real & ~taken).double())
            cumulative = weight.cumsum(1)
            at = (cumulative <= chance[:, j, None] * cumulative[:, -1:]).sum(1)
            chosen.append(at.clamp_max(x.shape[1] - 1))
        return torch.stack(chosen, 1)


def _sums(tokens: Tensor, assignments: Tensor, mask: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """(B, k, d) sums of the members of each cluster, (B, k) their numbers."""
    B, _, d = tokens.shape
    index = assignments.clamp(0, k - 1)
    sums = tokens.new_zeros(B, k, d).scatter_add(
        1, index[..., None].expand(-1, -1, d), tokens.masked_fill(~mask[..., None], 0.0)
    )
    counts = torch.zeros(B, k, dtype=torch.long, device=tokens.device).scatter_add(1, index, mask.long())
    return sums, counts


class ChamferContrastiveLoss(nn.Module):
    """Cross-entropy over the documents of a batch on Chamfer similarity.

    The document of query i is document i; all others, hard negatives behind the first B among them, are negatives.

    Parameters
    ----------
    temperature : float
        tau > 0 of softmax(S / tau).
    normalize_query : bool
        Divide S by the number of the query's tokens, so that the temperature owes nothing to how many there are.

    Examples
    --------
    >>> q, d = torch.eye(2)[:, None], torch.eye(2)[:, None]  # two sets of one token
    >>> round(float(ChamferContrastiveLoss(temperature=1.0)(q, None, d, None)), 4)
    0.3133
    """

    def __init__(self, temperature: float = 0.05, normalize_query: bool = True) -> None:
        super().__init__()
        self.temperature = _checks.real("temperature", temperature, 0.0, strict=True)
        self.normalize_query = _checks.flag("normalize_query", normalize_query)

    def forward(
        self,
        queries: Tensor,
        query_mask: Tensor | None,
        documents: Tensor,
        document_mask: Tensor | None = None,
    ) -> Tensor:
        """The mean loss of (B, T, d) queries and (C, S, d) documents, C >= B, masks True where a token is real."""
        if len(documents) < len(queries):
            raise ValueError(
                f"documents must be at least as many as queries, {len(queries)}, got {len(documents)}"
            )
        scores = chamfer(queries, query_mask, documents, document_mask)
        if self.normalize_query:
            size = queries.shape[1] if query_mask is None else query_mask.sum(1, keepdim=True).clamp_min(1)
            scores = scores / size
        target = torch.arange(len(queries), device=scores.device)
        return F.cross_entropy(scores / self.temperature, target)


class FixedDimensionalEncoding(nn.Module):
    """MUVERA's encoding of padded sets with gradients through the sums; partitions are constant.

    Parameters
    ----------
    encoder : FixedDimensionalEncoder
        Whose matrices are used; a final count sketch may be, a dense final projection may not.

    Examples
    --------
    >>> encoder = FixedDimensionalEncoder(8, 2, 3, 4)
    >>> layer = FixedDimensionalEncoding(encoder)
    >>> x = torch.randn(2, 5, 8, requires_grad=True)
    >>> layer(x, queries=True).shape
    torch.Size([2, 48])
    """

    planes: Tensor
    projections: Tensor | None
    places: Tensor | None
    signs: Tensor | None

    def __init__(self, encoder: FixedDimensionalEncoder) -> None:
        super().__init__()
        if encoder.final_dim is not None and encoder.final != "count_sketch":
            raise ValueError("encoder must have no dense final projection: its matrix is not held in memory")
        self.encoder = encoder
        k = encoder.k_sim
        codes = np.arange(1 << k)
        self.register_buffer("planes", torch.from_numpy(np.ascontiguousarray(encoder.partitions)).float())
        projections = encoder.projections
        dense = None if projections is None else torch.from_numpy(np.ascontiguousarray(projections)).float()
        self.register_buffer("projections", dense)
        self.register_buffer("codes", torch.from_numpy(codes ^ (codes >> 1)))
        sketch = encoder.count_sketch if encoder.final_dim is not None else (None, None)
        self.register_buffer("places", None if sketch[0] is None else torch.from_numpy(sketch[0]))
        self.register_buffer("signs", None if sketch[1] is None else torch.from_numpy(sketch[1]).float())

    def forward(self, tokens: Tensor, mask: Tensor | None = None, *, queries: bool) -> Tensor:
        """(B, T, dim) tokens, mask (B, T) True where real -> (B, n_features): sums for queries, else means."""
        e = self.encoder
        B, T, _ = tokens.shape
        blocks, R = 1 << e.k_sim, e.repetitions
        mask = torch.ones(B, T, dtype=torch.bool, device=tokens.device) if mask is None else mask
        dtype = tokens.dtype if tokens.dtype == torch.float64 else torch.float32
        x = tokens.to(dtype)
        with torch.no_grad():
            bits = torch.einsum("btd,rdk->brtk", x.detach(), self.planes.to(dtype)) > 0
            power = 2 ** torch.arange(e.k_sim - 1, -1, -1, device=x.device)
            code = (bits.long() * power).sum(-1)  # (B, R, T)
            rank = torch.zeros_like(code)
            for j in range(e.k_sim):  # a Gray code, from its first bit
                rank = 2 * rank + (bits[..., j].long() ^ (rank & 1))
        y = (
            x[:, None]
            if self.projections is None
            else torch.einsum("btd,rdp->brtp", x, self.projections.to(dtype))
        )
        y = y.expand(B, R, T, e.d_proj).masked_fill(~mask[:, None, :, None], 0.0)
        real = mask[:, None, :].expand(B, R, T)
        sums = y.new_zeros(B, R, blocks, e.d_proj).scatter_add(2, rank[..., None].expand_as(y), y)
        if not queries:
            counts = torch.zeros(B, R, blocks, device=x.device, dtype=dtype).scatter_add(
                2, rank, real.to(dtype)
            )
            sums = sums / counts.clamp_min(1)[..., None]
            if e.fill_empty and e.k_sim > 0:
                apart = _popcount(code[:, :, None, :] ^ self.codes[None, None, :, None])  # (B, R, blocks, T)
                nearest = apart.masked_fill(~real[:, :, None, :], e.k_sim + 1).argmin(-1)
                filled = y.gather(2, nearest[..., None].expand(-1, -1, -1, e.d_proj))
                sums = torch.where((counts == 0)[..., None], filled, sums)
        flat = sums.reshape(B, -1)
        if self.places is None or self.signs is None:
            return flat
        out = flat.new_zeros(B, e.n_features)
        return out.index_add(1, self.places, flat * self.signs.to(dtype))


def _popcount(x: Tensor) -> Tensor:
    count = torch.zeros_like(x)
    for shift in range(30):
        count += (x >> shift) & 1
    return count


class CrispEncoder(nn.Module):
    """Clustered token vectors from any encoder of Hugging Face's kind.

    Parameters
    ----------
    backbone : nn.Module
        Called as ``backbone(input_ids=…, attention_mask=…)``; its result's ``last_hidden_state`` (or the result, where
        it is a tensor) is (B, T, width). `mercer.text.MiniLM` is taken too.
    dim : int, optional
        Columns of the linear head; None: none, the backbone's own width.
    query_clusters, doc_clusters : int or float
        As `TokenClustering`; None keeps all tokens.
    preset : {"c4x8", "c8x32", "c25", "c50"}, optional
        The paper's pairs, instead of the two.
    width : int, optional
        Of the backbone's vectors, where ``backbone.config.hidden_size`` and ``backbone.width`` do not tell.
    init, n_iter
        As `TokenClustering`; the same in training and in serving.

    Examples
    --------
    >>> class Backbone(nn.Module):
    ...     def __init__(self):
    ...         super().__init__(); self.words = nn.Embedding(50, 12)
    ...     def forward(self, input_ids, attention_mask):
    ...         return self.words(input_ids)
    >>> model = CrispEncoder(Backbone(), 8, preset="c4x8", width=12)
    >>> ids = torch.arange(20)[None]
    >>> model(ids, torch.ones_like(ids), queries=True)[0].shape, model(ids, queries=False)[0].shape
    (torch.Size([1, 4, 8]), torch.Size([1, 8, 8]))
    """

    def __init__(
        self,
        backbone: nn.Module,
        dim: int | None = 128,
        query_clusters: int | float | None = None,
        doc_clusters: int | float | None = None,
        *,
        preset: str | None = None,
        width: int | None = None,
        init: str = "spaced",
        n_iter: int = 10,
    ) -> None:
        super().__init__()
        if preset is not None:
            if query_clusters is not None or doc_clusters is not None:
                raise ValueError("preset must be None where query_clusters or doc_clusters is given")
            query_clusters, doc_clusters = PRESETS[_checks.choice("preset", preset, tuple(PRESETS))]
        self.backbone = backbone
        if dim is None:
            self.head: nn.Module = nn.Identity()
        else:
            known = getattr(getattr(backbone, "config", None), "hidden_size", None) or getattr(
                backbone, "width", None
            )
            width = width or known
            if width is None:
                raise ValueError("width must be given: the backbone does not tell its own")
            self.head = nn.Linear(int(width), _checks.integer("dim", dim, 1), bias=False)

        def make(clusters: int | float | None) -> TokenClustering | None:
            return None if clusters is None else TokenClustering(clusters, init=init, n_iter=n_iter)

        self.reduce_queries, self.reduce_documents = make(query_clusters), make(doc_clusters)

    def tokens(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Unit token vectors (B, T, dim) before any clustering, and their mask."""
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        if hasattr(self.backbone, "config") or "attention_mask" in _arguments(self.backbone):
            found: Any = self.backbone(input_ids=input_ids, attention_mask=mask)
        else:
            found = self.backbone(input_ids, mask.bool())
        hidden = getattr(found, "last_hidden_state", found)
        return F.normalize(self.head(hidden), dim=-1), mask.bool()

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, *, queries: bool
    ) -> tuple[Tensor, Tensor]:
        """(B, T) ids -> ((B, k, dim) vectors, (B, k) mask)."""
        x, mask = self.tokens(input_ids, attention_mask)
        reducer = self.reduce_queries if queries else self.reduce_documents
        return (x, mask) if reducer is None else reducer(x, mask)[:2]

    @torch.inference_mode()
    def encode(
        self, batches: Sequence[tuple[Tensor, Tensor]], *, queries: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """Packed vectors and offsets, as `mercer.retrieval` takes them, of batches of (input_ids, attention_mask)."""
        rows, lengths = [], []
        for ids, attention_mask in batches:
            x, mask = self(ids, attention_mask, queries=queries)
            rows.append(x[mask].float().cpu().numpy())
            lengths.append(mask.sum(1).cpu().numpy())
        offsets = np.concatenate([[0], np.cumsum(np.concatenate(lengths))]).astype(np.int64)
        return np.concatenate(rows), offsets


def _arguments(module: nn.Module) -> set[str]:
    import inspect

    return set(inspect.signature(module.forward).parameters)
