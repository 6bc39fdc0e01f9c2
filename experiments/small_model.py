"""Writes the first layers of MiniLM, as they were pretrained, into a folder: many runs on two cores need a small model.

python experiments/small_model.py models/minilm-3
"""

from __future__ import annotations

import argparse
from pathlib import Path

from transformers import AutoModel, AutoTokenizer

from fedelta.models.aliases import resolve_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=3, help="of the encoder's six")
    arguments = parser.parse_args()
    source = resolve_model("minilm")
    AutoModel.from_pretrained(source, num_hidden_layers=arguments.layers).save_pretrained(arguments.folder)
    AutoTokenizer.from_pretrained(source, local_files_only=True).save_pretrained(arguments.folder)


if __name__ == "__main__":
    main()
