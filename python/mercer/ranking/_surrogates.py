"""Scores by a small model: how well one column alone (or beside given ones) predicts the label."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["SURROGATES", "surrogate_score"]

SURROGATES = ("surrogate-LR", "surrogate-SGD", "surrogate-SVM", "surrogate-SGD-RP", "surrogate-SGD-SVD")
_FOLDS, _SVD, _PROJECTION = 2, 2, 1024


def surrogate_score(
    features: Any, label: Any, model: str = "surrogate-SGD", *, random_state: int = 0
) -> float:
    """1 + the median over two folds of the negative log-loss of a model on the one-hot encoded columns.

    Args:
        features: Codes (n,) or (n, f).
        label: Codes (n,).
        model: One of "surrogate-LR", "-SGD", "-SVM", "-SGD-RP" (random projection to at most 1024 dimensions),
            "-SGD-SVD" (two singular dimensions).
        random_state: Of the model.

    Needs scikit-learn. Cost: that of two fits.

    >>> import numpy as np
    >>> y = np.arange(200) % 2
    >>> surrogate_score(y, y, "surrogate-LR") > surrogate_score(np.zeros(200, int), y, "surrogate-LR")
    True
    """
    if model not in SURROGATES:
        raise ValueError(f"model must be one of {', '.join(map(repr, SURROGATES))}, got {model!r}")
    try:
        from sklearn import (
            calibration,
            decomposition,
            linear_model,
            model_selection,
            pipeline,
            preprocessing,
            random_projection,
            svm,
        )
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "surrogate scores need scikit-learn: pip install 'mercer-kernels[demo]'", name="sklearn"
        ) from None
    codes = np.asarray(features)
    y = np.asarray(label)
    if codes.ndim == 1:
        codes = codes[:, None]
    if codes.ndim != 2 or y.shape != codes.shape[:1]:
        raise ValueError(f"features must be (n, f) and label (n,), got {codes.shape} and {y.shape}")
    smallest = np.unique(y, return_counts=True)[1]
    if len(smallest) < 2 or smallest.min() < _FOLDS:
        raise ValueError(
            f"label must have at least 2 values of {_FOLDS} rows each, got counts {smallest.tolist()}"
        )
    one_hot = preprocessing.OneHotEncoder().fit_transform(codes)
    sgd = linear_model.SGDClassifier(max_iter=100_000, loss="log_loss", random_state=random_state)
    classifier: Any = sgd
    if model == "surrogate-LR":
        classifier = linear_model.LogisticRegression(max_iter=100_000)
    elif model == "surrogate-SVM":
        # Platt's probabilities, as the public tool's; scikit-learn 1.9 moved them out of the machine itself.
        machine = svm.SVC(gamma="auto", random_state=random_state)
        classifier = calibration.CalibratedClassifierCV(machine, ensemble=False)
    elif model == "surrogate-SGD-RP":
        project = random_projection.SparseRandomProjection(
            n_components=min(one_hot.shape[1], _PROJECTION), random_state=random_state
        )
        classifier = pipeline.make_pipeline(project, sgd)
    elif model == "surrogate-SGD-SVD" and one_hot.shape[1] > _SVD:
        one_hot = decomposition.TruncatedSVD(_SVD, random_state=random_state).fit_transform(one_hot)
    losses = model_selection.cross_val_score(classifier, one_hot, y, scoring="neg_log_loss", cv=_FOLDS)
    return float(1 + np.median(losses))
