"""The ledger: composition, parallel composition, refusal, and that it cannot be doubled."""

import copy
import pickle
import threading

import numpy as np
import pytest

from mercer.private import (
    BudgetExceeded,
    PrivacyLedger,
    PrivateDistanceSum,
    PrivateKernelSum,
    PrivateSimilarityClassifier,
    zcdp_epsilon,
)  # fmt: skip

X = np.random.default_rng(0).uniform(size=(200, 1))


def test_epsilons_add_and_overspending_changes_nothing():
    ledger = PrivacyLedger(1.0)
    for _ in range(10):
        ledger.spend("a tenth", epsilon=0.1)
    assert ledger.epsilon_spent == pytest.approx(1.0)
    with pytest.raises(BudgetExceeded, match="needs epsilon = 0.01, the ledger has 0 of 1.0 left"):
        ledger.spend("more", epsilon=0.01)
    assert len(ledger.log) == 10


def test_disjoint_parts_cost_what_the_dearest_costs():
    ledger = PrivacyLedger(1.0)
    for part in "abc":
        ledger.spend(part, epsilon=0.6, part=("letters", part))
    assert ledger.epsilon_spent == pytest.approx(0.6)
    ledger.spend("a again", epsilon=0.2, part=("letters", "a"))
    assert ledger.epsilon_spent == pytest.approx(0.8)
    with pytest.raises(BudgetExceeded):
        ledger.spend("everybody", epsilon=0.3)


def test_concentrated_spendings_add_before_they_are_converted():
    ledger = PrivacyLedger(3.0, delta=1e-6)
    ledger.spend("first", rho=0.02)
    ledger.spend("second", rho=0.03)
    ledger.spend("pure", epsilon=0.5)
    assert ledger.epsilon_spent == pytest.approx(0.5 + zcdp_epsilon(0.05, 1e-6), rel=1e-9)
    with pytest.raises(BudgetExceeded, match="delta > 0"):
        PrivacyLedger(3.0).spend("gaussian", rho=0.1)


def test_fits_spend_from_a_shared_ledger_until_it_refuses_and_then_release_nothing():
    ledger = PrivacyLedger(1.0)
    estimator = PrivateDistanceSum("l1", 0.4, (0, 1), ledger=ledger)
    estimator.fit(X).fit(X)
    before = estimator.release_
    with pytest.raises(BudgetExceeded):
        estimator.fit(X)
    assert estimator.release_ is before and ledger.epsilon_spent == pytest.approx(0.8)
    PrivateKernelSum(epsilon=0.1, n_features=5, ledger=ledger).fit(X)
    y = np.arange(200) % 2
    with pytest.raises(BudgetExceeded):
        PrivateSimilarityClassifier(epsilon=0.2, ledger=ledger).fit(np.column_stack([X, X]), y)


def test_bad_data_spends_nothing():
    ledger = PrivacyLedger(1.0)
    with pytest.raises(ValueError, match="within bounds"):
        PrivateDistanceSum("l1", 0.4, (0, 0.5), ledger=ledger).fit(X)
    assert ledger.epsilon_spent == 0


def test_a_ledger_cannot_be_copied():
    ledger = PrivacyLedger(1.0)
    assert copy.copy(ledger) is ledger and copy.deepcopy(ledger) is ledger
    with pytest.raises(TypeError, match="second budget"):
        pickle.dumps(ledger)
    base = pytest.importorskip("sklearn.base")
    assert base.clone(PrivateKernelSum(ledger=ledger)).ledger is ledger


def test_threads_cannot_overspend_together():
    ledger, refused = PrivacyLedger(1.0), []

    def work():
        for _ in range(20):
            try:
                ledger.spend("race", epsilon=0.1)
            except BudgetExceeded:
                refused.append(1)

    threads = [threading.Thread(target=work) for _ in range(8)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert len(ledger.log) == 10 and len(refused) == 150


@pytest.mark.parametrize(
    "kwargs", [{}, {"epsilon": 0.1, "rho": 0.1}, {"epsilon": -0.1}, {"epsilon": float("nan")}]
)
def test_spendings_that_are_none_are_refused(kwargs):
    with pytest.raises(ValueError):
        PrivacyLedger(1.0, 1e-6).spend("what", **kwargs)


@pytest.mark.parametrize(("epsilon", "delta"), [(0, 0), (-1, 0), (float("nan"), 0), (1, 1), (1, -0.1)])
def test_ledgers_out_of_range_are_refused(epsilon, delta):
    with pytest.raises(ValueError):
        PrivacyLedger(epsilon, delta)
