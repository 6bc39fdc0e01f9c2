"""Runs a toy command again and again, dies at each change of the disk in turn, and tries what a user would do next.

`python deaths.py COMMAND EVERY FOLDER`, where FOLDER/config.yaml is the run, imports everything once and forks for each death:
before and after every EVERY-th replace, unlink, fsync and exchange of names. It prints how many there were.
"""

import json
import logging
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
import yaml

import fedelta
from fedelta.engines import checkpoint
from fedelta.exchange import files
from fedelta.models.adapter_files import load_adapter
from fedelta.runs import export as deployment
from fedelta.runs.folder import RunFolder
from fedelta.runs.records import without_times

DIED = 9


class Deaths:
    """Counts the changes of the disk; the process dies before or after the n-th: at moment 2 n or 2 n + 1."""

    def __init__(self, moment: int | None) -> None:
        self.passed, self.moment = 0, moment
        for module, name in ((os, "replace"), (os, "unlink"), (os, "fsync"), (files, "_exchange")):
            setattr(module, name, self._dying(getattr(module, name)))

    def _dying(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            self._pass()
            result = real(*args, **options)
            self._pass()
            return result

        return call

    def _pass(self) -> None:
        if self.passed == self.moment:
            os._exit(DIED)
        self.passed += 1


def contents(folder: Path) -> dict[str, bytes]:
    """All files of a folder that say anything about the result."""
    if not folder.exists():
        return {}
    found = {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
    if "rounds.jsonl" in found:
        records = [json.loads(line) for line in found["rounds.jsonl"].decode().splitlines()]
        found["rounds.jsonl"] = json.dumps([without_times(r) for r in records]).encode()
    if "run.json" in found:
        facts = json.loads(found["run.json"])
        found["run.json"] = json.dumps({k: v for k, v in facts.items() if k != "start"}).encode()
    return {name: data for name, data in found.items() if name not in (".lock", "curves.png", "report.html")}


def state_of(folder: Path) -> str:
    """A digest of all that lies in a folder, names and bytes: two deaths that leave the same need one recovery."""
    found = sha256()
    for path in sorted(folder.rglob("*")):
        found.update(f"{path.relative_to(folder)} {path.is_dir()}".encode())
        found.update(path.read_bytes() if path.is_file() else b"")
    return found.hexdigest()


class Case:
    """A command, what lies in its folder before, and what is tried after it died."""

    exchanges = True

    def __init__(self, place: Path, config: dict[str, Any]) -> None:
        self.place, self.run = place, place / "run"
        self.config = config | {"output": str(self.run)}

    def prepare(self) -> None: ...

    def command(self) -> None: ...

    def recover(self) -> None: ...

    def outcome(self) -> Any:
        return contents(self.run)

    def demand_readable(self) -> None:
        """Every adapter that has a name can be loaded."""
        for folder in self.place.glob("*/adapters/[!.]*"):
            load_adapter(folder)


class Run(Case):
    """A new run; after a death it is taken up, or where it has not begun started again."""

    def command(self) -> None:
        fedelta.run(self.config)

    def recover(self) -> None:
        if (self.run / "config.yaml").exists():
            fedelta.run(resume=self.run)
        else:
            fedelta.run(self.config)


class Force(Case):
    """A new run in the place of an old one; after a death it is started again."""

    def prepare(self) -> None:
        fedelta.run(self.config, {"seed": 7, "federation.rounds": 1})
        self.before = contents(self.run)

    def command(self) -> None:
        fedelta.run(self.config, force=True)

    def recover(self) -> None:
        assert self.before in (contents(self.run), contents(self.run.with_name("run.old"))), "the old run is gone"
        fedelta.run(self.config, force=True)
        assert not RunFolder(self.run).draft.path.exists()


class ForceInThreeSteps(Force):
    """The same where the system cannot exchange two names in one step, as on a network file system."""

    exchanges = False

    def recover(self) -> None:
        spare = files.spare_of(self.run)
        if spare.exists():
            assert contents(spare) == self.before, "the old run is gone"
            RunFolder(self.run).bring_back()
            assert not spare.exists()
        super().recover()


class Resume(Run):
    """A run that is taken up for one more round."""

    def prepare(self) -> None:
        fedelta.run(self.config, {"federation.rounds": 1})

    def command(self) -> None:
        fedelta.run(overrides={"federation.rounds": self.config["federation"]["rounds"]}, resume=self.run)

    recover = command


class ResumeByLoss(Resume):
    """A run that is taken up by another metric, whose best round is another one, for one more round."""

    def prepare(self) -> None:
        fedelta.run(self.config, {"federation.rounds": 2})
        snapshot = checkpoint.load(self.run / "checkpoint")
        records = RunFolder(self.run).records()
        best = {"t": 0, "metric": "accuracy", "value": 1.0}
        for record, accuracy, loss in zip(records, (1.0, 0.0), (1.0, 1e-9), strict=True):
            record["validation"] |= {"accuracy": accuracy, "loss": loss}
        (self.run / "rounds.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
        notes = {**snapshot.notes, "best": best, "record": {**without_times(records[-1]), "seconds": {}}}
        checkpoint.save(self.run / "checkpoint", replace(snapshot, notes=notes))

    def command(self) -> None:
        fedelta.run(overrides={"evaluation.best_by": "loss", "federation.rounds": 3}, resume=self.run)

    recover = command


class Export(Case):
    """An export as a PEFT folder; after a death it is tried again."""

    merged = False

    def prepare(self) -> None:
        fedelta.run(self.config, {"federation.rounds": 1})

    def command(self) -> None:
        deployment.export(deployment.find(self.run, which="last"), self.place / "out", merged=self.merged)

    def recover(self) -> None:
        if not (self.place / "out").exists():
            self.command()

    def outcome(self) -> Any:
        return contents(self.place / "out")


class ExportMerged(Export):
    """An export as a whole model."""

    merged = True


CASES: dict[str, type[Case]] = {
    "run": Run,
    "force": Force,
    "force-in-three-steps": ForceInThreeSteps,
    "resume": Resume,
    "resume-by-loss": ResumeByLoss,
    "export": Export,
    "export-merged": ExportMerged,
}


def in_a_fork(work: Callable[[], None]) -> int:
    """The exit code of a child that does the work."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException as error:
            sys.stderr.write(f"{type(error).__name__}: {error}\n")
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def demand(code: int, what: str) -> None:
    if code:
        raise SystemExit(f"{what}: exit code {code}")


def moments(case: Case, every: int) -> Iterator[int]:
    """The moments to die at, counted on a run that lives."""
    reader, writer = os.pipe()

    def count() -> None:
        deaths = Deaths(None)
        case.command()
        os.write(writer, str(deaths.passed).encode())

    demand(in_a_fork(count), "a run without a death")
    return iter(range(0, int(os.read(reader, 20)), every))


def main(name: str, every: int, folder: Path) -> int:
    config = yaml.safe_load((folder / "config.yaml").read_text())
    place, before = folder / "place", folder / "before"
    case = CASES[name](place, config)
    if not case.exchanges:
        files._exchange = lambda one, other: False
    place.mkdir()
    case.prepare()
    shutil.copytree(place, before)

    def begin() -> None:
        shutil.rmtree(place)
        shutil.copytree(before, place)

    wanted = list(moments(case, every))
    expected, seen = case.outcome(), set[str]()
    for moment in wanted:
        begin()

        def die(moment: int = moment) -> None:
            Deaths(moment)
            case.command()

        code = in_a_fork(die)
        if code != DIED:
            raise SystemExit(f"moment {moment}: expected a death, found exit code {code}")
        state = state_of(place)
        if state in seen:
            continue
        seen.add(state)
        case.demand_readable()
        demand(in_a_fork(case.recover), f"{name}: recovery after a death at moment {moment}")
        if case.outcome() != expected:
            other = {k for k in expected.keys() | case.outcome().keys() if expected.get(k) != case.outcome().get(k)}
            raise SystemExit(f"{name}: a death at moment {moment} led to other files: {sorted(other)}")
    print(f"{len(wanted)} deaths, {len(seen)} states of the disk")
    return len(wanted)


if __name__ == "__main__":
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    sys.modules["matplotlib"] = None  # a picture takes longer than the run
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
