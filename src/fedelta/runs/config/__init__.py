"""Describes a run by one YAML file, which is validated before data or a model is loaded, and written back as resolved.

`schema` has the keys and `read` reads and writes files, neither with torch. `choices` builds what is chosen by name, `checks`
says what goes together, `claims` what a method excludes, `resume` what may change when a run is taken up.
"""

from fedelta.runs.config.ranks import RankChoice, rank_values
from fedelta.runs.config.read import BUILT_IN, dump_config, load_config, pairs, read_config
from fedelta.runs.config.schema import (
    Data,
    Evaluation,
    Federation,
    LocalTraining,
    Lora,
    Model,
    Partition,
    RunConfig,
)
from fedelta.runs.config.section import ConfigError, RefusedByClaim, named

__all__ = [
    "BUILT_IN",
    "ConfigError",
    "Data",
    "Evaluation",
    "Federation",
    "LocalTraining",
    "Lora",
    "Model",
    "Partition",
    "RankChoice",
    "RefusedByClaim",
    "RunConfig",
    "dump_config",
    "load_config",
    "named",
    "pairs",
    "rank_values",
    "read_config",
]
