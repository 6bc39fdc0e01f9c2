"""Folders that are to be merged: what belongs together, and what is refused by the names of the folders."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import fedelta
from fedelta.adapters.reading import read_alike
from fedelta.lowrank import LoRA
from fedelta.models.adapter_files import CONFIG, EXTRA, Layout, save_adapter
from fedelta.tree import Adapter

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes an adapter of one layer as a PEFT folder, with these entries in its config."""

    def folder(
        name: str, rank: int = 2, *, base: str | None = None, labels: tuple[Any, ...] = (), head: bool = False, **entries: Any
    ) -> Path:
        generator = torch.Generator().manual_seed(rank + len(name))
        B, A = (torch.randn(*shape, generator=generator) for shape in ((6, rank), (rank, 5)))
        dense = {"score.weight": torch.randn(3, 5, generator=generator)} if head else {}
        scale = 16 / math.sqrt(rank) if entries.get("use_rslora") else 16 / rank
        save_adapter(Adapter({"q": LoRA(B, A, scale)}, dense, base), tmp_path / name, like=Layout(entries, labels=labels))
        return tmp_path / name

    return folder


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def tokenizer(folder: Path, tokens: list[str], added: tuple[str, ...] = ()) -> None:
    listed = [{"id": 100 + k, "content": token, "special": True} for k, token in enumerate(added)]
    model = {"type": "WordLevel", "vocab": {token: k for k, token in enumerate(tokens)}}
    (folder / "tokenizer.json").write_text(json.dumps({"version": "1.0", "added_tokens": listed, "model": model}))


def test_bases_of_different_names_are_refused_unless_they_are_said_to_be_one(write: Write):
    folders = [write("alice", base_model_name_or_path="gpt2"), write("bob", base_model_name_or_path="openai-community/gpt2")]
    with pytest.raises(ValueError, match=r"alice was trained on base model 'gpt2', .*bob on 'openai-.*by --same-base"):
        read_alike(folders)
    with pytest.raises(ValueError, match="cannot be merged"):
        fedelta.aggregate(folders)
    assert len(read_alike(folders, same_base=True)) == 2
    assert len(fedelta.aggregate(folders, same_base=True)) == 2


def test_revisions_of_one_base_are_two_bases(write: Write):
    of = [write(n, base_model_name_or_path="gpt2", revision=n) for n in ("a1", "b2")]
    with pytest.raises(ValueError, match=r"'gpt2 at revision a1'.*'gpt2 at revision b2'"):
        read_alike(of)


def test_a_fingerprint_counts_more_than_a_name(write: Write):
    names = ("gpt2", "copies/gpt2", "gpt2")
    alike = [write(f"f{k}", base="11aa", base_model_name_or_path=name) for k, name in enumerate(names)]
    assert len(read_alike(alike)) == 3
    other = write("other", base="22bb", base_model_name_or_path="gpt2")
    with pytest.raises(ValueError, match=r"f0 was trained on base 11aa \(gpt2\), .*other on 22bb \(gpt2\)"):
        read_alike([*alike, other], same_base=True)


def test_an_alias_its_hub_id_and_its_folder_are_one_base(write: Write, minilm: Path):
    names = ("minilm", "sentence-transformers/all-MiniLM-L6-v2", str(minilm))
    assert len(read_alike([write(f"m{k}", base_model_name_or_path=name) for k, name in enumerate(names)])) == 3


def test_a_folder_that_does_not_name_its_base_is_taken(write: Write):
    assert len(read_alike([write("alice", base_model_name_or_path="gpt2"), write("unknown")])) == 2


def test_heads_for_other_labels_are_refused_and_others_averaged(write: Write):
    alice, bob = (write(n, labels=labels, head=True) for n, labels in (("alice", ("no", "yes")), ("bob", ("yes", "no"))))
    with pytest.raises(ValueError, match=r"alice has the labels \['no', 'yes'\], .*bob has \['yes', 'no'\]"):
        read_alike([alice, bob])
    edit(bob / EXTRA, labels=["no", "yes"])
    read = read_alike([alice, bob])
    (merged,) = fedelta.aggregate([alice, bob], method="flexlora", ranks=[2], weights=[1, 3])
    expected = 0.25 * read[0].dense["score.weight"] + 0.75 * read[1].dense["score.weight"]
    torch.testing.assert_close(merged.dense["score.weight"], expected)
    with pytest.raises(ValueError, match=r"none.* and .*alice do not adapt the same dense tensors"):
        read_alike([alice, write("none")])


def test_tokenizers_of_other_tokens_are_refused(write: Write):
    alice, bob = write("alice"), write("bob")
    tokenizer(alice, ["a", "b"], ("<s>",))
    assert len(read_alike([alice, bob])) == 2  # bob's is not known
    tokenizer(bob, ["a", "b"], ("<s>",))
    assert len(read_alike([alice, bob])) == 2
    for tokens, added in ((["b", "a"], ("<s>",)), (["a", "b"], ("<t>",))):
        tokenizer(bob, tokens, added)
        with pytest.raises(ValueError, match=r"alice and .*bob hold tokenizers of different tokens"):
            read_alike([alice, bob])


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"use_dora": True}, "DoRA trains a magnitude"),
        ({"lora_bias": True}, "a bias on B"),
        ({"bias": "all"}, "trained biases of the base"),
        ({"peft_type": "IA3"}, "has peft_type 'IA3'"),
        ({"init_lora_weights": "pissa"}, "changes the base weights"),
        ({"trainable_token_indices": [1]}, "single tokens"),
    ],
)
def test_kinds_without_one_delta_are_refused_by_name(entry: dict[str, Any], message: str, write: Write):
    alice, bob = write("alice"), write("bob")
    edit(bob / CONFIG, **entry)
    with pytest.raises(ValueError, match=f"bob.*{message}"):
        read_alike([alice, bob])


@pytest.mark.parametrize("labels", ["yes", [["a"]], ["a", "a"], [None], [float("nan")], {"a": 1}])
def test_labels_that_are_none_are_refused(labels: Any, write: Write):
    folder = write("alice")
    edit(folder / EXTRA, labels=labels)
    with pytest.raises(ValueError, match="a list of different texts or numbers as `labels`"):
        read_alike([folder])


@pytest.mark.parametrize("method", ["flexlora", "flora"])
@pytest.mark.parametrize("kinds", [(True, True), (False, True), (True, False)], ids=str)
def test_rank_stabilised_and_plain_adapters_have_one_mean(kinds: tuple[bool, bool], method: str, write: Write, tmp_path: Path):
    """Written and read again as folders: each scale is that of its own rule, and so is the result's."""
    folders = [write(f"x{k}", rank, use_rslora=kind) for k, (rank, kind) in enumerate(zip((2, 3), kinds, strict=True))]
    scales = [16 / math.sqrt(r) if kind else 16 / r for r, kind in zip((2, 3), kinds, strict=True)]
    deltas = [(s, a.layers["q"]) for s, a in zip(scales, read_alike(folders), strict=True)]
    expected = sum(w * s * x.B @ x.A for w, (s, x) in zip((0.25, 0.75), deltas, strict=True))
    (merged, _) = fedelta.aggregate(folders, method=method, ranks=[5, 5], weights=[1, 3])
    for like in folders:
        save_adapter(merged, tmp_path / "merged", like=like)
        assert json.loads((tmp_path / "merged" / CONFIG).read_text())["use_rslora"] == kinds[folders.index(like)]
        found = fedelta.load_adapter(tmp_path / "merged").layers["q"].dense()
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        shutil.rmtree(tmp_path / "merged")
