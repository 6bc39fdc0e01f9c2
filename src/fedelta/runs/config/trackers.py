"""The key of a config that names programs which show runs while they go on."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BeforeValidator, Field


def _listed(value: Any) -> Any:
    """Reads one name as a list of it."""
    return [value] if isinstance(value, str) else value


ReportTo: TypeAlias = Annotated[
    list[Literal["tensorboard"]],
    BeforeValidator(_listed, json_schema_input_type=Literal["tensorboard"] | list[Literal["tensorboard"]]),
    Field(
        description="`tensorboard` writes what rounds say of the whole cohort to the run's folder as event files, too; needs "
        "the extra `track`"
    ),
]
"""The names, by which they are imported, too."""
