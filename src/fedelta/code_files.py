"""Reads a Python file of a user's own, and makes a class of it: the bytes that run are those whose digest was taken.

Reading runs nothing. Whether a file may run is asked, by its digest, between `read_code` and `class_of`; the file itself is
not looked at again, so that nobody can change it in between. A file stands alone: it imports what is installed, and nothing
that lies beside it, which no digest covers.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from os import PathLike
from pathlib import Path
from types import ModuleType
from typing import Any

from fedelta.registry import classes_of, is_code

LARGEST = 1 << 20
"""Bytes of the largest file that is taken for somebody's code."""

_PREFIX = "_fedelta_code_"


@dataclass(frozen=True)
class CodeFile:
    """A Python file as it was read.

    Attributes:
        path: where it was read, for messages.
        source: its bytes.
    """

    path: Path
    source: bytes

    @cached_property
    def digest(self) -> str:
        """Returns the sha256 of the bytes, in hexadecimal digits."""
        return sha256(self.source).hexdigest()

    def class_of(self, *bases: type) -> type:
        """Runs the file and returns the one class of these kinds that it defines and that can be made.

        Raises:
            ValueError: for a file that cannot be imported, or defines none or several.
        """
        module = self._module()
        found = [cls for base in bases for cls in classes_of(module, base) if not inspect.isabstract(cls)]
        if len(found) != 1:
            wanted = " or ".join(base.__name__ for base in bases)
            names = ", ".join(cls.__name__ for cls in found) or "none"
            raise ValueError(f"{self.path} must define one {wanted} with all that is abstract in it, and defines {names}")
        return found[0]

    def function_of(self, name: str) -> Callable[..., Any]:
        """Runs the file and returns a function that it defines.

        Raises:
            ValueError: for a file that cannot be imported, or has no such function.
        """
        found = vars(self._module()).get(name)
        if not callable(found):
            raise ValueError(f"{self.path} defines no function {name}")
        return found

    def _module(self) -> ModuleType:
        # Named by the digest, so that no file takes the name of another module, and equal files give the same class.
        name = _PREFIX + self.digest
        if name in sys.modules:
            return sys.modules[name]
        module = ModuleType(name)
        module.__file__ = str(self.path)
        sys.modules[name] = module  # dataclasses look their annotations up there
        try:
            exec(compile(self.source, str(self.path), "exec", dont_inherit=True), vars(module))
        except BaseException as error:
            del sys.modules[name]  # half a module would be taken for the whole one next time
            if not isinstance(error, Exception | SystemExit):  # a script that ends the program would do so without a word
                raise
            raise ValueError(f"{self.path} cannot be imported: {type(error).__name__}: {error}") from error
        return module


def read_code(path: str | PathLike[str]) -> CodeFile:
    """Reads a Python file, and runs nothing of it.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: for a folder, a file that is no regular one, one whose name does not end in .py, or one over 1 MiB.
    """
    path = Path(path)
    if not is_code(path):
        raise ValueError(f"{path} is no Python file: its name must end in .py")
    if not path.exists():
        raise FileNotFoundError(f"no file {path}")
    if not path.is_file():
        raise ValueError(f"{path} is {'a folder' if path.is_dir() else 'no regular file'}, where a Python file is needed")
    with path.open("rb") as file:
        source = file.read(LARGEST + 1)
    if len(source) > LARGEST:
        raise ValueError(f"{path} is larger than {LARGEST >> 20} MiB: no file of one method or task is")
    return CodeFile(path, source)


def digest_of_class(cls: type) -> str | None:
    """Returns the sha256 of the file that a class was made of by `CodeFile.class_of`; None for any other class."""
    name = cls.__module__
    return name.removeprefix(_PREFIX) if name.startswith(_PREFIX) else None
