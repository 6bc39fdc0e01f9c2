"""`docstrings`: English texts with four labels, from the Python packages beside fedelta, without a download."""

from __future__ import annotations

from collections.abc import Mapping

from fedelta.data import docstrings
from fedelta.data.named import NamedSource
from fedelta.data.rows import Row


class Docstrings(NamedSource):
    """Reads docstrings of installed packages; `fedelta.data.docstrings` says which."""

    def load(self) -> Mapping[str, list[Row]]:
        """Returns the splits train, validation and test, each with `text`, `label`, `package` and `module`."""
        return docstrings.load()
