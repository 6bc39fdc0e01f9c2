"""Reads configs from YAML and writes them, with changes by dotted key; an unknown key is answered by the nearest one."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from importlib.resources import files
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias, cast

import yaml
from pydantic import BaseModel, ValidationError

from fedelta.registry import nearest
from fedelta.runs.config.allowed import CHOICES, TRAINER, allowed, code_paths
from fedelta.runs.config.paths import placed, resolved
from fedelta.runs.config.schema import RunConfig
from fedelta.runs.config.section import ConfigError, plain_types
from fedelta.runs.config.yaml_text import RepeatedKeyError, load_yaml

BUILT_IN = ("quickstart",)
"""Configs that come with the package, by name."""

NOT_WHOLE = ("int_parsing", "int_from_float", "int_type")
"""Pydantic's findings of something else where a whole number belongs."""


KIND = re.compile(r"(bool|str|int|float|constrained-.*)|(list|dict|literal)\[.*\]")
"""The names that pydantic gives to the kinds of a value that may be of several."""

Source: TypeAlias = str | Path | Mapping[str, Any] | RunConfig
"""A YAML file, the name of a built-in config, a mapping, or a config."""

Overrides: TypeAlias = Sequence[str] | Mapping[str, Any]
"""Changes by dotted key: a mapping, or texts `a.b=value` with a YAML value."""


def load_config(source: Source, overrides: Overrides = (), *, allow_files: Collection[str | PathLike[str]] = ()) -> RunConfig:
    """Returns a validated config.

    Args:
        source: path of a YAML file, one of `BUILT_IN`, a mapping, or a config.
        overrides: changes by dotted key, as a mapping or as texts `a.b=value` with a YAML value.
        allow_files: the Python files, by path or sha256, that may run if the config names them.

    Raises:
        ConfigError: naming every key that is wrong, the nearest valid one, and the remedy.
    """
    config = read_config(source, overrides)
    from fedelta.runs.config.checks import check  # with torch, which a wrong key need not wait for
    from fedelta.runs.config.own import Own

    check(config, Own(allowed(allow_files)))
    return config


def read_config(source: Source, overrides: Overrides = ()) -> RunConfig:
    """Returns a config whose keys and types are right; `checks.check` says if its values go together.

    Raises:
        ConfigError: as `load_config` does.
    """
    raw = resolved(_raw(source), _folder_of(source))
    for key, value in pairs(overrides):
        raw = changed(raw, key.split("."), placed(key, value, Path.cwd()), key)
    try:
        return RunConfig.model_validate(raw)
    except ValidationError as error:
        raise ConfigError("\n".join(explained(error, RunConfig))) from None


def explained(error: ValidationError, root: type[BaseModel]) -> list[str]:
    """Returns one line for each of pydantic's findings in a file with the keys of `root`."""
    found: dict[str, list[str]] = {}
    for finding in error.errors():
        where, message = _explain(dict(finding), root)
        start, rest = (f"{where}: ", message) if where else (message, "")
        if rest not in found.setdefault(start, []):
            found[start].append(rest)
    # a key that may be of several kinds has a finding for each: they are one line
    return [start + " or ".join(messages) for start, messages in found.items()]


def dump_config(config: RunConfig) -> str:
    """Returns a config as YAML with every key written out; `load_config` reads it back as the same config."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _raw(source: Source) -> dict[str, Any]:
    if isinstance(source, RunConfig):
        return source.model_dump(mode="json")
    if isinstance(source, Mapping):
        return dict(source)
    if str(source) in BUILT_IN:
        return _parse(files("fedelta.runs").joinpath(f"configs/{source}.yaml").read_text(encoding="utf-8"), str(source))
    path = Path(source)
    if not path.is_file():
        there = f"built in: {', '.join(BUILT_IN)}"
        raise ConfigError(f"no config file at {path}{nearest(str(source), BUILT_IN, then=there)}")
    return read_yaml(path)


def _folder_of(source: Source) -> Path:
    """Returns the folder that a config's paths are relative to: that of its file, else the working directory."""
    if isinstance(source, str | Path) and str(source) not in BUILT_IN:
        return Path(source).absolute().parent
    return Path.cwd()


def read_yaml(path: Path) -> dict[str, Any]:
    """Returns the keys and values of a YAML file; raises ConfigError, naming the file, for anything else."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text ({error}), as a config in YAML is") from None
    return _parse(text, str(path))


def _parse(text: str, where: str) -> dict[str, Any]:
    try:
        raw = load_yaml(text)
    except RepeatedKeyError as error:
        raise ConfigError(f"{where}, {error}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{where} is not valid YAML: {error}") from None
    except RecursionError:
        raise ConfigError(f"{where} is nested too deeply for a config") from None
    if raw is None:
        raise ConfigError(f"{where} is empty: a config has keys and values, such as `method: fedavg`")
    if not isinstance(raw, dict):
        raise ConfigError(f"{where} must hold keys and values, but holds a {type(raw).__name__}")
    return cast("dict[str, Any]", raw)


def pairs(overrides: Overrides) -> list[tuple[str, Any]]:
    """Keys and values of overrides: a mapping's own, or those of texts `key=value` with a YAML value.

    Raises:
        ConfigError: for a text that is not of that form.
    """
    if isinstance(overrides, Mapping):
        return list(overrides.items())
    found: list[tuple[str, Any]] = []
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"override {text!r} has no value: write it as key=value, such as federation.rounds=20")
        found.append((key.strip(), _value(text, value)))
    return found


def named_files(overrides: Overrides) -> list[str]:
    """Returns the paths of the Python files that changes of a config name; whoever typed them has named the files."""
    raw: dict[str, Any] = {}
    for key, value in pairs(overrides):
        if key.split(".")[0] in CHOICES or key == TRAINER:
            raw = changed(raw, key.split("."), value, key)
    return list(code_paths(resolved(raw, Path.cwd())).values())


def _value(override: str, text: str) -> object:
    try:
        return load_yaml(text)
    except RepeatedKeyError as error:
        raise ConfigError(f"override {override!r}, {error}") from None
    except yaml.YAMLError:
        raise ConfigError(f"override {override!r}: {text!r} is not a YAML value; quote it if it is meant as text") from None
    except RecursionError:
        raise ConfigError(f"override {override[:40]!r}... is nested too deeply for a value") from None


def changed(raw: Mapping[str, Any], path: Sequence[str], value: object, whole: str) -> dict[str, Any]:
    """Returns a copy of nested mappings with one value replaced; `whole` is the dotted key, for the message of an error."""
    head, *rest = path
    if not rest:
        return {**raw, head: value}
    inner = raw.get(head, {})
    # A choice without settings is written as its name alone: `method: fedavg` and `method.name`.
    inner = {"name": inner} if isinstance(inner, str) else inner
    if not isinstance(inner, Mapping):
        raise ConfigError(f"override {whole!r}: {head!r} is {inner!r}, not a section with keys of its own")
    return {**raw, head: changed(cast("Mapping[str, Any]", inner), rest, value, whole)}


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns the values of nested mappings by dotted key."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        inner = isinstance(value, Mapping)
        found |= flat(cast("Mapping[str, Any]", value), f"{prefix}{key}.") if inner else {prefix + key: value}
    return found


def _explain(error: Mapping[str, Any], root: type[BaseModel]) -> tuple[str, str]:
    """Returns the key that one of pydantic's findings is about, empty where the message names it, and the message."""
    path = [str(part) for part in error["loc"] if not _is_kind(str(part))]
    where = ".".join(path)
    if error["type"] == "extra_forbidden":
        *parents, key = path
        within = "".join(f"{part}." for part in parents)
        return "", f"unknown key {where!r}{nearest(key, _known_keys(parents, root), within)}"
    if error["type"] in NOT_WHOLE:
        return where, f"must be a whole number, such as {_whole_near(error['input'])}, but is {error['input']!r}"
    if error["type"] == "int_parsing_size":
        return where, f"is too large a number: {error['input']!r}"
    return where, str(error["msg"]).removeprefix("Value error, ")


def _is_kind(part: str) -> bool:
    """Returns True for what pydantic puts into a finding's place for one of the kinds that a value may be of: it is no key."""
    return part.startswith("<") or KIND.fullmatch(part) is not None


def _whole_near(value: Any) -> int:
    """Returns the whole number that a value writes in another way, such as 1e3; else 10, as an example."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return 10
    return int(number) if number.is_integer() and abs(number) < 1e15 else 10


def _known_keys(path: Sequence[str], root: type[BaseModel]) -> list[str]:
    section: Any = root
    for part in path:
        field = getattr(section, "model_fields", {}).get(part)
        # A path may lead into a union, where one kind at the most has keys of its own.
        kinds = [] if field is None else [k for k in plain_types(field.annotation) if hasattr(k, "model_fields")]
        section = kinds[0] if kinds else None
    return list(getattr(section, "model_fields", {}))
