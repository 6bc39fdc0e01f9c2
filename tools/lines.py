"""Writes the lines to compare with of a built-in config, from the folder of a suite that ran them: `fedelta.runs.lines`.

    fedelta compare quickstart --methods flexlora,local_only,centralised --seeds 5
    python tools/lines.py runs/quickstart-compare

The lines are those of the seed that the config itself has.
"""

import json
import sys
from pathlib import Path
from typing import Any

from fedelta.report.study import REFERENCES
from fedelta.runs.config import load_config
from fedelta.runs.folder import RunFolder
from fedelta.runs.lines import DECIDE, config_digest
from fedelta.runs.reports import json_object

NAME = "quickstart"
TARGET = Path(__file__).parents[1] / f"src/fedelta/runs/configs/{NAME}-lines.json"
COMMAND = f"fedelta compare {NAME} --methods flexlora,local_only,centralised --seeds 5"


def lines(suite: Path) -> dict[str, Any]:
    """Returns what the file holds: the last scores of each line, and what they hold for."""
    config = load_config(NAME)
    found = {name: _cell(suite, name, config.seeds.data) for name in sorted(REFERENCES)}
    facts = [json_object(folder.run_file) for folder in found.values()]
    (rows,) = {json.dumps(each["data"]) for each in facts}
    (versions,) = {json.dumps({package: each["versions"][package] for package in DECIDE}) for each in facts}
    (commit,) = {each["commit"] for each in facts}
    return {
        "command": COMMAND,
        "commit": commit,
        "config": config_digest(config),
        "rows": json.loads(rows),
        "versions": json.loads(versions),
        "scores": {name: _scores(folder) for name, folder in found.items()},
    }


def _cell(suite: Path, method: str, seed: int) -> RunFolder:
    (folder,) = (suite / "cells").glob(f"*/{method}/seed-{seed}")
    return RunFolder(folder)


def _scores(folder: RunFolder) -> dict[str, dict[str, float]]:
    last = folder.records()[-1]
    return {part: last[part] for part in ("test", "validation")}


if __name__ == "__main__":
    TARGET.write_text(json.dumps(lines(Path(sys.argv[1])), indent=1) + "\n", encoding="utf-8")
    print(f"written: {TARGET}")
