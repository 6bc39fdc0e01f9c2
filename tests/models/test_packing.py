"""Packed tokens: taken out of the grid and put back, with the draws of the grid."""

import torch

from fedelta.models.dropout import SeededDropout
from fedelta.models.packing import Packing, current


def packing_of_lengths(*lengths: int) -> Packing:
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    packing = Packing.of(mask.long())
    assert packing is not None
    return packing


def test_what_a_packed_pass_draws_is_what_the_grid_would():
    dropout, packing = SeededDropout(0.5), packing_of_lengths(3, 11, 7, 5)
    x = torch.randn(4, 11, 6)
    found = []
    for value in (x, packing.pack(x)):
        dropout.generator = torch.Generator().manual_seed(0)
        token = current.set(packing)
        found.append(dropout(value))
        current.reset(token)
    torch.testing.assert_close(packing.pack(found[0]), found[1])


def test_a_grid_is_put_together_again():
    packing = packing_of_lengths(2, 5)
    x = torch.randn(1, 7, 3, dtype=torch.float64, requires_grad=True)
    assert torch.equal(packing.pack(packing.unpack(x)), x)
    assert not packing.unpack(x)[0, 2:].any()
    assert torch.equal(packing.first(x), packing.unpack(x)[:, :1])
    assert packing.counts((1, 1)) == (2, 5)
    assert torch.autograd.gradcheck(lambda x: packing.pack(packing.unpack(x).square()), (x,))
