"""Makes a virtual environment for each rival, from the package index that pip is set up for.

    python benchmarks/rivals/make_envs.py [--folder .rivals] [flower] [pfl]

torch, transformers and peft get the versions of the environment that runs this, so that all train with the same. torch comes
first and stays pinned: where a CPU build is at hand, pip would otherwise replace it by one with CUDA.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import venv
from importlib.metadata import version
from pathlib import Path

REQUIREMENTS = {"flower": ["flwr[simulation]==1.41.0"], "pfl": ["pfl[pytorch]==0.6.0"]}
SHARED = ("torch", "transformers", "peft", "safetensors")


def make(folder: Path, name: str) -> None:
    """One environment, `folder/name`; an existing one is made anew."""
    venv.create(folder / name, clear=True, with_pip=True)
    pinned = [f"{package}=={version(package).partition('+')[0]}" for package in SHARED]
    for requirements in (pinned[:1], [*pinned, *REQUIREMENTS[name]]):
        command = [folder / name / "bin" / "python", "-m", "pip", "install", "--quiet", *requirements]
        subprocess.run(command, check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(REQUIREMENTS)}; all by default")
    parser.add_argument("--folder", type=Path, default=Path(".rivals"), help="where the environments go")
    args = parser.parse_args()
    if unknown := set(args.names) - set(REQUIREMENTS):
        parser.error(f"no rival is called {', '.join(sorted(unknown))}; there are {', '.join(REQUIREMENTS)}")
    for name in args.names or REQUIREMENTS:
        print(f"{args.folder / name}: {', '.join(REQUIREMENTS[name])}", file=sys.stderr, flush=True)
        make(args.folder, name)


if __name__ == "__main__":
    main()
