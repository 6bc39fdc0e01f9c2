"""Frozen products: the same numbers by every backend, no gradient for the weight, and a choice that a test makes."""

import json
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from fedelta.models.fast import frozen_gemm
from fedelta.models.fast.frozen_gemm import LEAST_STEP, FrozenProduct, FrozenProducts, decided, product, resolve, rows_for
from fedelta.models.peft import PeftAdaptedModel
from fedelta.models.products import as_rows

onednn = pytest.mark.skipif(not frozen_gemm.has_onednn(), reason="this build of torch has no oneDNN")
BACKENDS = [pytest.param("onednn", 1e-6, marks=onednn), pytest.param("bf16", 1e-2), pytest.param("default", 1e-6)]


@pytest.fixture(autouse=True)
def every_size(monkeypatch):
    """Lets products of a few numbers take the path of large ones."""
    monkeypatch.setattr(frozen_gemm, "SMALL", 0)


def layer(kind, i=12, o=7):
    return nn.Linear(i, o) if kind is nn.Linear else Conv1D(o, i)


def relative(found, exact):
    found, exact = found.detach().double(), exact.detach().double()
    return float((found - exact).norm() / exact.norm())


@pytest.mark.parametrize(("backend", "tolerance"), BACKENDS)
@pytest.mark.parametrize("kind", [nn.Linear, Conv1D])
def test_forward_and_backward_are_those_of_the_layer(kind, backend, tolerance):
    plain, x = layer(kind).requires_grad_(False), torch.randn(3, 5, 12, requires_grad=True)
    expected, up = plain(x), torch.randn(3, 5, 7)
    (dx,) = torch.autograd.grad(expected, x, up)
    FrozenProducts(plain, backend)
    found = plain(x)
    assert relative(found, expected) < tolerance
    assert relative(torch.autograd.grad(found, x, up)[0], dx) < tolerance


@pytest.mark.parametrize(("backend", "low"), [pytest.param("onednn", 0.0, marks=onednn), ("bf16", 1e-4)])
def test_another_backend_is_really_called(backend, low, monkeypatch):
    monkeypatch.setattr(frozen_gemm.F, "linear", monkeypatch_counted(calls := []))
    x, weight = torch.randn(9, 12), torch.randn(7, 12)
    error = relative(product(x, weight, None, backend), x.double() @ weight.double().T)
    assert low <= error < 1e-2
    assert calls == ([] if backend == "onednn" else [torch.bfloat16])


def monkeypatch_counted(calls):
    original = nn.functional.linear

    def linear(x, weight, bias=None):
        calls.append(x.dtype)
        return original(x, weight, bias)

    return linear


@pytest.mark.parametrize("backend", [pytest.param("onednn", marks=onednn), "bf16"])
def test_products_of_any_number_of_rows_are_formed_with_few_numbers_of_rows(backend, monkeypatch):
    own, weight = "linear" if backend == "bf16" else "_linear_pointwise", torch.randn(7, 12)
    owner = frozen_gemm.F if backend == "bf16" else torch.ops.mkldnn
    original, formed = getattr(owner, own), set[int]()

    def counted(x, *others):
        formed.add(len(x))
        return original(x, *others)

    monkeypatch.setattr(owner, own, counted)
    for n in range(1, 1025):
        assert product(torch.ones(n, 12), weight, None, backend).shape == (n, 7)
    assert len(formed) <= LEAST_STEP + 8 + 8 + 8  # up to 256, 512 and 1024


def test_an_eighth_of_the_rows_is_added_at_most():
    added = {n: rows_for(n) - n for n in range(1, 10_000)}
    assert all(0 <= more < max(LEAST_STEP, n / 8) for n, more in added.items())


@pytest.mark.parametrize("backend", [pytest.param("onednn", marks=onednn), "bf16"])
@pytest.mark.parametrize("transposed", [False, True])
def test_rows_that_are_added_change_no_bit(backend, transposed, monkeypatch):
    weight, bias = torch.randn(192, 96), torch.randn(96 if transposed else 192)
    weight = weight.mT if transposed else weight
    for n in (1, 31, 33, 100, 257, 515, 1000):
        x = torch.randn(n, weight.shape[1])
        found = product(x, weight, bias, backend)
        with monkeypatch.context() as patch:
            patch.setattr(frozen_gemm, "rows_for", lambda n: n)
            assert torch.equal(found, product(x, weight, bias, backend))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_only_float32_takes_another_backend(dtype):
    x, weight = torch.randn(9, 12, dtype=dtype), torch.randn(7, 12, dtype=dtype)
    assert torch.equal(product(x, weight, None, "bf16"), nn.functional.linear(x, weight))


def test_small_products_stay_with_the_default(monkeypatch):
    x, weight = torch.randn(9, 12), torch.randn(7, 12)
    monkeypatch.setattr(frozen_gemm, "SMALL", 9 * 7 * 12 + 1)
    assert torch.equal(product(x, weight, None, "bf16"), nn.functional.linear(x, weight))
    plain = layer(nn.Linear).requires_grad_(False)
    FrozenProducts(plain, "bf16")
    assert "AddmmBackward" in str(plain(x.requires_grad_()).grad_fn)


def test_the_gradient_is_right_to_finite_differences():
    x, weight = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True), torch.randn(5, 4, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: FrozenProduct.apply(x, weight, None, "default"), x)


def test_a_weight_that_is_rewritten_is_followed():
    plain, x = layer(nn.Linear).requires_grad_(False), torch.randn(9, 12)
    FrozenProducts(plain, "bf16")
    with torch.no_grad():
        plain.weight.zero_()
    assert torch.equal(plain(x), plain.bias.bfloat16().float().expand(9, 7))


def test_only_frozen_plain_layers_are_taken_over_and_given_back():
    class Own(nn.Linear):
        pass

    kept = {"trained": nn.Linear(3, 3), "own": Own(3, 3).requires_grad_(False)}
    model = nn.ModuleDict({**kept, "frozen": nn.Linear(3, 3).requires_grad_(False)})
    taken = FrozenProducts(model, "bf16")
    assert [n for n, m in model.items() if "forward" in vars(m)] == ["frozen"]
    taken.remove()
    assert not any("forward" in vars(m) for m in model.modules())


def test_as_rows_is_o_by_i_without_a_copy():
    linear, conv = layer(nn.Linear), layer(Conv1D)
    assert as_rows(linear).shape == as_rows(conv).shape == (7, 12)
    assert as_rows(conv).data_ptr() == conv.weight.data_ptr()


@pytest.fixture
def new_machine(monkeypatch, tmp_path):
    """A cache folder without a decision, in a process that knows none."""
    monkeypatch.setenv("FEDELTA_CACHE", str(tmp_path))
    decided.cache_clear()
    yield tmp_path
    decided.cache_clear()


@onednn
@pytest.mark.parametrize(("times", "chosen"), [((1.0, 0.5), "onednn"), ((1.0, 1.0), "default"), ((1.0, 0.97), "default")])
def test_auto_takes_what_is_faster(times, chosen, monkeypatch, new_machine):
    monkeypatch.setattr(frozen_gemm, "_times", lambda *calls: times)
    assert resolve("auto") == chosen


@onednn
def test_auto_never_takes_what_is_less_accurate(monkeypatch, new_machine):
    monkeypatch.setattr(frozen_gemm, "_times", lambda *calls: (1.0, 0.1))
    monkeypatch.setattr(frozen_gemm, "product", lambda x, w, b, backend: nn.functional.linear(x, w, b) * (1 + 1e-5))
    assert resolve("auto") == "default"


def test_auto_without_onednn_is_the_default_and_asking_for_it_is_refused(monkeypatch, new_machine):
    monkeypatch.setattr(frozen_gemm, "has_onednn", lambda: False)
    assert resolve("auto") == "default"
    with pytest.raises(ValueError, match="no oneDNN product: use gemm 'auto' or 'default'"):
        resolve("onednn")


def measuring(monkeypatch, *outcomes):
    """Each measurement finds the next of these outcomes; a further one fails."""
    left = iter(outcomes)
    monkeypatch.setattr(frozen_gemm, "fastest", lambda: next(left))


def next_process():
    """What the process kept in memory is gone."""
    decided.cache_clear()


@onednn
@pytest.mark.parametrize("first", ["onednn", "default"])
def test_auto_is_decided_once_for_a_machine(first, monkeypatch, new_machine):
    """A machine near the threshold would else take another product at the next start, and other last bits."""
    measuring(monkeypatch, first)
    for _ in range(3):
        assert resolve("auto") == first
        next_process()
    assert [file.suffix for file in new_machine.iterdir()] == [".json"]


@onednn
@pytest.mark.parametrize(
    "change",
    [
        lambda patch: patch.setattr(frozen_gemm, "_processor", lambda: "another processor"),
        lambda patch: patch.setattr(torch, "__version__", "99.0"),
        lambda patch: patch.setattr(torch, "get_num_threads", lambda: 77),
        lambda patch: patch.setattr(frozen_gemm, "ROWS", 2048),
    ],
    ids=["processor", "torch", "threads", "sizes"],
)
def test_another_machine_decides_for_itself(change, monkeypatch, new_machine):
    measuring(monkeypatch, "onednn", "default")
    assert resolve("auto") == "onednn"
    with monkeypatch.context() as patch:
        change(patch)
        next_process()
        assert resolve("auto") == "default"
    next_process()
    assert resolve("auto") == "onednn"


@onednn
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"backend": "mkl"}', b"\xff\xfe", b"[" * 100_000])
def test_a_damaged_decision_is_made_again(content, monkeypatch, new_machine):
    measuring(monkeypatch, "onednn", "default")
    assert resolve("auto") == "onednn"
    (file,) = new_machine.iterdir()
    file.write_bytes(content)
    for _ in range(2):
        next_process()
        assert resolve("auto") == "default"


@onednn
def test_a_cache_that_cannot_be_written_is_no_error(monkeypatch, new_machine, caplog):
    (new_machine / "file").touch()
    monkeypatch.setenv("FEDELTA_CACHE", str(new_machine / "file" / "folder"))
    measuring(monkeypatch, "onednn")
    assert resolve("auto") == "onednn"
    assert "set model.gemm, or FEDELTA_CACHE" in caplog.text


@onednn
def test_of_two_processes_the_first_decision_counts(monkeypatch, new_machine):
    def slow() -> str:
        measuring(monkeypatch, "onednn")
        next_process()
        assert resolve("auto") == "onednn"  # another process, meanwhile
        return "default"

    monkeypatch.setattr(frozen_gemm, "fastest", slow)
    assert resolve("auto") == "onednn"
    assert not list(new_machine.glob("*.part"))


@onednn
def test_two_processes_that_decide_at_once_go_on_with_one_decision(monkeypatch, new_machine):
    """Both have found nothing kept, and both are about to write."""
    measuring(monkeypatch, "onednn", "default")
    both, temporary = threading.Barrier(2, timeout=60), tempfile.NamedTemporaryFile

    def together(**options):
        both.wait()
        return temporary(**options)

    monkeypatch.setattr(tempfile, "NamedTemporaryFile", together)
    with ThreadPoolExecutor(2) as pool:
        chosen = set(pool.map(decided.__wrapped__, [1, 1]))
    (file,) = new_machine.iterdir()
    assert chosen == {json.loads(file.read_text())["backend"]}


def test_an_unknown_backend_is_refused():
    with pytest.raises(ValueError, match="no frozen product is called 'mkl'; there are auto, default, onednn, bf16"):
        resolve("mkl")  # pyright: ignore[reportArgumentType]


def test_the_model_uses_what_it_was_told_and_gives_it_back(case, ids):
    model = case.model()
    base = model(input_ids=ids).logits
    adapted = PeftAdaptedModel(model, case.lora(), gemm="bf16")
    found = adapted.module(input_ids=ids).logits
    assert adapted.gemm == "bf16"
    assert 1e-4 < relative(found, base) < 3e-2
    adapted.unload()
    assert torch.equal(model(input_ids=ids).logits, base)
