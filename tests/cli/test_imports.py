"""The garbage collector rests while libraries are imported, and then goes on as before."""

import gc

import pytest

from fedelta.cli.imports import uncollected


def test_the_collector_rests_in_the_block_alone_also_when_an_import_fails():
    def fails() -> None:
        with uncollected():
            assert not gc.isenabled()
            raise ImportError

    try:
        with pytest.raises(ImportError):
            fails()
        assert gc.isenabled()
        assert gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()


def test_a_collector_that_was_off_stays_off():
    gc.disable()
    try:
        with uncollected():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
        gc.unfreeze()
