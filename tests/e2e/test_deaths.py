"""A death before and after every replace, unlink, fsync and exchange of names leaves a folder from which a user goes on.

`make kills` dies at every moment, an ordinary test run at every fifth (FEDELTA_DEATHS_EVERY).
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

EVERY = int(os.environ.get("FEDELTA_DEATHS_EVERY", "5"))
COMMANDS = ("run", "force", "force-in-three-steps", "resume", "resume-by-loss", "export", "export-merged")
DEATHS = Path(__file__).with_name("deaths.py")


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_a_death_at_any_change_of_the_disk_is_recovered_from(command: str, tiny_config: dict[str, Any], tmp_path: Path) -> None:
    changes = {"lora": {"rank": 2, "target_modules": ["query"]}, "partition": {"scheme": "iid", "clients": 2}}
    quick = {"method": "hetlora", "evaluation": {"diagnostics": False}, "federation": {"rounds": 2}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(tiny_config | changes | quick))
    done = subprocess.run(
        [sys.executable, str(DEATHS), command, str(EVERY), str(tmp_path)], capture_output=True, text=True, timeout=3000
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout.split()[0]) * EVERY > 10
