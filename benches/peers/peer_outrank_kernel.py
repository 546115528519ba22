"""The kernel of outrank on one column; runs in an environment of its own."""

import numpy as np
from outrank.algorithms.feature_ranking.ranking_mi_numba import mutual_info_estimator_numba


def prepare(x, y):
    x, y = x.astype(np.int32), y.astype(np.int32)
    return lambda: mutual_info_estimator_numba(x, y, np.float32(1.0), True)
