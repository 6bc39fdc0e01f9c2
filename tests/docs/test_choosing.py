"""What the page of choices says of rules against drift has its line in the results of the study that measured it."""

import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

PAGE = Path(__file__).resolve().parents[2] / "docs" / "explanation" / "choosing.md"
MEASURED = {"fedsam", "fedsmoo", "fedlada", "fedglomo", "ilora", "fedrot_lora"}
"""Methods that the page may name only with figures of this study."""


def test_what_is_named_has_its_line(tool: Callable[[str], ModuleType]) -> None:
    text = PAGE.read_text(encoding="utf-8")
    (shown,) = tool("study_tables").TABLE.finditer(text)
    measured = set(re.findall(r"^\| `(\w+)`", shown[0], re.MULTILINE))
    assert set(re.findall(r"`(\w+)`", text)) & MEASURED <= measured
    assert measured
