"""TrainerClient with the Trainers of TRL: packing, checkpointing, a reference adapter; and the examples (`make test-trl`)."""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

pytest.importorskip("trl", reason="TRL is not installed: make test-trl")

from datasets import Dataset
from peft import LoraConfig, get_peft_model
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

import fedelta
from fedelta import tree
from fedelta.models.adapter_files import load_adapter

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"
LORA: Any = {"lora_alpha": 16, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
QUIET: Any = {"save_strategy": "no", "report_to": "none", "disable_tqdm": True, "use_cpu": True, "logging_strategy": "no"}


@pytest.fixture(scope="module")
def tiny() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tiny_llama", EXAMPLES / "tiny_llama.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def sft(tiny: ModuleType, tmp_path: Path) -> Callable[..., Any]:
    rows = [{"text": f"name a colour {['red', 'green', 'blue'][k % 3]}"} for k in range(24)]

    def make(turn: fedelta.Turn, rank: int = 4, model: Any = None, **options: Any) -> SFTTrainer:
        common = {"max_steps": 2, "per_device_train_batch_size": 4, "learning_rate": 1e-2, "max_length": 16}
        args = SFTConfig(output_dir=str(tmp_path / "out"), **{**QUIET, **common, **options})
        lora = LoraConfig(r=rank, **LORA) if model is None else None
        return SFTTrainer(
            model=tiny.load_model() if model is None else model,
            args=args,
            train_dataset=Dataset.from_list(rows),
            processing_class=tiny.load_tokenizer(),
            peft_config=lora,
        )

    return make


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"packing": True, "max_length": 32},
        {"bf16": True},
        {"gradient_checkpointing": True},
        {"gradient_accumulation_steps": 2},
    ],
    ids=lambda options: "-".join(options) or "plain",
)
def test_options_of_sft_work_in_a_federation_of_unequal_ranks(sft: Any, options: dict[str, Any]) -> None:
    def maker(rank: int) -> Any:
        return lambda turn: sft(turn, rank, **options)

    clients = [fedelta.TrainerClient(k, maker(rank)) for k, rank in enumerate((2, 4))]
    rounds = list(fedelta.federate(fedelta.get_method("flexlora"), clients, rounds=2, debug=True))
    assert [len(done.updates) for done in rounds] == [2, 2]
    assert [client.peer.rank for client in clients] == [2, 4]
    assert any(x.B.any() for x in rounds[-1].state["adapter"].layers.values())


def test_one_model_for_all_rounds_gives_what_fresh_ones_give(sft: Any, tiny: ModuleType) -> None:
    model = get_peft_model(tiny.load_model(), LoraConfig(r=4, **LORA))
    fresh, kept = fedelta.TrainerClient(0, sft), fedelta.TrainerClient(0, lambda turn: sft(turn, model=model))
    for t in range(2):
        one, other = fresh.train(t, fresh.template).adapter, kept.train(t, kept.template).adapter
        for name, x in tree.parameters(one).items():
            assert torch.equal(x, tree.parameters(other)[name])


def test_the_reference_of_dpo_is_what_the_run_began_with_in_every_round(tiny: ModuleType, tmp_path: Path) -> None:
    model = get_peft_model(tiny.load_model(), LoraConfig(r=2, **LORA))
    for name, x in model.named_parameters():
        if "lora_B" in name:  # as if it came from supervised fine-tuning
            torch.nn.init.normal_(x, std=0.1, generator=torch.Generator().manual_seed(0))
    begun = {n: x.detach().clone() for n, x in model.named_parameters() if ".default." in n}
    rows = Dataset.from_list([{"prompt": "name a colour", "chosen": " red", "rejected": " cat"}] * 8)
    references: list[bool] = []

    def make(turn: fedelta.Turn) -> DPOTrainer:
        args = DPOConfig(output_dir=str(tmp_path), max_steps=2, learning_rate=1e-2, gradient_checkpointing=False, **QUIET)
        made = DPOTrainer(model=model, args=args, train_dataset=rows, processing_class=tiny.load_tokenizer())
        same = [torch.equal(model.get_parameter(n.replace(".default.", ".ref.")), x) for n, x in begun.items()]
        references.append(all(same))
        return made

    clients = [fedelta.TrainerClient(k, make) for k in range(2)]
    rounds = list(fedelta.federate(fedelta.get_method("fedavg"), clients, rounds=2, debug=True))
    assert references == [True] * 6
    assert list(model.peft_config) == ["default"]
    assert rounds[1].loss < rounds[0].loss < 0.6932  # log 2: neither is preferred
    assert {n for u in rounds[1].updates for n in u.content["adapter"].layers} == set(clients[0].template.layers)


def test_a_method_that_needs_a_penalty_is_refused_before_anything_trains(sft: Any) -> None:
    client = fedelta.TrainerClient(0, sft)
    with pytest.raises(ValueError, match=r"SubspaceReg asks clients for a penalty on the loss.* a TrainerClient, cannot do"):
        fedelta.federate(fedelta.get_method("subspace_reg"), [client], rounds=1)


@pytest.mark.parametrize(("example", "adapters"), [("trl_sft", ["flexlora", "raflora"]), ("trl_dpo", ["flexlora"])])
def test_the_examples_run_and_their_losses_fall(example: str, adapters: list[str], tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / f"{example}.py")],
        cwd=tmp_path,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for name in adapters:
        losses = [float(line.split("loss")[1].split()[0]) for line in done.stdout.splitlines() if line.startswith(name)]
        assert len(losses) == 3
        assert losses[2] < losses[0]
        assert load_adapter(tmp_path / "runs" / example / name).layers
