"""The first columns of Q and rows of R of a QR factorisation: without pivoting they need no more than the first columns.

In float64 whatever the input, and R has a positive diagonal, so that all who hold a matrix get the same factors of it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fedelta import lowrank as lr
from fedelta.lowrank import LoRA
from fedelta.numerics.threads import one_thread

AT_A_TIME = 4096
"""Columns of a matrix that are in float64 at a time: the table of an embedding has hundreds of thousands."""


def leading_qr(W: Tensor, rank: int) -> LoRA:
    """Returns B = Q[:, :rank] and A = R[:rank] of W = Q R, on the CPU in float64 with scale 1.

    Where W has fewer rows or columns, the components that it lacks are padded with B = 0.
    """
    with one_thread():
        Q, R = torch.linalg.qr(W[:, :rank].cpu().to(torch.float64))
        signs = torch.where(R.diagonal() < 0, -1.0, 1.0).to(Q)
        Q = (Q * signs).contiguous()  # LAPACK's columns lie one after another; products of tensors that lie so end otherwise
        # R = Q^T W: the columns behind the first ones need no factorisation of their own.
        rows = torch.cat([Q.mT @ part.cpu().to(torch.float64) for part in W.split(AT_A_TIME, dim=1)], dim=1)
        return lr.pad(LoRA(Q, rows), rank)


def leading_qr_of(x: LoRA, rank: int) -> LoRA:
    """Returns the same of dW = s B A, which is not formed: a QR of B, and one of the core that is left."""
    with one_thread():
        Q, R = torch.linalg.qr(x.B.cpu().to(torch.float64))
        core = leading_qr(x.scale * (R @ x.A.cpu().to(torch.float64)), rank)
        return LoRA((Q @ core.B).contiguous(), core.A)
