"""mercer.nn.special: values against recorded truth, gradients against differences and mpmath, torch's features."""

import copy
import math
import threading
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import mercer  # noqa: E402
from mercer.nn import special  # noqa: E402

TABLE = "54-log-bessel/bessel_table.npz"
TABLES = [
    Path(__file__).parents[1] / "reference" / TABLE,
    *(parent / "shared/golden" / TABLE for parent in Path(__file__).parents),
]
FUNCTIONS = [
    "log_iv", "log_ive", "log_kv", "log_kve", "iv_ratio", "iv_ratio_complement", "kv_ratio", "log_kv_ratio",
]  # fmt: skip
RECORDED = {
    "log_iv": "log_iv", "log_ive": "log_ive", "log_kv": "log_kv", "log_kve": "log_kve", "iv_ratio": "iv_ratio",
    "iv_ratio_complement": "one_minus_iv_ratio", "log_kv_ratio": "log_kv_ratio",
}  # fmt: skip


@pytest.fixture(scope="module")
def table():
    path = next((p for p in TABLES if p.exists()), None)
    if path is None:
        pytest.skip("the recorded table is not here")
    return np.load(path)


def grid(requires=("x",)):
    v = torch.tensor([0.0, 0.3, 1.0, 4.5, 12.0, 24.0, 60.0, 191.0], dtype=torch.float64)[:, None]
    x = torch.tensor([0.2, 0.9, 1.1, 3.7, 9.0, 24.0, 80.0, 400.0], dtype=torch.float64)
    v, x = (t.contiguous() for t in torch.broadcast_tensors(v, x))
    return v.clone().requires_grad_("v" in requires), x.clone().requires_grad_("x" in requires)


@pytest.mark.parametrize("name", RECORDED)
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_values_equal_the_recorded_table(table, name, backend):
    rows = slice(None) if backend == "auto" else slice(None, None, 17)
    v, x, truth = table["v"][rows], table["x"][rows], table[RECORDED[name]][rows]
    with mercer.backend(backend):
        got = getattr(special, name)(torch.from_numpy(v), torch.from_numpy(x)).numpy()
    scale = np.abs(truth) if name.startswith("iv_ratio") else np.maximum(1, np.abs(truth))
    error = np.abs(got - truth) / np.maximum(scale, 1e-300)
    # 1e-10: the recorded v and x are near 1e6 in places, and a bit of them is worth that; see tests/special.
    assert np.median(error) <= 2e-16
    assert error.max() <= (1e-12 if backend == "auto" else 5e-12)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradients_in_x_twice(name):
    f = getattr(special, name)
    v, x = grid()
    assert torch.autograd.gradcheck(lambda x: f(v, x), (x,), eps=1e-6, atol=1e-6, rtol=1e-5)
    assert torch.autograd.gradgradcheck(lambda x: f(v, x), (x,), eps=1e-6, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradients_in_v_once(name):
    f = getattr(special, name)
    v, x = grid(("v", "x"))
    v = (v.detach() + 0.1).requires_grad_()  # K is even in v: a difference across 0 says nothing.
    assert torch.autograd.gradcheck(f, (v, x), eps=1e-6, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", ["log_iv", "log_kv", "iv_ratio", "kv_ratio"])
def test_mixed_second_derivatives(name):
    f = getattr(special, name)
    v, x = grid(("v", "x"))
    (by_x,) = torch.autograd.grad(f(v, x).sum(), x, create_graph=True)
    if name in ("log_iv", "log_kv"):
        (mixed,) = torch.autograd.grad(by_x.sum(), v)
    else:
        (by_v,) = torch.autograd.grad(f(v, x).sum(), v, create_graph=True)
        (mixed,) = torch.autograd.grad(by_v.sum(), x)
    h = 1e-4
    with torch.no_grad():
        v, x = v + 2 * h, x.clone()
    corners = [f(v + a * h, x + b * h) * a * b for a in (-1, 1) for b in (-1, 1)]
    with torch.no_grad():
        differences = sum(corners) / (4 * h * h)
    # The mixed derivative was taken 2 h lower in v.
    torch.testing.assert_close(mixed, differences, rtol=2e-2, atol=2e-3)


def test_second_derivative_in_v_is_nan_rather_than_wrong():
    v = torch.tensor([1.5], dtype=torch.float64, requires_grad=True)
    (g,) = torch.autograd.grad(
        special.log_iv(v, torch.tensor([2.0], dtype=torch.float64)).sum(), v, create_graph=True
    )
    (gg,) = torch.autograd.grad(g.sum(), v)
    assert torch.isnan(gg).all()


@pytest.mark.parametrize(
    ("name", "v", "x"),
    [
        ("log_iv", 1023.0, 3.0),
        ("log_iv", 0.0, 1e8),
        ("log_ive", 2.0, 1e6),
        ("log_kv", 700.0, 1e-3),
        ("iv_ratio", 191, 1e5),
        ("iv_ratio", 5e3, 40.0),
        ("log_kve", 3.0, 900.0),
        ("kv_ratio", 2.0, 5e3),
    ],
)
def test_derivatives_where_finite_differences_do_not_reach(name, v, x):
    mpmath = pytest.importorskip("mpmath")
    f = {
        "log_iv": lambda t: mpmath.log(mpmath.besseli(v, t)),
        "log_ive": lambda t: mpmath.log(mpmath.besseli(v, t)) - t,
        "log_kv": lambda t: mpmath.log(mpmath.besselk(v, t)),
        "log_kve": lambda t: mpmath.log(mpmath.besselk(v, t)) + t,
        "iv_ratio": lambda t: mpmath.besseli(v + 1, t) / mpmath.besseli(v, t),
        "kv_ratio": lambda t: mpmath.besselk(v + 1, t) / mpmath.besselk(v, t),
    }[name]
    with mpmath.workdps(80):
        h = mpmath.mpf(x) / 10**12
        low, middle, high = (f(mpmath.mpf(x) + k * h) for k in (-1, 0, 1))
        first, second = float((high - low) / (2 * h)), float((high - 2 * middle + low) / h**2)
    t = torch.tensor(float(x), dtype=torch.float64, requires_grad=True)
    (g,) = torch.autograd.grad(getattr(special, name)(float(v), t), t, create_graph=True)
    (gg,) = torch.autograd.grad(g, t)
    assert g.item() == pytest.approx(first, rel=1e-10, abs=1e-15)
    assert gg.item() == pytest.approx(second, rel=1e-5, abs=1e-13)


def test_at_zero():
    x = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    v = torch.tensor([0.0, 2.0], dtype=torch.float64)
    assert special.log_iv(v, x).tolist() == [0.0, -math.inf]
    assert special.log_kv(v, x).tolist() == [math.inf, math.inf]
    (g,) = torch.autograd.grad(special.iv_ratio(v, x).sum(), x)
    torch.testing.assert_close(g, 0.5 / (v + 1))
    (g,) = torch.autograd.grad(special.log_iv(v, x)[0], x)
    assert g.tolist() == [0.0, 0.0]


def test_inverse_undoes_the_ratio_and_its_gradient():
    v, x = grid()
    ratio = special.iv_ratio(v, x).detach().requires_grad_()
    back = special.iv_ratio_inverse(v, ratio, complement=special.iv_ratio_complement(v, x))
    torch.testing.assert_close(back, x, rtol=1e-10, atol=0)
    middle = torch.tensor([0.05, 0.3, 0.7, 0.95], dtype=torch.float64, requires_grad=True)
    order = torch.tensor([0.0, 0.5, 7.0, 190.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(special.iv_ratio_inverse, (order + 0.01, middle), rtol=1e-5)
    assert torch.autograd.gradgradcheck(
        lambda r: special.iv_ratio_inverse(order.detach(), r), (middle,), rtol=1e-4, atol=1e-4
    )


def test_broadcasting_sums_gradients_back():
    v = torch.tensor([[0.5], [3.0]], dtype=torch.float64, requires_grad=True)
    x = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64, requires_grad=True)
    y = special.log_iv(v, x)
    assert y.shape == (2, 3)
    y.sum().backward()
    assert v.grad.shape == (2, 1) and x.grad.shape == (3,)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_dtype_is_kept_and_half_is_computed_in_float32(dtype):
    x = torch.tensor([0.5, 3.0, 60.0], dtype=dtype, requires_grad=True)
    y = special.log_iv(2.0, x)
    assert y.dtype == dtype
    exact = special.log_iv(2.0, x.detach().double())
    torch.testing.assert_close(y, exact.to(dtype), rtol=2 * torch.finfo(dtype).eps, atol=1e-12)
    y.sum().backward()
    assert x.grad.dtype == dtype


def test_numbers_do_not_promote_and_whole_tensors_become_floats():
    assert special.log_iv(2, torch.ones(2)).dtype == torch.float32
    assert special.log_iv(torch.tensor([1, 2]), torch.ones(2, dtype=torch.float64)).dtype == torch.float64
    assert special.log_iv(torch.tensor([1, 2]), 3).dtype == torch.float32


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_bad_input_is_refused(backend):
    x = torch.tensor([1.0, 2.0, -3.0])
    with mercer.backend(backend):
        with pytest.raises(ValueError, match=r"x must be >= 0.*-3.0.*2"):
            special.log_iv(1.0, x)
        with pytest.raises(ValueError, match="v must be"):
            special.log_iv(-0.5, x[:2])
    with pytest.raises(TypeError, match="x must be real"):
        special.log_iv(1.0, x + 1j)
    with pytest.raises(TypeError, match="v must be a tensor or a real number, got str"):
        special.log_iv("1", x)
    with pytest.raises(TypeError, match="must be a tensor"):
        special.log_iv(1.0, 2.0)


def test_nan_gives_nan_and_an_empty_tensor_an_empty_one():
    assert torch.isnan(special.log_kv(1.0, torch.tensor([math.nan]))).all()
    assert special.log_iv(1.0, torch.empty(0, 3)).shape == (0, 3)


def test_strides_and_conjugate_views_do_not_matter():
    x = torch.rand(6, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 50
    expected = special.log_iv(2.5, x)
    torch.testing.assert_close(special.log_iv(2.5, x.T), expected.T, rtol=0, atol=0)
    torch.testing.assert_close(special.log_iv(2.5, x[::2, 1::3]), expected[::2, 1::3], rtol=0, atol=0)


class Head(torch.nn.Module):
    """log C_d(kappa), as a loss over deep features has it."""

    def __init__(self, order=191.0):
        super().__init__()
        self.order = order
        self.kappa = torch.nn.Parameter(torch.tensor([300.0], dtype=torch.float64))

    def forward(self, cosine):
        return (
            self.order * self.kappa.log() - special.log_iv(self.order, self.kappa) + self.kappa * cosine
        ).mean()


def test_torch_compile_keeps_values_and_gradients():
    cosine = torch.linspace(0.1, 0.9, 5, dtype=torch.float64)
    plain, compiled = Head(), Head()
    expected = plain(cosine)
    got = torch.compile(compiled, backend="aot_eager", fullgraph=True)(cosine)
    torch.testing.assert_close(got, expected)
    expected.backward()
    got.backward()
    torch.testing.assert_close(compiled.kappa.grad, plain.kappa.grad)


def test_custom_operators_pass_torchs_own_checks():
    v, x = grid()
    for name in ("log_iv", "iv_ratio", "log_kv_ratio"):
        torch.library.opcheck(special._log_bessel_op, (name, v.detach(), x.detach()))
    torch.library.opcheck(special._ratio_inverse_op, (v.detach(), torch.full_like(v.detach(), 0.4), None))


def test_deepcopy_and_autocast():
    head = copy.deepcopy(Head())
    cosine = torch.tensor([0.5], dtype=torch.float64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = head(cosine)
    torch.testing.assert_close(inside, Head()(cosine))


def test_torch_func():
    x = torch.tensor([0.5, 5.0, 50.0], dtype=torch.float64)
    mapped = torch.func.vmap(lambda t: special.log_iv(3.0, t))(x)
    torch.testing.assert_close(mapped, special.log_iv(3.0, x))
    slopes = torch.func.vmap(torch.func.grad(lambda t: special.log_iv(3.0, t)))(x)
    torch.testing.assert_close(slopes, 3 / x + special.iv_ratio(3.0, x))


def test_backend_belongs_to_its_thread_and_names_are_checked():
    from mercer._backend import is_reference

    seen = []
    with mercer.backend("reference"):
        thread = threading.Thread(target=lambda: seen.append(is_reference()))
        thread.start()
        thread.join()
        assert is_reference()
        with mercer.backend("auto"):
            assert not is_reference()
        assert is_reference()
    assert not is_reference() and seen == [False]
    mercer.backend("reference")
    assert is_reference()
    mercer.backend("auto")
    with pytest.raises(ValueError, match="name must be one of 'auto', 'reference', got 'fast'"):
        mercer.backend("fast")
