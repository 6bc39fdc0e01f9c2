"""The codecs, one module each: stages that make an upload smaller; the registry's key is the module's name.

A new file in this folder with one subclass of `Codec` in it is a new codec. Modules whose name starts with an underscore are
not codecs: `_codec` has the form of what is sent, `_difference` the differences and their error feedback.
"""

from __future__ import annotations

from typing import Any

from fedelta.exchange.codecs._codec import Codec
from fedelta.registry import check_settings, class_in, find_name, names_in

__all__ = ["Codec", "codec_class", "get_codec", "list_codecs"]


def list_codecs() -> list[str]:
    """Returns the names that `get_codec` knows, in alphabetical order."""
    return list(names_in(__name__))


def codec_class(name: str) -> type[Codec]:
    """Returns a codec's class by its name, spelled in any way.

    Raises:
        ValueError: for an unknown name, with the nearest known one.
    """
    return class_in(__name__, find_name("codec", __name__, name), Codec)


def get_codec(name: str, **settings: Any) -> Codec:
    """Returns a codec by its name, with these settings.

    Raises:
        ValueError: for an unknown name or setting, with the nearest known one, or for a value out of range.
    """
    cls = codec_class(name)
    check_settings(f"codec {name!r}", settings, cls.settings())
    return cls(**settings)
