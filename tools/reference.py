"""Writes the reference of the documentation from the code: config keys with a JSON schema, command line, methods.

python tools/reference.py            writes docs/reference, the list of methods in mkdocs.yml, what `fedelta methods` says,
                                     and a section of docs/how-to/deploy.md
python tools/reference.py --check    writes nothing; ends with code 1 if a file is stale

Names come from registries, keys and their meaning from pydantic, options from typer, settings from docstrings.
So a change of the code is a change of these pages, and `make reference` makes it.
"""

from __future__ import annotations

import argparse
import inspect
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from textwrap import dedent
from typing import Any

import places
import yaml
from typer.main import get_command

from fedelta.cli import app
from fedelta.exchange.codecs import codec_class, list_codecs
from fedelta.optim import OPTIMIZERS
from fedelta.report import catalogue
from fedelta.runs.config.json_schema import json_schema, schema_text
from fedelta.runs.config.node import Node
from fedelta.runs.suite.schema import Suite
from fedelta.split.partition import SCHEMES
from fedelta.tasks import METRICS, list_tasks, task_class
from fedelta.topology import TOPOLOGIES

ROOT = Path(__file__).resolve().parents[1]
SCHEMA = "config.schema.json"
NAV = re.compile(r"(?<=# methods: begin\n).*(?=^ *# methods: end)", re.DOTALL | re.MULTILINE)
"""What stands between two comments of mkdocs.yml."""

Table = Sequence[Sequence[str]]


def files() -> dict[Path, str]:
    """Returns every generated file with its text."""
    reference, pages = ROOT / "docs/reference", catalogue.pages()
    return {
        reference / "config.md": config_page(),
        reference / "node-file.md": node_page(),
        reference / "suite-file.md": suite_page(),
        reference / SCHEMA: schema_text(),
        reference / "cli.md": command_line(),
        ROOT / "src/fedelta/methods/catalogue.json": json.dumps(catalogue.entries(), indent=1, ensure_ascii=False) + "\n",
        **{reference / f"methods/{name}.md": text for name, text in pages.items()},
        places.PAGE: places.page(),
        ROOT / "mkdocs.yml": with_methods((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), pages),
    }


def left_over(wanted: Mapping[Path, str]) -> list[Path]:
    """Returns pages of methods that are no more."""
    return sorted({*(ROOT / "docs/reference/methods").glob("*.md")} - wanted.keys())


def with_methods(settings: str, names: Iterable[str]) -> str:
    """Returns mkdocs.yml with one line for each method's page."""
    lines = (f"          - reference/methods/{name}.md\n" for name in names)
    return NAV.sub("".join(lines), settings)


# --- config ----------------------------------------------------------------------------------------------------------


def config_page() -> str:
    """Returns the page of config keys."""
    whole = json_schema()
    names = {key: section_name(about) for key, about in whole["properties"].items()}
    sections = {key: whole["$defs"][name] for key, name in names.items() if name}
    alone = {key: about for key, about in whole["properties"].items() if key not in sections}
    parts = [
        CONFIG_HEAD,
        f"## At the top\n\n{keys_table('', alone)}",
        *(section(key, about, whole["$defs"]) for key, about in sections.items()),
        CHOICES_HEAD,
        choices_of("Tasks", "task", {name: task_class(name) for name in list_tasks()}),
        metrics(),
        schemes(),
        choices_of("Optimizers", "training.optimizer", OPTIMIZERS),
        choices_of("Topologies", "federation.topology", TOPOLOGIES, ACTIVATION),
        choices_of("Codecs", "federation.channel", {name: codec_class(name) for name in list_codecs()}, ORDER),
    ]
    return "\n".join(parts)


def node_page() -> str:
    """Returns the page of a node file's keys."""
    whole = Node.model_json_schema()
    properties = whole["properties"]
    alone = {key: about for key, about in properties.items() if not ref(about)}
    nested = {key: whole["$defs"][ref(about)] for key, about in properties.items() if ref(about)}
    sections = (section(key, about, whole["$defs"]) for key, about in nested.items())
    return "\n".join([NODE_HEAD, f"## At the top\n\n{keys_table('', alone)}", *sections])


def suite_page() -> str:
    """Returns the page of a suite file's keys."""
    return "\n".join([SUITE_HEAD, keys_table("", Suite.model_json_schema()["properties"]), SUITE_REST])


def section(key: str, about: Mapping[str, Any], known: Mapping[str, Any], mark: str = "##") -> str:
    """Returns a section of the config: what it is, its keys, and the keys of those that may be mappings themselves."""
    text = f"{mark} {key}\n\n{about['description']}\n\n{keys_table(key, about['properties'])}"
    for inner, value in about["properties"].items():
        for form in filter(ref, value.get("oneOf", ())):
            text += "\n" + section(f"{key}.{inner}", known[ref(form)], known, mark + "#")
    return text


CONFIG_HEAD = f"""# Config keys

A run is described by one YAML file. Every key has a default, so that an empty file is a valid one.
An unknown key is refused, with the nearest one that is known. `--set key=value` changes one key from the command line, by its
dotted name. A run writes the whole config, with every key, into its folder.

A relative path counts from the folder of the file that holds it; one that is given by `--set`, or in a mapping in Python, from
the working directory. What a run writes down is absolute, so that its folder can be used from anywhere. `output` counts from
the working directory. Names go before paths, and paths before the Hub: `docstrings` and `minilm` are names even where a
folder is called so (`./minilm` is the folder), and `owner/name` is a folder if there is one.

An editor that knows JSON schemas completes and checks such a file: [{SCHEMA}]({SCHEMA}), which `fedelta schema` prints. Many
read this first line, which `fedelta init --schema` writes, with the schema beside the config:

```yaml
# yaml-language-server: $schema=.config.schema.json
```
"""

NODE_HEAD = """# Node files

A site takes part in a run with two files: the config, which all share, and a node file, which stays on its machine and is given
by `--node`. Paths in it are taken from the folder in which it lies. An unknown key is refused.

The site's own config is its consent to the model, to the weights of it that train (`lora.target_modules` and
`lora.modules_to_save`) and to the task: its labels, and all that it reads of a row. Sequences get no longer than there.
`data.limit` and `data.client_test_fraction`, which say how many of its rows train, must be the same there and in the run. All
else that changes numbers (the method, ranks, steps, rates, the seed, ...) comes from the server, within the bounds of
`allow`. No code, no path and no leave to run a model's code comes from there: a method or a task of a file of one's own is
named by its digest, and runs if `code` names this site's own file of that digest. What is beyond a bound is refused by name,
and logged at the site. The reasons, and what this does not hold against:
[ADR 10](../adr/0010-trust-between-sites-and-server.md).

```text
name: north
data: rows.jsonl
allow:
  methods: [fedavg, flexlora]
  max_steps: 200
  max_rank: 16
  max_memory: 64MB
```

The state folder holds, for its owner alone: `site.sock`, `site.log`, `runs/` (what the client remembers, two rounds of each of
the last 20 runs) and `rows/` (its encoded rows, from which the rows can be read back). A run's folder in `runs/` may be removed
once the run is over. A folder that other users may write to is refused.
"""

SUITE_HEAD = """# Suite files

`fedelta compare SUITE.yaml` runs several methods in several settings over several seeds. An unknown key is refused with the
nearest one, and the config of every run is checked before the first begins. Paths are taken from the folder in which the file
lies.

## Keys
"""

SUITE_REST = """## Methods

A method is a name, a file of your own (`mine.py`), or a mapping:

| key | meaning |
|---|---|
| `name` or `path` | the method, or the file that defines it; a file runs only if you name it again, by `--allow-file mine.py` |
| `label` | in tables and folders; needed where a name occurs twice |
| `set` | what else its runs have of their own, by dotted key of the config |
| `tune` | a grid of its own in place of the suite's; null for none |
| any other | a hyper-parameter of the method |

A method that cannot serve a setting by what it claims of itself, such as unequal ranks, is *not applicable* there: the table
says why, and it counts neither as missing nor as failed. Whatever else a method refuses ends the suite before its first run.
`local_only` and `centralised` are lines to compare with, not competitors.

## Seeds

A seed of the suite draws the partition, the schedule (who is in a round, and batches) and the start. The rows that are kept
out to choose and to report by are drawn from the base's own seed (`seed`, or `seed.data`), so that every run is scored on the
same rows.

A setting that is listed may have `seeds` of its own, a number or a list, in place of the suite's, since costs differ.
Cells are worked off seed by seed over all settings, and verdicts are those of each setting's own seeds. `name` and `seeds` are
reserved words of a setting, and no keys to sweep.

## Tuning

A method's value is chosen by runs on seeds of their own (100 and 101), which must not be among the compared ones. The best
mean validation score after the last round wins, by `evaluation.best_by`; where accuracies differ by no more than the sampling
error of the validation rows, the lower validation loss does. Where the best value is the smallest or largest tried, one more
beyond it is tried by the grid's ratio, at most twice; if it still is, the table says "at the edge". Several keys are tried in
all combinations. With `setting: first` the first setting chooses for all, else each for itself.

```yaml
base: quickstart
methods:
  - flexlora
  - {name: hetlora, label: HetLoRA 0.9, gamma: 0.9, tune: {method.lam: [0.001, 0.01, 0.1]}}
  - {name: fedavg, label: rank 4, set: {lora.rank: 4}}
  - local_only
  - centralised
seeds: [0, 1, 2, 3, 4]
baseline: flexlora
tune: {training.learning_rate: [1.0e-3, 3.0e-3, 1.0e-2]}
sweep:
  - {name: mild, partition.concentration: 1.0}
  - {name: harsh, partition.concentration: 0.1, federation.rounds: 60, seeds: 3}
store: cells.jsonl.gz
```

## Folder

| path | content |
|---|---|
| `suite.yaml` | the suite as resolved; run again from there, it finds the runs beside it |
| `cells/<setting>/<method>/seed-<s>/` | the runs that are compared, [run folders](run-folder.md) without curves and page |
| `tune/<setting>/<method>/<value>/seed-<s>/` | those that choose values |
| `stale/` | runs of another config, or that could not be taken up, which lay where a cell belongs |
| `untrained/` | scores of the model before any training |
| `results.csv`, `results.tex`, `results.pdf`, `results.png`, `summary.json`, `report.html` | what came out |

A run is done when it has all its rounds and the config that the suite asks for. What is done is not done again, what was
stopped goes on after its last round, and what failed has a `failed.json` and is tried again with `--retry`. A run of
which nothing is a finite number any more is done, too: it has a `diverged.json`, counts as the share of the commonest label,
and is marked. More rounds extend finished runs. Several calls may share one folder.

## Store

With `store`, each finished run is also a line in one gzip file, that can be committed: its config, its records without the
table by layer, and its facts. A run is known by a hash of its config, in which files count by their content, so that it is
found from any folder and in a fresh clone. Tables and page are made of these lines alone. Where the data are not there, the
store's own digests stand for them. Several processes may write to one store; a line that a killed one left unfinished is cut
away.

## Exit codes

0: nothing failed; 1: some run failed, and the table is there all the same; 2: a suite that cannot be run; 130: stopped by
Ctrl-C, after a whole round."""

CHOICES_HEAD = """## Choices by name

Some keys choose a thing by its name. The name alone is enough, `method: flexlora`; with settings of its own it is a mapping,
`method: {name: fedprox, mu: 0.1}`. The [methods](methods/index.md) have pages of their own.
"""

ACTIVATION = """All but `exponential` also take `activation`, the probability with which each edge is up in a round (1 by
default). `weights` is "metropolis" or "laplacian"."""

ORDER = """A list of names, or of mappings with settings; an upload passes them in this order, and a cast may follow
`top_k`. [Codecs](../explanation/codecs.md) says what is coded, and what it costs."""


def ref(value: Mapping[str, Any]) -> str:
    """Returns the name of the section that a key holds; an empty string for a plain value."""
    return str(value.get("$ref", "")).rpartition("/")[2]


def section_name(value: Mapping[str, Any]) -> str:
    """Returns the name of the section that a key holds, also of one for which a text alone may stand; else an empty string."""
    forms: Sequence[Mapping[str, Any]] = value.get("anyOf", ())
    short = [form.get("type") for form in forms if not ref(form)] == ["string"]
    return ref(value) or (next(filter(None, map(ref, forms)), "") if short else "")


def keys_table(prefix: str, properties: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns a row for each key: dotted name, type, default, description."""
    rows = [
        [f"`{prefix}.{key}`" if prefix else f"`{key}`", kind(about), default(about), about["description"]]
        for key, about in properties.items()
    ]
    return table(["key", "type", "default", "meaning"], rows)


def default(about: Mapping[str, Any]) -> str:
    """Returns a key's default as YAML has it."""
    if "default" not in about:
        return "needed"
    text = yaml.safe_dump(about["default"], default_flow_style=True)
    return f"`{text.removesuffix('...' + chr(10)).strip()}`"


def kind(about: Mapping[str, Any]) -> str:
    """Returns the type of a value in words."""
    if "enum" in about:
        return ", ".join(f"`{x}`" for x in about["enum"])
    if "const" in about:
        return f"`{about['const']}`"
    if ref(about):
        return "mapping"
    options: Sequence[Mapping[str, Any]] = about.get("anyOf") or about.get("oneOf") or ()
    if options:
        found = [kind(option) for option in options]
        return " or ".join(dict.fromkeys(found))
    if about["type"] == "array":
        return f"list of {kind(about['items'])}"
    return f"{WORDS[about['type']]}{bounds(about)}"


WORDS = {
    "string": "text",
    "integer": "integer",
    "number": "number",
    "boolean": "`true`, `false`",
    "null": "`null`",
    "object": "mapping",
}


def bounds(about: Mapping[str, Any]) -> str:
    """Returns the range of a number, such as " >= 1"."""
    signs = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    found = [f"{sign} {about[key]:g}" for key, sign in signs.items() if key in about]
    return f" {', '.join(found)}" if found else ""


def choices_of(title: str, key: str, registry: Mapping[str, Callable[..., Any]], note: str = "") -> str:
    """Returns a section on what a key can name: an entry for each, with its settings."""
    entries = [f"**`{name}`** {summary(what)}\n\n{settings(what)}" for name, what in registry.items()]
    return "\n".join([f"### {title}\n\n{sentence(f'For `{key}`.', note)}\n", *entries])


def schemes() -> str:
    """Returns the table of schemes, whose settings are keys of their own."""
    rows = [[f"`{name}`", summary(what)] for name, what in SCHEMES.items()]
    return f"### Schemes\n\nFor `partition.scheme`.\n\n{table(['name', 'meaning'], rows)}"


def metrics() -> str:
    """Returns the table of metrics."""
    rows = [[f"`{name}`", summary(function)] for name, function in METRICS.items()]
    return f"### Metrics\n\nFor `task.metrics`, a list, and `evaluation.best_by`.\n\n{table(['name', 'meaning'], rows)}"


def settings(what: Callable[..., Any]) -> str:
    """Returns a list of the settings of a choice, each with its default and, where the docstring explains it, its meaning."""
    explained = explanations(what)
    lines: list[str] = []
    for name, start in own_settings(what):
        value = "" if start is inspect.Parameter.empty else f" = `{start!r}`"
        meaning = f": {explained[name]}" if name in explained else ""
        lines.append(f"- `{name}`{value}{meaning}\n")
    return "".join(lines)


def sentence(*parts: str) -> str:
    """Returns the parts that are not empty, with a space between."""
    return " ".join(part for part in parts if part)


def own_settings(what: Callable[..., Any]) -> Iterator[tuple[str, Any]]:
    """Yields names and defaults of what a config can set; the number of nodes and the seed come from elsewhere."""
    for name, parameter in inspect.signature(what).parameters.items():
        if name not in ("n", "seed"):
            yield name, parameter.default


def explanations(what: Callable[..., Any]) -> dict[str, str]:
    """Returns what docstrings say of each argument, those of base classes too."""
    found: dict[str, str] = {}
    for owner in reversed(inspect.getmro(what) if inspect.isclass(what) else (what,)):
        paragraphs = inspect.cleandoc(owner.__doc__ or "").split("\n\n")
        box = next((x for x in paragraphs if x.startswith("Args:")), "")
        for entry in re.split(r"\n(?=\S)", dedent(box.partition("\n")[2])):
            name, colon, meaning = " ".join(entry.split()).partition(": ")
            found |= {name: meaning} if colon else {}
    return found


def summary(what: Callable[..., Any]) -> str:
    """Returns the first paragraph of a docstring."""
    return " ".join((inspect.getdoc(what) or "").split("\n\n")[0].split())


# --- command line ----------------------------------------------------------------------------------------------------


CLI_HEAD = """# The command line

Results go to stdout, everything else to stderr. With `--json` a command writes JSON to stdout and nothing else.

| exit code | meaning |
| --- | --- |
| 0 | done |
| 1 | `fedelta check` found a law that is broken |
| 2 | an error that you can mend; one message says how |
| 130 | stopped by Ctrl-C |

`fedelta --debug COMMAND ...` shows where an error came from.
"""


def command_line() -> str:
    """Returns the page of commands, from what `--help` reads."""
    group: Any = get_command(app)  # typer's own click has no types for its parameters
    shared = table(["option", "meaning"], [option(p) for p in group.params if not hides(p)])
    return "\n".join([CLI_HEAD, f"## fedelta\n\n{group.help}\n\n{shared}", *sections(group)])


def sections(group: Any, before: str = "") -> Iterator[str]:
    """Returns the sections of a group's commands, and of those of its groups."""
    for name, found in group.commands.items():
        if hasattr(found, "commands"):
            yield from sections(found, f"{before}{name} ")
        else:
            yield command(found, f"{before}{name}")


def command(found: Any, name: str) -> str:
    """Returns a command's section: usage, text, arguments, options."""
    arguments = [p for p in found.params if p.param_type_name == "argument"]
    options = [p for p in found.params if p.param_type_name == "option" and not hides(p)]
    shown = [p.metavar if p.required else f"[{p.metavar}]" for p in arguments]
    rows = [*([f"`{p.metavar}`", p.help or ""] for p in arguments), *map(option, options)]
    text = "\n\n".join(" ".join(x.split()) for x in found.help.split("\n\n"))
    usage = f"```text\nfedelta {' '.join([name, *shown, '[OPTIONS]'])}\n```"
    return "\n\n".join([f"## fedelta {name}", usage, text, table(["argument, option", "meaning"], rows)])


def hides(parameter: Any) -> bool:
    """Returns whether an option is left out: every command has --help."""
    return bool(parameter.hidden) or "--help" in parameter.opts


def option(parameter: Any) -> list[str]:
    """Returns an option's row."""
    value = "" if parameter.is_flag else f" {parameter.metavar}"
    names = ", ".join(f"`{name}{value}`" for name in parameter.opts)
    notes = [*(["Needed."] if parameter.required else []), *(["May be repeated."] if parameter.multiple else [])]
    start = parameter.default
    if isinstance(start, str):
        notes.append(f"Default: `{start}`.")
    return [names, " ".join([parameter.help or "", *notes])]


# --- all of them -----------------------------------------------------------------------------------------------------


def table(head: Sequence[str], rows: Table) -> str:
    """Returns a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; end with code 1 if a file is stale")
    check = parser.parse_args().check
    wanted = files()
    old = left_over(wanted)
    stale = [path for path, text in wanted.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    for path in [*stale, *old]:
        print("stale:" if check else "wrote:", path.relative_to(ROOT))
    if check:
        sys.exit(1 if stale or old else 0)
    for path in stale:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(wanted[path], encoding="utf-8")
    for path in old:
        path.unlink()


if __name__ == "__main__":
    main()
