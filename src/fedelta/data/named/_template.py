"""One line: what the rows are. Copy this file to `my_source.py` in this folder; its name is then the source's name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fedelta.data.named import NamedSource
from fedelta.data.rows import Row


class Parity(NamedSource):
    """Writes numbers as texts, with the label `even` or `odd`."""

    def load(self) -> Mapping[str, Sequence[Row]]:
        """Returns 200 rows to train on and 50 others to test by; validation rows are carved from the former."""
        rows = [{"text": f"the number {n}", "label": "odd" if n % 2 else "even"} for n in range(250)]
        return {"train": rows[:200], "test": rows[200:]}
