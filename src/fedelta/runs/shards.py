"""One run over several processes, which a launcher such as torchrun starts with the same command.

Rank 0 is the run: it alone reads the config, opens the folder and shows progress. The others get the settled config from it,
build the same clients, and answer. In a single process nothing of torch.distributed is imported.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from fedelta.engines.runners.sharded.ranks import Crew
    from fedelta.engines.runners.sharded.worker import Shard
    from fedelta.engines.visits import VisitAll
    from fedelta.runs.config.allowed import Allowed
    from fedelta.runs.experiment import LocalExperiment

WORLD_SIZE, RANK, LOCAL_RANK = "WORLD_SIZE", "RANK", "LOCAL_RANK"

logger = logging.getLogger("fedelta.resume")


class Processes(Protocol):
    """The processes of a run.

    Attributes:
        count: how many there are.
    """

    @property
    def count(self) -> int: ...

    def engine(self, experiment: LocalExperiment) -> VisitAll:
        """Returns the engine of a run that is built here. Raises ValueError for another process that cannot take part in it."""
        ...


class Alone:
    """A single process."""

    count = 1

    def engine(self, experiment: LocalExperiment) -> VisitAll:
        """Returns the runner that was chosen."""
        return experiment.engine()


class Together:
    """This process and others, which have started and wait for a config."""

    def __init__(self, crew: Crew) -> None:
        self._crew = crew
        self.count = 1 + len(crew.ranks)

    def engine(self, experiment: LocalExperiment) -> VisitAll:
        """Returns the chosen runner over all processes, once each of them holds the same base and data."""
        from fedelta.engines.runners.sharded.leader import sharded

        settled = json.dumps(
            {"config": experiment.config.model_dump(mode="json"), "device": experiment.model.device.type}, allow_nan=False
        )
        here = _facts(experiment)
        for rank, facts in self._crew.settle(settled).items():
            compare(rank, here, facts)
        return sharded(self._crew, experiment.engine())


def rank() -> int:
    """Returns the number of this process among those of its run; 0 for a single one.

    Raises:
        ValueError: where the environment names several processes, but not which one this is.
    """
    if int(os.environ.get(WORLD_SIZE) or 1) == 1:
        return 0
    if RANK not in os.environ:
        raise ValueError(
            f"{WORLD_SIZE} = {os.environ[WORLD_SIZE]}, but {RANK} is not set: start the processes by torchrun, or unset "
            f"{WORLD_SIZE} to run in a single one"
        )
    return int(os.environ[RANK])


@contextmanager
def processes() -> Generator[Processes]:
    """The processes that rank 0 leads, in the block of a `with`; at its end the others end, too."""
    if int(os.environ.get(WORLD_SIZE) or 1) == 1:
        yield Alone()
        return
    from fedelta.engines.runners.sharded.ranks import Crew

    with Crew() as crew:
        yield Together(crew)


def serve(may_run: Allowed = frozenset()) -> None:
    """Takes part in a run as another rank than 0, until it ends; Ctrl-C is rank 0's to answer.

    Args:
        may_run: digests of the Python files that may run, as this rank's own command line names them.

    Raises:
        ConnectionError: if rank 0 has ended before the run.
    """
    import signal

    from fedelta.engines.runners.sharded.worker import serve as answer_letters
    from fedelta.report.terminal import quieten_libraries

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.getLogger("fedelta").addHandler(logging.NullHandler())
    logging.getLogger("fedelta").propagate = False  # rank 0 says it
    quieten_libraries()
    answer_letters(partial(_shard, may_run=may_run))


def _shard(settled: str, may_run: Allowed) -> Shard:
    """Builds a run's clients from its settled config, as rank 0 sends it."""
    from fedelta.engines.choice import runner_of
    from fedelta.engines.runners.sharded.worker import shard_of
    from fedelta.runs.config import read_config
    from fedelta.runs.config.checks import check
    from fedelta.runs.config.own import Own
    from fedelta.runs.experiment import build

    given = json.loads(settled)
    config = read_config(given["config"])
    config = config.model_copy(update={"device": own_device(config.device, given["device"])})
    e = build(config, check(config, Own(may_run)), scored=False)
    return shard_of(e.method, e.clients, e.settings.channel, runner_of(e.choice), _facts(e), e.cohort_size)


def own_device(asked: str, chosen: str) -> str:
    """Returns the device of this rank: on a machine with several GPUs its own one, unless the config names one by number."""
    if chosen == "cuda" and ":" not in asked:
        return f"cuda:{os.environ.get(LOCAL_RANK, '0')}"
    return asked if asked != "auto" else chosen


def _facts(experiment: LocalExperiment) -> dict[str, Any]:
    """Returns what all ranks must have alike for the run to be one run, and what they should have alike for its bits."""
    from fedelta.runs import platforms
    from fedelta.runs.deal import row_digests

    return {
        "platform": platforms.here(experiment.model.device),
        "rows": row_digests(experiment.deal.splits),
        "base": experiment.template.base,
    }


def compare(rank: int, here: Mapping[str, Any], there: Mapping[str, Any]) -> None:
    """Raises ValueError if a rank has other data or another base than rank 0; warns if it is another platform."""
    for key, what in (("rows", "data"), ("base", "base model")):
        if here[key] != there[key]:
            raise ValueError(f"rank {rank} has another {what} than rank 0: give its machine the same files")
    platform = {name: (value, there["platform"].get(name)) for name, value in here["platform"].items()}
    if other := [f"{name} {there} where rank 0 has {own}" for name, (own, there) in platform.items() if own != there]:
        logger.warning(
            "rank %d is another platform (%s): the run's bytes may differ from a single process's", rank, ", ".join(other)
        )
