"""Writes the lines to compare with of a built-in config, from the folders of a suite that ran them: `fedelta.runs.lines`.

    fedelta compare experiments/quickstart/study.yaml --only seed=0
    python tools/lines.py runs/study

The lines are those of the seed that the config itself has.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedelta.report.study import REFERENCES
from fedelta.runs.config import load_config
from fedelta.runs.folder import RunFolder
from fedelta.runs.lines import DECIDE, config_digest
from fedelta.runs.reports import json_object

NAME = "quickstart"
TARGET = Path(__file__).parents[1] / f"src/fedelta/runs/configs/{NAME}-lines.json"
COMMAND = f"fedelta compare experiments/{NAME}/study.yaml --only seed=0"


def lines(suites: Sequence[Path]) -> dict[str, Any]:
    """Returns what the file holds: the last scores of each line, and what they hold for."""
    config = load_config(NAME)
    found = {name: _cell(suites, name, config.seeds.data) for name in sorted(REFERENCES)}
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


def _cell(suites: Sequence[Path], method: str, seed: int) -> RunFolder:
    (folder,) = [found for suite in suites for found in suite.glob(f"cells/*/{method}/seed-{seed}")]
    return RunFolder(folder)


def _scores(folder: RunFolder) -> dict[str, dict[str, float]]:
    last = folder.records()[-1]
    return {part: last[part] for part in ("test", "validation")}


if __name__ == "__main__":
    TARGET.write_text(json.dumps(lines([Path(given) for given in sys.argv[1:]]), indent=1) + "\n", encoding="utf-8")
    print(f"written: {TARGET}")
