"""Writes the first layers of MiniLM to models/, changed so that the classifier has something to read from the first round on.

MiniLM was trained on the mean of its tokens. What it puts at [CLS], which a classifier reads, is nearly one vector for all
texts: in layer 3 its mean over TREC is 1,000 times its spread. Here the last layer's queries are zero, so that [CLS] begins
by attending to all tokens alike, and its last LayerNorm is centred and scaled on 500 training questions, without labels.

python experiments/drift/prepare.py ../shared/data/topic/trec_train.jsonl.gz
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import nn
from transformers import AutoModel, AutoTokenizer

from fedelta.data.sources import load_rows
from fedelta.models.aliases import resolve_model

LAYERS, QUESTIONS, MAX_LENGTH = 3, 500, 24
OUTPUT = Path(__file__).resolve().parents[2] / "models" / "minilm-3-even"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("questions", type=Path, help="the file trec_train.jsonl.gz")
    questions = [row["text"] for row in load_rows(parser.parse_args().questions)[:QUESTIONS]]
    source = resolve_model("minilm")
    tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=True)
    model = AutoModel.from_pretrained(source, num_hidden_layers=LAYERS).eval()
    tokens = tokenizer(questions, padding=True, truncation=True, max_length=MAX_LENGTH, return_tensors="pt")
    with torch.no_grad():
        last = model.encoder.layer[-1]
        attend_evenly(last.attention.self.query)
        standardise(last.output.LayerNorm, model(**tokens).last_hidden_state[:, 0])
    model.save_pretrained(OUTPUT)
    tokenizer.save_pretrained(OUTPUT)


def attend_evenly(query: nn.Linear) -> None:
    """Makes all scores of an attention zero, so that every token gets the mean of the values."""
    query.weight.zero_()
    query.bias.zero_()


def standardise(norm: nn.LayerNorm, out: torch.Tensor) -> None:
    """Centres what a LayerNorm gives, of shape (texts, width), and scales it to a root mean square of 1 over all entries."""
    mean = out.mean(0)
    gain = 1 / (out - mean).square().mean().sqrt()
    norm.bias.copy_(gain * (norm.bias - mean))
    norm.weight.mul_(gain)


if __name__ == "__main__":
    main()
