"""The section `data` of a config: where the rows come from, and which of them are kept to choose and to report by."""

from __future__ import annotations

from typing import Annotated, Any, Self, TypeAlias, cast

from pydantic import Field, WithJsonSchema, field_validator, model_validator

from fedelta.data.client_files import by_name, demand_different, unfit_name
from fedelta.data.gaps import Empty
from fedelta.runs.config.section import Section

ClientFiles: TypeAlias = Annotated[
    dict[str, str],
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "object", "additionalProperties": {"type": "string"}},
                {"type": "array", "items": {"type": "string"}},
                {"type": "string"},
            ]
        }
    ),
]
"""The file of each client by its name; a list and a pattern are read as such."""


class Data(Section):
    """The source of the rows. What is not named is carved from the training rows, the same each time."""

    source: str = Field(
        default="docstrings",
        description="a file, a folder of files, a folder of images with a subfolder for each label, a Hub id, or the name of a "
        "source: `docstrings`, texts of Python's libraries; `fashion-mnist`, small images from a package of Debian",
    )
    path: str | None = Field(
        default=None, description="the folder with the files of a source with a name (`fashion-mnist`), if not the usual one"
    )
    clients: ClientFiles | None = Field(
        default=None,
        description="in place of `source` and `partition`, a file of training rows for each client: {name: file}, a list or a "
        "pattern such as `sites/*.jsonl`, named by the files; nothing is carved from them but `client_test_fraction`",
    )
    revision: str | None = Field(
        default=None, description="a branch, tag or commit of a Hub data set; a run writes the commit down"
    )
    train: str | None = Field(default=None, description="the training rows: a split of the Hub, or a file of the folder")
    validation: str | None = Field(default=None, description="the rows to choose by; carved if not given")
    test: str | None = Field(default=None, description="the rows to report on; carved if not given")
    subset: str | None = Field(default=None, description="the configuration of a Hub data set")
    fields: dict[str, str] | list[str] | None = Field(
        default=None, description="the fields to keep, or new names for them: {new: old}; all if not given"
    )
    validation_fraction: float = Field(
        default=0.1, ge=0, lt=1, description="share of the training rows to choose by, if `validation` is not given"
    )
    test_fraction: float = Field(
        default=0.1, ge=0, lt=1, description="share of the training rows to report on, if `test` is not given"
    )
    client_test_fraction: float = Field(default=0.0, ge=0, lt=1, description="of each client's rows, kept to test it by")
    stratify: str | None = Field(default=None, description="the field whose shares the carved parts keep, such as the label")
    limit: int | dict[str, int] | None = Field(
        default=None, description="at most so many rows of each part, or of those named: {train: 1000, test: 200}"
    )
    empty: Empty = Field(
        default="error",
        description="rows without a label: `error` refuses them, `drop` leaves them out, `keep` takes a blank text for a class",
    )

    @field_validator("clients", mode="before")
    @classmethod
    def _each_by_name(cls, clients: Any) -> Any:
        if isinstance(clients, str):
            raise ValueError(f"the pattern {clients!r} is looked up where a config is read: call load_config")
        if isinstance(clients, dict):
            return _with_text_names(cast("dict[Any, Any]", clients))
        listed = isinstance(clients, list) and all(isinstance(file, str) for file in clients)
        return by_name(cast("list[str]", clients)) if listed else clients

    @field_validator("clients")
    @classmethod
    def _some_client(cls, clients: dict[str, str] | None) -> dict[str, str] | None:
        if clients is not None and not clients:
            raise ValueError("names no file: give one for each client")
        for name in clients or ():
            if problem := unfit_name(name):
                raise ValueError(f"the name {name!r:.120} of a client {problem}: give it another, as {{name: file}}")
        demand_different(clients or {})
        return clients

    @model_validator(mode="after")
    def _nobody_trains_on_common_rows(self) -> Self:
        demand_different(self.clients or {}, {"validation": self.validation, "test": self.test})
        return self


def _with_text_names(clients: dict[Any, Any]) -> dict[Any, Any]:
    """Returns files by name, in which a name that YAML takes for a whole number, as `1: a.jsonl`, is its text."""
    named = {str(name) if type(name) is int else name: file for name, file in clients.items()}
    return named if len(named) == len(clients) else clients
