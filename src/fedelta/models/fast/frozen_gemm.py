"""Forms products with frozen weights faster, on CPUs where torch's default is not the fastest.

A frozen layer needs  y = x W^T + b  and, in the backward pass,  dx = g W; its weight has no gradient. On many CPUs torch's
default float32 product leaves a part of the processor unused, and oneDNN's a smaller part, at the same accuracy. It is called
for these products alone: the global switch that prefers it (`torch.set_float32_matmul_precision`) makes attention several times
slower.

Weights are used as they lie, never packed or copied, so that a base delta may rewrite them at any time. Measured on a Zen 4
core at 384 x 384 to 384 x 1536, oneDNN is 1.05-1.25 times as fast as the default, most at 1000 rows and more; on a Zen 5 core
it was twice as fast.
"""

from __future__ import annotations

import hashlib
import json
import logging
import platform
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedelta.models.passes import Backend, FastPass, PassSettings, Trained
from fedelta.models.products import ProductForward, as_rows, is_frozen
from fedelta.user_cache import cache_folder, write_first

logger = logging.getLogger("fedelta.models")

SETTING, ORDER = "gemm", 1  # the first, so that passes which are tried are tried on the products that will run

Machine: TypeAlias = dict[str, str | int | list[int]]
"""What a decision of "auto" depends on."""

SMALL = 8_000_000
"""Multiplications below which a call of another backend costs more than it gains: 57 rows at 384 x 384, 488 at 128 x 128."""

LEAST_STEP = 32
"""The least number that the rows of a product are a multiple of: below 256 rows an eighth of an octave would be less."""

TOLERANCE, GAIN = 1e-6, 1.05
"""What "auto" asks of oneDNN: the largest relative error, and how much faster it must be."""

TRIALS, ROWS = 3, 1024
"""The trials that it must win in a row, so that chance hardly ever decides; and the rows of each, as in a joint pass."""

INNER, OUTER = 384, 1536
"""The sizes i and o of the weight that is tried."""

KEPT: Mapping[str, Backend] = {"onednn": "onednn", "default": "default"}
"""What a decision may be."""


def install(model: Trained, settings: PassSettings) -> FastPass | None:
    """Forms frozen products by the backend that is asked for; for "auto", by the one that a test chose.

    Raises:
        ValueError: for an unknown backend, or one that this build of torch does not have.
    """
    backend = resolve(settings.gemm, model.module)
    return None if backend == "default" else FrozenProducts(model.module, backend)


def resolve(backend: Backend | Literal["auto"], module: nn.Module | None = None) -> Backend:
    """Returns the backend itself; for "auto", oneDNN if a short test has found it as accurate and faster on this machine.

    The test is made once for a machine, and its outcome kept: see `decided`.

    Args:
        backend: as asked for.
        module: a model; where all its frozen weights are too small for another backend than the default, nothing is tried.

    Raises:
        ValueError: for an unknown backend, or one that this build of torch does not have.
    """
    if backend == "auto":
        if module is not None and all(ROWS * p.numel() < SMALL for p in module.parameters() if not p.requires_grad):
            return "default"
        return decided(torch.get_num_threads())
    if backend not in get_args(Backend):
        raise ValueError(f"no frozen product is called {backend!r}; there are auto, {', '.join(get_args(Backend))}")
    if backend == "onednn" and not has_onednn():
        raise ValueError("this build of torch has no oneDNN product: use gemm 'auto' or 'default'")
    return backend


def has_onednn() -> bool:
    """Says if torch was built with the product that "onednn" calls."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


@cache
def decided(threads: int) -> Backend:
    """Returns the backend that "auto" means on this machine with so many threads.

    Where both backends are about as fast, the test could decide otherwise at every start, and one config with one seed would
    give results that differ in the last bits. So the first decision is kept in the user's cache folder, and holds for all runs.
    """
    if not has_onednn():
        return "default"
    machine = machine_of(threads)
    file = decision_file(machine)
    if (kept := _kept(file)) is not None:
        return kept
    return keep(file, machine, fastest())


def machine_of(threads: int) -> Machine:
    """Returns what a decision depends on: processor, what torch uses of it, threads, torch's version and the sizes tried."""
    return {
        "processor": _processor(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": threads,
        "torch": torch.__version__,
        "sizes": [ROWS, INNER, OUTER],
    }


def decision_file(machine: Machine) -> Path:
    """Returns the file with the decision for a machine; each machine has its own, so that they share a folder in peace."""
    return cache_folder() / f"gemm-{hashlib.sha256(json.dumps(machine, sort_keys=True).encode()).hexdigest()[:16]}.json"


def _processor() -> str:
    """Returns the processor's model, as Linux or else Python names it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.processor() or platform.machine())


def _kept(file: Path) -> Backend | None:
    """Returns the decision in a file; None if none can be read. Removes a damaged file, which `keep` would not replace."""
    try:
        return KEPT[json.loads(file.read_text(encoding="utf-8"))["backend"]]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        logger.info("the decision of gemm: auto in %s cannot be read (%r) and is made again", file, error)
    with suppress(OSError):
        file.unlink(missing_ok=True)
    return None


def keep(file: Path, machine: Machine, backend: Backend) -> Backend:
    """Writes a decision down if there is none yet, and returns the one that stands; warns if it cannot be written.

    Processes that decide at the same time all go on with the decision that is written first, so that runs can be repeated.
    """
    try:
        write_first(file, json.dumps({"backend": backend, **machine}, indent=1).encode())
    except OSError as error:
        logger.warning(
            "gemm: auto chose %r, which cannot be kept in %s (%s): another run may choose otherwise and differ in the last "
            "bits; set model.gemm, or FEDELTA_CACHE to a folder that can be written",
            backend,
            file,
            error,
        )
    return _kept(file) or backend


def fastest() -> Backend:
    """ "onednn" if it agrees with float64 to `TOLERANCE` and wins by `GAIN`, else "default"; measured anew at every call."""
    draw = partial(torch.randn, generator=torch.Generator().manual_seed(0))
    x, weight, bias = draw(ROWS, INNER), draw(OUTER, INNER), draw(OUTER)
    exact = F.linear(x.double(), weight.double(), bias.double())
    found = product(x, weight, bias, "onednn")
    if not bool((found - exact).norm() <= TOLERANCE * exact.norm()):
        return "default"
    for _ in range(TRIALS):
        default, onednn = _times(*(partial(_there_and_back, x, weight, bias, backend) for backend in ("default", "onednn")))
        if not GAIN * onednn < default:
            return "default"
    return "onednn"


def _there_and_back(x: Tensor, weight: Tensor, bias: Tensor, backend: Backend) -> Tensor:
    return product(product(x, weight, bias, backend), weight.mT, None, backend)


def _times(*calls: Callable[[], Tensor], repeats: int = 4) -> list[float]:
    """Returns the shortest processor time of each call; they are called in turns, so that a busy machine slows all alike."""
    best = [float("inf")] * len(calls)
    for _ in range(repeats):
        for k, call in enumerate(calls):
            began = time.process_time()
            call()
            best[k] = min(best[k], time.process_time() - began)
    return best


def product(x: Tensor, weight: Tensor, bias: Tensor | None, backend: Backend) -> Tensor:
    """Returns x W^T + b; records no graph.

    Args:
        x: (n, i).
        weight: (o, i), of any strides; the transpose of a layer's weight gives the product that its gradient needs.
        bias: (o,) or None.
        backend: used for products of some size in float32 on a CPU; others are torch's own.
    """
    plain = x.dtype == weight.dtype == torch.float32 and x.device.type == "cpu"
    n = len(x)
    if backend == "default" or not plain or n * weight.numel() < SMALL:
        return F.linear(x, weight, bias)
    if (more := rows_for(n) - n) > 0:
        x = torch.cat([x, x.new_zeros(more, x.shape[1])])
    if backend == "onednn":
        return torch.ops.mkldnn._linear_pointwise(x.contiguous(), weight, bias, "none", [], "")[:n]
    rounded = None if bias is None else bias.bfloat16()
    return F.linear(x.bfloat16(), weight.bfloat16(), rounded)[:n].float()


def rows_for(n: int) -> int:
    """Returns the number of rows that a product of n rows is formed with: n, rounded up to one of eight numbers in an octave.

    oneDNN compiles a kernel for every number of rows that it meets, in about a millisecond, and torch keeps the last 1024 of
    them, each of half a megabyte. Passes without padding hardly ever have the same number of tokens twice: nearly every product
    would wait for a compiler, and what it leaves behind breaks the memory into pieces that are never used again. Rows do not
    depend on one another, so that no bit of a product changes; but a single row is formed in another way, and few stay few.
    """
    if n < LEAST_STEP:
        return n
    step = max(LEAST_STEP, 1 << max(0, (n - 1).bit_length() - 4))
    return -(-n // step) * step


class FrozenProduct(torch.autograd.Function):
    """y = x W^T + b with a gradient for x alone; x (..., i), W (o, i)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, backend: Backend) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.backend = backend
        return product(x.reshape(-1, x.shape[-1]), weight, bias, backend).view(*x.shape[:-1], len(weight))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (weight,), (grad,) = ctx.saved_tensors, grads
        if not ctx.needs_input_grad[0]:
            return None, None, None, None
        flat = product(grad.reshape(-1, len(weight)), weight.mT, None, ctx.backend)
        return flat.view(*grad.shape[:-1], weight.shape[1]), None, None, None


class FrozenForward(ProductForward):
    """The forward pass of a frozen layer by a backend.

    Args:
        layer: plain and frozen; see `is_frozen`.
        backend: of its products.
    """

    def __init__(self, layer: nn.Module, backend: Backend) -> None:
        self.layer, self.backend = layer, backend

    def __call__(self, x: Tensor) -> Tensor:
        layer: Any = self.layer
        weight, bias = as_rows(layer), layer.bias
        if x.numel() * len(weight) < SMALL:
            return type(layer).forward(layer, x)  # a node written in Python costs more than it could gain
        return FrozenProduct.apply(x, weight, bias, self.backend)  # pyright: ignore[reportReturnType]


class FrozenProducts(FastPass):
    """Forms the products of all frozen layers of a model by a backend, until `remove`; names, types and weights stay.

    Args:
        module: any model.
        backend: of its products.
    """

    def __init__(self, module: nn.Module, backend: Backend) -> None:
        self.gemm, self.product = backend, partial(product, backend=backend)
        self._taken: list[Any] = [layer for layer in module.modules() if is_frozen(layer)]
        for layer in self._taken:
            layer.forward = FrozenForward(layer, backend)

    def remove(self) -> None:
        for layer in self._taken:
            del layer.forward
