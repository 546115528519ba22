"""Orthonormal bases of keys and values: Cayley's map, and the principal axes of samples that arrive in pieces."""

from __future__ import annotations

import json
from typing import Any, Self

import torch
from safetensors.torch import load as _load
from safetensors.torch import save as _save
from torch import Tensor

from mercer import _checks

__all__ = ["KVMoments", "cayley", "cayley_inverse", "pca_basis"]

#: A rotation with det(I + Q) ** (1/d) below this is too near an eigenvalue of -1 to have a useful parameter.
LEAST_PIVOT = 1e-3


def precise(x: Tensor) -> Tensor:
    """float32 at least: a half-precision solve is not orthogonal."""
    return x if x.dtype == torch.float64 else x.float()


def cayley(X: Tensor) -> Tensor:
    """The rotation (I - A/2)^-1 (I + A/2) of the skew A = X - Xᵀ.

    Any square X gives an orthogonal matrix of determinant 1, differentiably: 0 the identity, -X the transpose.

    Parameters
    ----------
    X : (..., d, d) floating
        Only X - Xᵀ matters. Half precision is computed in float32.

    Returns
    -------
    (..., d, d), float32 or float64.

    Notes
    -----
    Cost: one solve, O(d³) a matrix. Source: Lin et al. 2025, MatryoshkaKV, section 3.

    Examples
    --------
    >>> import math, torch
    >>> from mercer.nn.attention.matryoshka import cayley
    >>> Q = cayley(torch.tensor([[0.0, 0.0], [2.0, 0.0]]))  # a rotation by 2 atan(2 / 2)
    >>> torch.allclose(Q, torch.tensor([[0.0, -1.0], [1.0, 0.0]]), atol=1e-6)
    True
    """
    X = precise(_square("X", X))
    half = (X - X.mT) / 2
    eye = torch.eye(X.shape[-1], dtype=X.dtype, device=X.device)
    return torch.linalg.solve(eye - half, eye + half)


def cayley_inverse(Q: Tensor, *, flip: bool = False) -> Any:
    """The strictly lower triangular X with ``cayley(X) = Q``.

    Parameters
    ----------
    Q : (..., d, d) floating
        Orthogonal.
    flip : bool
        Rotations with an eigenvalue -1 have no X, and those near one have a huge one. With `flip`, signs of columns are
        chosen so that Q·diag(signs) is far from any (every pivot of I + Q·diag(signs) is at least 1); its determinant
        is 1 whatever that of Q. A basis with columns turned round spans the same subspaces.

    Returns
    -------
    X : (..., d, d), float32 or float64; with `flip` the pair (X, signs), signs (..., d) of ±1.

    Raises
    ------
    ValueError
        Q is not orthogonal; without `flip`, also det Q = -1 or an eigenvalue near -1.

    Examples
    --------
    >>> import torch
    >>> from mercer.nn.attention.matryoshka import cayley, cayley_inverse
    >>> Q = torch.tensor([[-1.0, 0.0], [0.0, -1.0]])  # half a turn
    >>> X, signs = cayley_inverse(Q, flip=True)
    >>> torch.equal(cayley(X), Q * signs)
    True
    """
    Q = precise(_square("Q", Q))
    check_orthogonal("Q", Q)
    work = Q.double()
    eye = torch.eye(Q.shape[-1], dtype=work.dtype, device=work.device)
    signs = torch.ones(Q.shape[:-1], dtype=work.dtype, device=work.device)
    if flip:
        # Elimination of I + Q D column by column: the pivot is 1 + d_j b_j, and d_j takes the sign of b_j.
        rest = work.clone()
        for j in range(Q.shape[-1]):
            b = rest[..., j, j]
            signs[..., j] = torch.where(b < 0, -1.0, 1.0)
            column = rest[..., j + 1 :, j] * (signs[..., j] / (1 + b.abs()))[..., None]
            rest[..., j + 1 :, :] = rest[..., j + 1 :, :] - column[..., None] * rest[..., j, None, :]
        work = work * signs[..., None, :]
    elif bool((torch.linalg.det(work) < 0).any()):
        raise ValueError("Q must have determinant 1, got -1: flip=True turns columns round")
    elif bool((torch.linalg.eigvals(work) + 1).abs().amin() < LEAST_PIVOT):
        raise ValueError(
            "Q must have no eigenvalue near -1, where the inverse is not defined: flip=True turns columns round"
        )
    # A = 2 (Q - I)(I + Q)^-1: the two commute.
    A = 2 * torch.linalg.solve(eye + work, work - eye)
    X = torch.tril((A - A.mT) / 2, -1).to(Q.dtype)
    return (X, signs.to(Q.dtype)) if flip else X


def pca_basis(samples: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, principal axes and eigenvalues of samples.

    Parameters
    ----------
    samples : (..., n, d) floating
        n vectors, for each of any leading axes.

    Returns
    -------
    mean : (..., d) float64
    basis : (..., d, d) float64
        Columns are eigenvectors of the covariance (division by n), the largest eigenvalue first, determinant 1.
    eigenvalues : (..., d) float64
        Descending. The mean squared error of keeping r coordinates is the sum of those from r on; no orthonormal basis
        does better.

    Examples
    --------
    >>> import torch
    >>> from mercer.nn.attention.matryoshka import pca_basis
    >>> mean, basis, eigenvalues = pca_basis(torch.tensor([[1.0, 0.0], [3.0, 0.0]]))
    >>> mean.tolist(), eigenvalues.tolist()
    ([2.0, 0.0], [1.0, 0.0])
    """
    if samples.ndim < 2 or samples.shape[-2] < 1:
        raise ValueError(f"samples must have shape (..., n, d) with n >= 1, got {tuple(samples.shape)}")
    lead = samples.shape[:-2]
    moments = KVMoments(max(1, int(torch.tensor(lead).prod())) if lead else 1, samples.shape[-1])
    moments.update(samples.reshape(-1, *samples.shape[-2:]))
    mean, basis, eigenvalues = moments.finalise()
    d = samples.shape[-1]
    return mean.reshape(*lead, d), basis.reshape(*lead, d, d), eigenvalues.reshape(*lead, d)


class KVMoments:
    """Count, mean and scatter of vectors, a head each, from pieces that arrive one after another.

    Sums are centred as they grow (Chan, Golub and LeVeque 1983), in float64: large means cost no digits. Moments of two
    parts of a text merge into those of the whole.

    Parameters
    ----------
    num_heads, head_dim : int
        H and d, >= 1.

    Examples
    --------
    >>> import torch
    >>> from mercer.nn.attention.matryoshka import KVMoments
    >>> a, b = KVMoments(2, 4), KVMoments(2, 4)
    >>> a.update(torch.randn(1, 2, 10, 4)); b.update(torch.randn(3, 2, 5, 4))
    >>> a.merge(b).count
    25
    """

    FORMAT = "mercer.kv-moments/1"

    def __init__(self, num_heads: int, head_dim: int) -> None:
        self.num_heads = _checks.integer("num_heads", num_heads, 1)
        self.head_dim = _checks.integer("head_dim", head_dim, 1)
        self.count = 0
        self._mean = torch.zeros(num_heads, head_dim, dtype=torch.float64)
        self._scatter = torch.zeros(num_heads, head_dim, head_dim, dtype=torch.float64)

    @torch.no_grad()
    def update(self, x: Tensor, mask: Tensor | None = None) -> None:
        """Add vectors.

        Parameters
        ----------
        x : (H, n, d) or (B, H, n, d) floating
            Finite. Read on its device, summed in float64 on the CPU.
        mask : (B, n) bool, optional
            Which tokens count.
        """
        if x.ndim not in (3, 4) or x.shape[-3] != self.num_heads or x.shape[-1] != self.head_dim:
            raise ValueError(
                f"x must have shape (B, {self.num_heads}, n, {self.head_dim}) or without B, got {tuple(x.shape)}"
            )
        x = x if x.ndim == 4 else x[None]
        rows = x.movedim(1, 0).flatten(1, 2).double()
        if mask is not None:
            if mask.shape != (x.shape[0], x.shape[2]) or mask.dtype != torch.bool:
                raise ValueError(
                    f"mask must be bool of shape {(x.shape[0], x.shape[2])}, got {tuple(mask.shape)}"
                )
            rows = rows[:, mask.flatten()]
        if rows.shape[1] == 0:
            return
        if not bool(torch.isfinite(rows).all()):
            raise ValueError("x must be finite, got NaN or infinity")
        mean = rows.mean(1)
        centred = rows - mean[:, None]
        self._add(rows.shape[1], mean.cpu(), (centred.mT @ centred).cpu())

    def merge(self, other: KVMoments) -> Self:
        """Add what `other` has seen; returns self."""
        if (self.num_heads, self.head_dim) != (other.num_heads, other.head_dim):
            raise ValueError(
                f"other must have {self.num_heads} heads of {self.head_dim}, got {other.num_heads} of {other.head_dim}"
            )
        self._add(other.count, other._mean, other._scatter)
        return self

    def finalise(self) -> tuple[Tensor, Tensor, Tensor]:
        """Mean (H, d), basis (H, d, d) and eigenvalues (H, d), float64: see :func:`pca_basis`.

        Raises
        ------
        ValueError
            Nothing was added.
        """
        if self.count == 0:
            raise ValueError("moments must have seen at least one vector, got none")
        values, vectors = torch.linalg.eigh(self._scatter / self.count)
        values, vectors = values.flip(-1).clamp(min=0), vectors.flip(-1)
        vectors = vectors.clone()
        vectors[..., 0] *= torch.where(torch.linalg.det(vectors) < 0, -1.0, 1.0)[..., None]
        return self._mean.clone(), vectors, values

    def to_bytes(self) -> bytes:
        """The moments, to travel: a safetensors block whose header names the format."""
        return _save(
            {"mean": self._mean, "scatter": self._scatter}, {"format": self.FORMAT, "count": str(self.count)}
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> KVMoments:
        """What :meth:`to_bytes` gave. ValueError if it is anything else."""
        try:
            size = int.from_bytes(data[:8], "little")
            header = json.loads(data[8 : 8 + size])["__metadata__"]
            if header["format"] != cls.FORMAT:
                raise ValueError(header["format"])
            tensors, count = _load(data), int(header["count"])
            moments = cls(*tensors["mean"].shape)
            if count < 0 or tensors["scatter"].shape != moments._scatter.shape:
                raise ValueError("shapes")
        except Exception as error:  # safetensors raises its own kinds
            raise ValueError(f"data must be what KVMoments.to_bytes gave ({error})") from None
        moments._add(count, tensors["mean"].double(), tensors["scatter"].double())
        return moments

    def _add(self, count: int, mean: Tensor, scatter: Tensor) -> None:
        if count == 0:
            return
        total = self.count + count
        apart = mean - self._mean
        self._scatter += scatter + apart[:, :, None] * apart[:, None, :] * (self.count * count / total)
        self._mean += apart * (count / total)
        self.count = total


def check_orthogonal(name: str, Q: Tensor) -> None:
    """ValueError unless the columns are orthonormal to the precision of the dtype."""
    eye = torch.eye(Q.shape[-1], dtype=Q.dtype, device=Q.device)
    off = float((Q.mT @ Q - eye).abs().amax()) if Q.numel() else 0.0
    if not off <= (1e-3 if Q.dtype != torch.float64 else 1e-6):
        raise ValueError(
            f"{name} must be orthogonal, got a product with its transpose {off:.2g} from the identity"
        )


def _square(name: str, X: Tensor) -> Tensor:
    if X.ndim < 2 or X.shape[-1] != X.shape[-2] or not X.is_floating_point():
        raise ValueError(f"{name} must be floating of shape (..., d, d), got {X.dtype} of {tuple(X.shape)}")
    return X
