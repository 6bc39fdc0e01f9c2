"""The part that all codecs share: the form of a coded message, and how it is read from somebody who may lie.

A coded message is the method's own with other tensors in their places, beside it one letter for each tensor, in the order of
`tree.named_tensors`: "." for one that travels as it is, else the dtype that it is read back as.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import count
from typing import Any, ClassVar

import torch
from torch import Tensor

from fedelta import tree
from fedelta.exchange.channel import Stage
from fedelta.tree import Message

AS_IT_IS = "."

DTYPES = {"d": torch.float64, "s": torch.float32, "h": torch.float16, "b": torch.bfloat16}
"""The dtype that a coded tensor is read back as, by its letter."""

LETTERS = {dtype: letter for letter, dtype in DTYPES.items()}

FORM = ("codec", "content", "letters")
"""The entries of every coded message; a codec may have tensors of its own beside them."""


@dataclass(frozen=True, kw_only=True)
class Codec(Stage):
    """A stage that makes an upload smaller, with an error that it declares. Downloads pass as they are.

    Class attributes:
        first: it works on a method's own tensors, so that no other codec comes before it.
        last: what it sends holds nothing that another codec could make smaller.
    """

    first: ClassVar[bool] = False
    last: ClassVar[bool] = True

    @classmethod
    def settings(cls) -> list[str]:
        """Returns the names of the settings; a codec is a dataclass of them."""
        return [entry.name for entry in fields(cls)]

    @property
    def name(self) -> str:
        """Returns the name of the codec's module, by which a config chooses it."""
        return type(self).__module__.rpartition(".")[2]

    def error(self, x: Tensor) -> Tensor:
        """Returns for each number of a tensor how far from it the number may be that is read back.

        To this comes the rounding of the tensor's own dtype, where a difference is added to what was sent down.

        Args:
            x: what is coded: a value, or a difference together with what was left out before.
        """
        raise NotImplementedError

    def check(self, before: Sequence[Stage]) -> None:
        """Raises ValueError if a codec comes before this one that it cannot follow."""
        for other in before:
            if isinstance(other, Codec) and (other.last or self.first):
                turned = f", or {self.name} before {other.name}" if not self.last and not other.first else ""
                raise ValueError(
                    f"the codec {self.name} cannot follow {other.name}, which leaves it nothing to make smaller: take one of "
                    f"the two{turned}"
                )


def check_setting(codec: Codec, name: str, kinds: tuple[type, ...], fits: Callable[[Any], bool], what: str) -> None:
    """Raises ValueError unless a setting of a codec is of one of these types, where true is no number, and fits."""
    value: Any = getattr(codec, name)
    if type(value) not in kinds or not fits(value):
        raise ValueError(f"the codec {codec.name} needs {what} for {name}, got {value!r}")


def seal(codec: Codec, content: Message, places: Mapping[int, tuple[str, Tensor]], **own: Tensor) -> Message:
    """Returns a coded message.

    Args:
        codec: whose message it is.
        content: the message, whose other tensors travel as they are.
        places: by position, the letter and the tensor that takes the place of a coded one.
        own: what the codec sends beside them.
    """
    size = sum(1 for _ in tree.named_tensors(content))
    letters = "".join(places[k][0] if k in places else AS_IT_IS for k in range(size))
    coded = replaced(content, {k: x for k, (_, x) in places.items()})
    return {"codec": codec.name, "content": coded, "letters": letters, **own}


def opened(codec: Codec, message: Message, own: Collection[str] = ()) -> tuple[Message, dict[int, torch.dtype]]:
    """Returns the content of a coded message, and by position the dtype that a coded tensor is read back as.

    Args:
        codec: whose message it must be.
        message: as it arrived, from anybody.
        own: what the codec sends beside content and letters: names of tensors.

    Raises:
        ValueError: for anything else than a message of this codec.
    """
    given: Any = message
    fits = isinstance(given, Mapping) and {*given} == {*FORM, *own}
    if not fits or given["codec"] != codec.name:
        raise ValueError(f"this is no message of the codec {codec.name}: server and client must have the same channel")
    content, letters = given["content"], given["letters"]
    demand(codec, "the content", isinstance(content, Mapping), "is not a mapping")
    demand(codec, "the text of letters", isinstance(letters, str), "is not a text")
    for name in own:
        demand(codec, name, isinstance(given[name], Tensor), "is not a tensor")
    paths = [path for path, _ in tree.named_tensors(content)]
    known = len(letters) == len(paths) and set(letters) <= {AS_IT_IS, *DTYPES}
    demand(codec, "the text of letters", known, f"needs one of {AS_IT_IS}{''.join(DTYPES)} for each of {len(paths)} tensors")
    # one tensor that was sent down could otherwise be asked for again and again, at the cost of a name
    demand(codec, "the content", len(set(paths)) == len(paths), "has two tensors of one name")
    return content, {k: DTYPES[letter] for k, letter in enumerate(letters) if letter != AS_IT_IS}


def replaced(content: Message, tensors: Mapping[int, Tensor]) -> Message:
    """Returns the message with other tensors at these positions, in the order of `tree.named_tensors`."""
    position = count()
    return tree.map_tensors(lambda x: tensors.get(next(position), x), content)


def demand(codec: Codec, what: str, holds: bool, otherwise: str) -> None:
    """Raises ValueError, naming the codec and the part of its message, unless something holds of it."""
    if not holds:
        raise ValueError(f"a message of the codec {codec.name} is malformed: {what} {otherwise}")
