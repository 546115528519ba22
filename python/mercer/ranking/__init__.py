"""Ranking the columns of a table by what they tell of a label, in one streaming pass.

Škrlj and Mramor 2023, "OutRank: Speeding up AutoML-based Model Search for Large Sparse Data sets with
Cardinality-aware Feature Ranking". The score of a column X for a label Y is I(X; Y) less the information that
noise of the same cardinality would show; plain mutual information ranks identifiers first. Use
`sklearn.feature_selection` where everything fits in memory and is continuous.
"""

from mercer.ranking._counts import RankingCounts, count_partitions
from mercer.ranking._features import TRANSFORMERS
from mercer.ranking._ranker import SCORES, FeatureRanker
from mercer.ranking._scores import (
    adjusted_mutual_information,
    corrected_mutual_information,
    encode_columns,
    entropy,
    expected_mutual_information,
    max_value_coverage,
    mutual_information,
    pairwise_mi,
    pearson,
    rank_3mr,
    relation_mi,
    symmetric_uncertainty,
)
from mercer.ranking._sketches import CountMinSketch, HyperLogLog
from mercer.ranking._surrogates import SURROGATES, surrogate_score

__all__ = [
    "SCORES",
    "SURROGATES",
    "TRANSFORMERS",
    "CountMinSketch",
    "FeatureRanker",
    "HyperLogLog",
    "RankingCounts",
    "adjusted_mutual_information",
    "corrected_mutual_information",
    "count_partitions",
    "encode_columns",
    "entropy",
    "expected_mutual_information",
    "max_value_coverage",
    "mutual_information",
    "pairwise_mi",
    "pearson",
    "rank_3mr",
    "relation_mi",
    "surrogate_score",
    "symmetric_uncertainty",
]
