"""CUDA tensors through mercer.nn.special: what can be told without a GPU, and on one the same answers as on the CPU."""

import pytest

torch = pytest.importorskip("torch")

from mercer.nn import _cuda, special  # noqa: E402


def test_one_value_for_all_is_handed_over_without_a_copy():
    one = torch.tensor(3.0).expand(4, 5)
    flat, step = _cuda._flat(one)
    assert step == 0 and flat.data_ptr() == one.data_ptr()
    flat, step = _cuda._flat(torch.arange(6.0).reshape(2, 3).T)
    assert step == 1 and flat.flatten().tolist() == [0, 3, 1, 4, 2, 5]


@pytest.mark.parametrize(
    ("name", "v", "x", "message"),
    [
        ("log_iv", [1.0, 2.0], [3.0, -4.0], r"x must be >= 0, got -4.0 at index 1"),
        ("log_iv", [1.0, -0.5], [3.0, 4.0], r"v must be .* got -0.5 at index 1"),
        ("iv_ratio", [1.0, -2.0], [3.0, 4.0], r"v must be .* got -2.0 at index 1"),
        ("log_kv", [-1.5, -2.0], [3.0, float("nan")], None),
        ("log_iv", [-1.0, -2.0], [3.0, 4.0], None),
    ],
)
def test_bad_values_are_named_before_a_kernel_runs(monkeypatch, name, v, x, message):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    v, x = torch.tensor(v), torch.tensor(x)
    if message is None:
        _cuda._refuse_bad(name, v, x)
    else:
        with pytest.raises(ValueError, match=message):
            _cuda._refuse_bad(name, v, x)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_on_a_gpu_values_and_gradients_are_those_of_the_cpu(dtype):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    pytest.importorskip("cupy")
    v = torch.linspace(0.1, 300, 40, dtype=dtype)[:, None]
    x = torch.logspace(-2, 3, 50, dtype=dtype)
    for name in special.__all__:
        if name == "iv_ratio_inverse":
            continue
        results = []
        for device in ("cpu", "cuda"):
            a, b = (t.to(device).requires_grad_() for t in (v, x))
            y = getattr(special, name)(a, b)
            results.append([t.cpu() for t in (y.detach(), *torch.autograd.grad(y.sum(), (a, b)))])
        for cpu, cuda in zip(*results, strict=True):
            torch.testing.assert_close(cuda, cpu, rtol=1e-9 if dtype == torch.float64 else 2e-2, atol=1e-9)


@pytest.mark.gpu
def test_on_a_gpu_kernels_run_on_the_current_stream():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    pytest.importorskip("cupy")
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        x = torch.full((1 << 20,), 2.0, device="cuda")
        y = special.log_iv(1.0, x.add_(1))
    stream.synchronize()
    torch.testing.assert_close(y[:1].cpu(), special.log_iv(1.0, torch.tensor([3.0])))
