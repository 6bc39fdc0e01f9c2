"""Tokenizers trained here on a few sentences, and tiny random models: nothing is loaded from anywhere."""

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    BertForMultipleChoice,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
)

CORPUS = [
    "the sun is warm and the sky is blue",
    "a man sits on a roof and starts to work",
    "Question: why does water run down the hill? Answer: it is heavy.",
    "rain falls on the plain, and the river runs to the sea",
]


@pytest.fixture(scope="session")
def words():
    """A tokenizer like BERT's: whole words between [CLS] and [SEP], with token types for pairs."""
    core = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.train_from_iterator(CORPUS, trainers.WordLevelTrainer(special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]"]))
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


@pytest.fixture(scope="session")
def bytes_():
    """A tokenizer like GPT-2's: byte-level pairs, one end-of-text token, no special tokens around a text."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330, special_tokens=["<end>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    core.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<end>", bos_token="<end>")


def _bert_config(words, **settings):
    return BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, **settings
    )


@pytest.fixture
def classifier(words):
    torch.manual_seed(0)
    return BertForSequenceClassification(_bert_config(words, num_labels=3)).double().eval()


@pytest.fixture
def chooser(words):
    torch.manual_seed(0)
    return BertForMultipleChoice(_bert_config(words)).double().eval()


@pytest.fixture
def language_model(bytes_):
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=len(bytes_), n_embd=16, n_layer=2, n_head=2, n_positions=128)
    return GPT2LMHeadModel(config).double().eval()
