"""Products of 16-bit weights by way of float32."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from moeprof.capture.stream import products  # noqa: E402


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bias", [False, True])
def test_a_product_is_the_true_one_rounded(dtype, bias, monkeypatch):
    monkeypatch.setattr(products, "BLOCK_VALUES", 100)  # blocks of 3 rows, the last of 1
    generator = torch.Generator().manual_seed(0)
    given = torch.randn(2, 5, 33, generator=generator).to(dtype)
    weight = torch.randn(7, 33, generator=generator).to(dtype)
    added = torch.randn(7, generator=generator).to(dtype) if bias else None
    true = given.double() @ weight.double().T
    if added is not None:
        true = true + added.double()
    found = products.wide_linear(given, weight, added)
    assert found.dtype == dtype
    spacing = torch.finfo(dtype).eps * true.abs().clamp(min=1e-3)
    assert ((found.double() - true).abs() <= spacing).all()


def test_only_large_products_are_taken(monkeypatch):
    taken = []
    own = products.wide_linear
    monkeypatch.setattr(products, "wide_linear", lambda *args: taken.append(1) or own(*args))
    monkeypatch.setattr(products, "_slow", lambda dtype: True)
    layer = torch.nn.Linear(1024, 1024, bias=False, dtype=torch.bfloat16)
    given = torch.ones(products.FEWEST_ROWS, 1024, dtype=torch.bfloat16)
    with torch.inference_mode(), products.wide_products(torch.bfloat16, torch.device("cpu")):
        layer(given[1:])
        torch.nn.Linear(8, 8, dtype=torch.bfloat16)(given[:, :8])
        assert not taken
        layer(given)
    assert taken == [1]
    layer(given)
    assert taken == [1]


@pytest.mark.parametrize("turned", [False, True])
def test_products_of_experts_are_the_true_ones_rounded(turned, monkeypatch):
    monkeypatch.setattr(products, "FEWEST_VALUES", 1)
    monkeypatch.setattr(products, "_slow", lambda dtype: True)
    generator = torch.Generator().manual_seed(0)
    shape = (4, 32, 24) if turned else (4, 24, 32)  # [experts, outputs, inputs] as most store them
    weight = torch.randn(shape, generator=generator).bfloat16()
    weight = weight if turned else weight.mT
    offs = torch.tensor([products.FEWEST_ROWS, products.FEWEST_ROWS, 15, 40], dtype=torch.int32)
    given = torch.randn(40, 32, generator=generator).bfloat16()
    expert = torch.bucketize(torch.arange(40), offs, right=True)
    true = torch.einsum("ri,rio->ro", given.double(), weight.double()[expert])
    taken, own = [], products.wide_linear
    monkeypatch.setattr(products, "wide_linear", lambda *args: taken.append(1) or own(*args))
    with torch.inference_mode(), products.wide_products(torch.bfloat16, torch.device("cpu")):
        found = torch.nn.functional.grouped_mm(given, weight, offs=offs)
    assert len(taken) == 2  # of four: one has no rows, one too few
    spacing = torch.finfo(torch.bfloat16).eps * true.abs().clamp(min=1e-2)
    assert ((found.double() - true).abs() <= spacing).all()
