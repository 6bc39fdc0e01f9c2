"""The randomised range finder against the exact singular values, for spectra with light, heavy and flat tails."""

import logging

import pytest
import torch

from fedelta import lowrank as lr
from fedelta.lowrank import LoRA
from fedelta.numerics import krylov

R, WANTED = 600, 16
K = torch.arange(1, R + 1, dtype=torch.float64)
SPECTRA = {
    "exponential": 0.9**K,
    "fast": 0.5**K,
    "quadratic": K**-2,
    "harmonic": 1 / K,
    "root": K**-0.5,
    "flat": torch.ones(R, dtype=torch.float64),
    "a step where it is cut": torch.where(K <= WANTED, 1.001, 1.0).double(),
    "a cluster around the cut": torch.where(K <= 12, 2.0, torch.where(K <= 24, 1.0, 0.01)).double(),
    "of low rank": (K <= 10).double(),
}


def planted(S: torch.Tensor, o: int = 640, i: int = 620) -> LoRA:
    """A delta with these singular values, spread over all its components."""
    generator = torch.Generator().manual_seed(0)
    U, V, G = (torch.randn(n, len(S), generator=generator, dtype=torch.float64) for n in (o, i, len(S)))
    G = torch.linalg.qr(G).Q
    return LoRA(torch.linalg.qr(U).Q * S @ G, G.mT @ torch.linalg.qr(V).Q.mT)


@pytest.mark.parametrize("name", SPECTRA)
def test_the_estimate_is_no_less_than_the_true_excess(name: str) -> None:
    S = SPECTRA[name]
    x = planted(S)
    found = krylov.leading(x.B, x.A, WANTED)
    assert found.excess <= krylov.TOLERANCE
    lost, left = S[:WANTED].square().sum() - found.S.square().sum(), S[WANTED:].square().sum()
    assert float(lost) <= 2 * found.excess * float(left) + 1e-12
    residual = x.B @ (x.A @ found.Vh.mT) - found.U * found.S
    assert float(residual.norm()) < 2e-2 * float(S.norm())
    for Q in (found.U, found.Vh.mT):
        torch.testing.assert_close(Q.mT @ Q, torch.eye(WANTED, dtype=torch.float64))


def test_it_draws_the_same_at_every_call_and_leaves_the_common_generator_alone() -> None:
    x = planted(SPECTRA["root"])
    state = torch.get_rng_state()
    one, other = krylov.leading(x.B, x.A, WANTED), krylov.leading(x.B, x.A, WANTED)
    assert torch.equal(one.U, other.U)
    assert torch.equal(one.Vh, other.Vh)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.fixture
def calls(monkeypatch) -> list[int]:
    """The ranks that were asked of `krylov.leading`."""
    seen = []
    real = krylov.leading
    monkeypatch.setattr(krylov, "leading", lambda B, A, count: seen.append(count) or real(B, A, count))
    return seen


@pytest.mark.parametrize("scale", [2.0, -0.5])
def test_truncate_takes_it_beyond_a_large_stacked_rank(scale: float, calls: list[int]) -> None:
    x = planted(SPECTRA["exponential"])
    x = LoRA(x.B, x.A, scale)
    found = lr.truncate(x, WANTED)
    assert calls == [WANTED]
    exact = lr.truncate(x, WANTED, svd="exact")
    assert calls == [WANTED]
    torch.testing.assert_close(found.dense(), exact.dense(), rtol=0, atol=1e-9 * float(lr.norm(exact)))
    torch.testing.assert_close(found.A, exact.A, rtol=0, atol=1e-6)  # signs too


def test_truncate_is_exact_up_to_a_large_rank(calls: list[int]) -> None:
    lr.truncate(planted(K[: lr.LARGE - 1]), WANTED)
    lr.truncate(planted(K), 64)  # a block of 72 columns is no small part of 600
    assert calls == []
    lr.truncate(planted(K[:100]), WANTED, svd="randomised")
    assert calls == [WANTED]


def slow(monkeypatch) -> LoRA:
    """A delta that takes more blocks than are allowed."""
    monkeypatch.setattr(krylov, "SHARE", 16)
    return planted(1 - 0.5 * K / R)


def test_auto_falls_back_where_the_tail_is_too_heavy(monkeypatch, calls: list[int]) -> None:
    x = slow(monkeypatch)
    found, exact = lr.truncate(x, WANTED), lr.truncate(x, WANTED, svd="exact")
    assert calls == [WANTED]
    assert torch.equal(found.B, exact.B)


def test_randomised_says_what_it_may_miss(monkeypatch, caplog) -> None:
    x = slow(monkeypatch)
    with caplog.at_level(logging.WARNING):
        lr.truncate(x, WANTED, svd="randomised")
    assert "more than the best of rank 16; ask for svd='exact'" in caplog.text


def test_a_large_zero_delta_keeps_its_rows() -> None:
    x = LoRA(torch.zeros(640, R, dtype=torch.float64), planted(K).A)
    y = lr.truncate(x, WANTED)
    assert not y.B.any()
    assert torch.equal(y.A, x.A[:WANTED])


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match=r"svd must be one of \('auto', 'exact', 'randomised'\), got 'fast'"):
        lr.truncate(planted(K), 2, svd="fast")  # type: ignore[arg-type]
