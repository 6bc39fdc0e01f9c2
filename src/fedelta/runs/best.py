"""Chooses the best round anew when a run is taken up with another `evaluation.best_by`, and moves its adapter.

Before a folder of adapters/ is touched, the notes of the checkpoint hold the choice and what is to be done:

    best         {t, metric, value}
    best_moves   {to, from}: adapters/best is to be called `to`, and `from` is to be called adapters/best; "" for no move
    best_kept    by the name that an earlier adapters/best was given, the round of that adapter

Each step looks whether it was done already, so that a run that was killed between two steps finishes them when it is taken up.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedelta.exchange import files
from fedelta.models.adapter_files import load_adapter
from fedelta.runs.evaluation import best_round
from fedelta.runs.records import Record
from fedelta.tree import Adapter

logger = logging.getLogger("fedelta.resume")

BRING_BACK = "bring the folder back if you want that of the rounds so far"

BEST, LAST, MOVES, KEPT = "best", "last", "best_moves", "best_kept"


def choose_anew(notes: Mapping[str, Any], records: Sequence[Record], metric: str, adapters: Path) -> dict[str, Any]:
    """Returns the notes with the best round by a metric; unchanged if this metric chose it before, or was never measured.

    Args:
        notes: of the checkpoint.
        records: of the rounds that are done.
        metric: to choose by now.
        adapters: the folder with `best` and `last`; it is only looked at.
    """
    before = notes.get(BEST)
    evaluated = [r for r in records if r.get("validation")]
    t = best_round(evaluated, metric) if before is not None and before["metric"] != metric else None
    if before is None or t is None:
        return dict(notes)
    value = next(r["validation"][metric] for r in evaluated if r["t"] == t)
    chosen = {**notes, BEST: {"t": t, "metric": metric, "value": value}}
    there = (adapters / BEST).is_dir()
    if there and t == before["t"]:
        return chosen
    # The new best round's adapter is there if it was the best once, under the name it was given then, or if it is the last.
    kept: dict[str, int] = dict(notes.get(KEPT, {}))
    last = LAST if t == evaluated[-1]["t"] else ""
    source = next((name for name, of in kept.items() if of == t and (adapters / name).is_dir()), last)
    name = _free_name(adapters, before) if there else ""
    kept.pop(source, None)
    return {**chosen, MOVES: {"to": name, "from": source}, KEPT: kept | ({name: before["t"]} if name else {})}


def move(notes: Mapping[str, Any], adapters: Path) -> dict[str, Any]:
    """Carries out the moves that the notes hold, and returns the notes without them."""
    best, to, source = adapters / BEST, notes[MOVES]["to"], notes[MOVES]["from"]
    # First out of the way, then into place. A move that is done is seen by its folders, and is not done twice.
    if to and best.is_dir() and not (adapters / to).exists():
        os.replace(best, adapters / to)
    if source == LAST and not best.is_dir():
        with files.whole_folder(best) as draft:
            shutil.copytree(adapters / LAST, draft, dirs_exist_ok=True)
    elif source and not best.is_dir():
        os.replace(adapters / source, best)
    elif not source:
        now = f": adapters/best is now adapters/{to}" if to else ""
        logger.warning("the best round by %s is %d, whose adapter was not kept%s", notes[BEST]["metric"], notes[BEST]["t"], now)
    files.sync_folder(adapters)
    return {key: value for key, value in notes.items() if key != MOVES}


def last_of(adapters: Path) -> Adapter | None:
    """Returns the adapter of the last round; None for a run that keeps none, or whose file was taken away or is damaged."""
    try:
        return load_adapter(adapters / LAST)
    except (OSError, ValueError):
        return None


def say_missing(adapters: Path, notes: Mapping[str, Any]) -> None:
    """Warns if adapters of a run were taken away or are damaged; the run itself does not need them."""
    chosen: Mapping[str, Any] | None = notes.get(BEST)
    comes = {LAST: "with the next round that is evaluated"}
    if chosen is not None:
        comes[BEST] = f"with the next one that is better than round {chosen['t']}"
        if not any(adapters.glob("[!.]*")):
            again = ", ".join(f"`{name}` comes again {when}" for name, when in comes.items())
            logger.warning("%s is gone or empty: %s; %s", adapters, again, BRING_BACK)
            return
    for name, when in comes.items():
        adapter = adapters / name
        if MOVES in notes or not (adapter.is_dir() or chosen is not None):
            continue  # about to be given another name, or of a run that keeps none
        try:
            load_adapter(adapter)
        except (OSError, ValueError) as error:
            logger.warning("%s is gone or damaged (%s): it comes again %s; %s", adapter, error, when, BRING_BACK)


def _free_name(adapters: Path, before: Mapping[str, Any]) -> str:
    """Returns a name for adapters/best by the metric that chose it, with its round if an earlier one has that name."""
    name = f"best-{before['metric']}"
    return f"{name}-{before['t']}" if (adapters / name).exists() else name
