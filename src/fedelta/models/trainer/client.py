"""TrainerClient: a client that trains by a user's own Trainer of transformers or TRL.

A Trainer is made for each turn, so that optimiser and schedule are fresh in every round. The client puts the round's adapter
into its model, lets it train, and reads the adapter back. What it trains on, by which loss and on what schedule, is the
Trainer's affair; so are its log, its callbacks and its checkpoints.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast
from weakref import ref

from peft import PeftModel
from torch import Tensor
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments, set_seed

from fedelta import tree
from fedelta.client import LocalClient, trainable_names
from fedelta.method import TRAINER_TAKES, GradientHook, Penalty, Trainable, TrainResult
from fedelta.models.base_store import BaseSum
from fedelta.models.fingerprint import weights_digest
from fedelta.models.lora_peers import peers_for
from fedelta.models.trainer.checkpoints import Marking, forget, newest_of, round_digest
from fedelta.models.trainer.model import TrainerModel
from fedelta.models.trainer.turn import MakeTrainer, Turn, drawing_from, seed_of
from fedelta.optim import Optimizer
from fedelta.peers import Peer
from fedelta.tree import Adapter, BaseDelta


class TrainerClient:
    """A client of a user's own Trainer.

    `make_trainer(turn)` returns a Trainer whose model is a PeftModel with a plain LoRA adapter, or one that makes such a model
    from its `peft_config`. It is called once when the client is made, so that what is amiss is said before anything trains, and
    once in each round. The model may be made anew or be the same in every call, and may be shared with other clients.

    In each round the Trainer's `args` are copied, and in the copy `seed` is the turn's, `learning_rate` is scaled and
    `max_steps` set where a method asks for it.

    A round that was cut short goes on from the newest checkpoint that the Trainer wrote in it (`save_strategy`, in the
    Trainer's own `output_dir`); without one it is done again, with the same order of examples.

    Args:
        peer: who it is; or its id, to read ranks and scales from the Trainer's `LoraConfig` and `num_examples` from the length
            of its `train_dataset`. The rank of a `Peer` goes before that of the `LoraConfig`.
        make_trainer: makes the Trainer of a turn.
        template: the common initial adapter at this peer's ranks. If not given it is the one in the Trainer's model, if that
            was trained; else it is drawn from the seed, and so the same for all clients of a seed, with heads
            (`modules_to_save`) as the model has them.
        seed: of the run.
        rows: the client's own rows, which each turn hands on.

    Attributes:
        weights: the digest of the base that its first Trainer had.
        takes: the arguments of `train` that a Trainer can honour. A method that asks for a penalty, a hook on gradients or an
            optimiser of its own is refused before the first round.

    Raises:
        TypeError: for what is no Trainer, or one whose model has no adapter.
        ValueError: for a model or an adapter that does not fit, naming the remedy.
    """

    peer: Peer
    template: Adapter
    takes = TRAINER_TAKES
    copies_start = True

    def __init__(
        self,
        peer: Peer | int,
        make_trainer: MakeTrainer,
        template: Adapter | None = None,
        *,
        seed: int = 0,
        rows: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        given: object = make_trainer
        if not callable(given):
            raise TypeError(f"make_trainer should be a function that takes a turn and returns a Trainer, got {given!r:.80}")
        self.make_trainer, self.seed, self._rows = make_trainer, seed, rows
        self._known_peer, self._id = (None, peer) if isinstance(peer, int) else (peer, peer.id)
        self._base = BaseSum()
        self._last: ref[PeftModel] | None = None
        turn = self._turn(0)
        with drawing_from(turn.seed):
            trainer, model = self._made(turn)
            try:
                self._look(trainer, model, template)
            finally:
                model.release()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.peer!r})"

    def _look(self, trainer: Trainer, model: TrainerModel, template: Adapter | None) -> None:
        """Learns from a first Trainer what the federation must know, before anything trains."""
        self.peer = self._known_peer = self._known_peer or _peer_of(self._id, trainer, model, self._who)
        self._num_steps, self.weights = _steps_of(trainer, self._who), model.weights
        _check_scales(self.peer, model, self._who)
        initial = model.initial(self.peer, self.seed, model.fingerprint(trainer.processing_class))
        self.template = initial if template is None else template
        tree.check_fits(self.template, replace(initial, base=self.template.base), "the template", "the model")

    @property
    def num_steps(self) -> int:
        return self._num_steps

    def train(
        self,
        t: int,
        start: Adapter,
        *,
        base: BaseDelta | None = None,
        trainable: Trainable | None = None,
        penalty: Penalty | None = None,
        gradient: GradientHook | None = None,
        optimizer: Optimizer | None = None,
        num_steps: int | None = None,
        lr_scale: float = 1.0,
    ) -> TrainResult:
        """Trains from `start` by a fresh Trainer; see `fedelta.method.Client`.

        The loss is the Trainer's own mean, of the steps after the last checkpoint in a round that was gone on with.

        Raises:
            ValueError: for what a Trainer cannot do, or a start that does not fit its model.
            FloatingPointError: if what was trained is not finite.
        """
        _refuse(self._who, penalty=penalty, gradient=gradient, optimizer=optimizer)
        turn, shown, names = self._turn(t), self._followed(base), trainable_names(start, trainable)
        with drawing_from(turn.seed):
            trainer, model = self._made(turn)
            try:
                _settle(trainer, turn, num_steps, lr_scale)
                model.load(start, shown)
                model.train_only(names)
                _check_optimizer(trainer, model, names, self._who)
                result = self._trained(trainer, model, start, names, t=t, base=0 if shown is None else shown.version)
            finally:
                model.release()
                model.load(self.template)
        return result

    def gradient(self, start: Adapter, num_batches: int, *, base: BaseDelta | None = None, t: int = 0) -> Adapter:
        """Raises ValueError: a Trainer gives no gradient without a step."""
        raise ValueError(
            f"{self._who} trains by its own Trainer, which gives no gradient without a step: choose another method"
        )

    def base_weight(self, layer: str) -> Tensor:
        """Returns the pretrained weight (o, i) of a layer; makes a Trainer for it if the last one's model is gone."""
        turn, last = self._turn(0), None if self._last is None else self._last()
        if last is not None:
            return TrainerModel(last, self._who).base_weight(layer)
        with drawing_from(turn.seed):
            model = self._made(turn)[1]
            model.release()
            return model.base_weight(layer)

    def restore(self, base: BaseDelta) -> None:
        """Remembers a base that this client held before its process was lost."""
        self._followed(base)

    @property
    def _who(self) -> str:
        return f"client {self._id}"

    def _turn(self, t: int) -> Turn:
        return Turn(t, self._id, seed_of(self.seed, t, self._id), self._rows, self._known_peer)

    def _followed(self, base: BaseDelta | None) -> BaseDelta | None:
        """Returns the whole sum of a base that may come in steps: the next model may know nothing of those before."""
        if base is None or base.version == 0:
            return None
        self._base.follow(base)
        return self._base.whole()

    def _made(self, turn: Turn) -> tuple[Trainer, TrainerModel]:
        """Returns the Trainer of a turn and its model, after a look at both; a model that is kept is left clean if it fails."""
        last = None if self._last is None else self._last()
        kept = None if last is None else TrainerModel(last, self._who)
        if kept is not None:
            # Some Trainers copy the adapter that they find, as the reference of a preference loss: that is the one that the run
            # began with, in every round, at this client's rank even in a model that others share.
            kept.load(self.template)
        try:
            return self._looked_at(self.make_trainer(turn))
        except BaseException:
            if kept is not None:
                kept.release()
            raise

    def _looked_at(self, made: Any) -> tuple[Trainer, TrainerModel]:
        """Returns a Trainer and its model. Raises TypeError or ValueError for one that does not fit."""
        if not isinstance(made, Trainer):
            raise TypeError(f"{self._who}: make_trainer returned a {type(made).__name__}, where a Trainer belongs")
        if made.model_init is not None:
            raise ValueError(f"{self._who}: the Trainer makes its model when it trains (model_init): give it the model")
        model = TrainerModel(made.model, self._who)
        if self._last is not None and model.weights != self.weights:
            raise ValueError(
                f"{self._who}: the base of this round's Trainer has other weights than that of its first: load the same "
                "checkpoint in every call of make_trainer, and draw no weights anew"
            )
        self._last = ref(cast("PeftModel", made.model))
        return made, model

    def _trained(
        self, trainer: Trainer, model: TrainerModel, start: Adapter, names: Collection[str], **facts: Any
    ) -> TrainResult:
        folder, watch = Path(str(trainer.args.output_dir)), _Watch()
        facts |= {"client": self._id, "trained": sorted(names), "num_examples": self.peer.num_examples}
        digest = round_digest(start, trainer.args, **facts)
        trainer.add_callback(watch)
        trainer.add_callback(Marking(digest))
        begun = newest_of(folder, digest)
        output = trainer.train(resume_from_checkpoint=None if begun is None else str(begun))
        adapter = model.read(start, names)
        self._check_result(output.global_step, output.training_loss, adapter)
        forget(folder)
        return TrainResult(adapter, output.global_step, output.training_loss, watch.learning_rate)

    def _check_result(self, steps: int, loss: float, adapter: Adapter) -> None:
        if not steps:
            raise ValueError(f"{self._who}: its Trainer ended without a step: look at its data and its callbacks")
        if not math.isfinite(loss) or not all(x.isfinite().all() for x in tree.parameters(adapter).values()):
            raise FloatingPointError(
                f"{self._who}: what its Trainer trained is not finite; lower learning_rate, or clip gradients"
            )


def in_place_of(client: LocalClient, make_trainer: MakeTrainer, rows: Sequence[Mapping[str, Any]]) -> TrainerClient:
    """Returns the client that trains by its own Trainer where `client` would by the library's loop, from the same start.

    Args:
        client: on the model that the run scores by.
        make_trainer: makes the Trainer of a turn.
        rows: the client's own, before they are encoded.

    Raises:
        ValueError: for a Trainer on another base than the client's.
    """
    model: Any = client.model
    heads = [name for _, names in model.head_tensors() for name in names.values()]
    weights = weights_digest(model.module, heads)
    made = TrainerClient(client.peer, make_trainer, client.template, seed=client.seed, rows=rows)
    if made.weights != weights:
        raise ValueError(
            f"client {client.peer.id}: the base of its Trainer has other weights than the model of the config, by which models "
            "are scored: load the same checkpoint, at the same revision, in make_trainer"
        )
    return made


class _Watch(TrainerCallback):
    """Remembers the learning rate of the last step."""

    learning_rate = 0.0

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.learning_rate = float(kwargs["optimizer"].param_groups[0]["lr"])


def _refuse(who: str, **asked: object) -> None:
    """Raises ValueError for an argument that a Trainer cannot honour; engines ask before the first round."""
    if given := [name for name, value in asked.items() if value is not None]:
        raise ValueError(f"{who} trains by its own Trainer, which takes no {' and no '.join(given)}: choose another method")


def _settle(trainer: Trainer, turn: Turn, num_steps: int | None, lr_scale: float) -> None:
    """Sets what a round asks for, in a copy of the arguments: a user may give the same ones in every round."""
    set_seed(turn.seed)  # again: a Trainer that is made seeds the generators by its arguments, alike in every round
    trainer.args = args = copy.copy(trainer.args)
    args.seed = turn.seed
    args.learning_rate *= lr_scale
    if num_steps is not None:
        args.max_steps = num_steps
    if lr_scale != 1.0 and trainer.optimizer is not None:
        raise ValueError(f"client {turn.id}: the Trainer has an optimiser already, so that its learning rate cannot be scaled")


def _check_optimizer(trainer: Trainer, model: TrainerModel, names: Collection[str], who: str) -> None:
    """Raises ValueError for an optimiser that was made before and holds other tensors than those that train."""
    optimizer: Any = trainer.optimizer
    if optimizer is None:
        return
    held = {id(x) for group in optimizer.param_groups for x in group["params"]}
    lacking = [n for n, x in tree.parameters(model.live()).items() if n in names and id(x) not in held]
    if lacking:
        raise ValueError(
            f"{who}: the Trainer's optimiser does not hold {lacking[0]!r}, which trains in this round: give the Trainer "
            "optimizer_cls_and_kwargs in place of an optimiser, so that it makes one when training begins"
        )


def _steps_of(trainer: Trainer, who: str) -> int:
    """Returns the optimiser steps of a round."""
    args = trainer.args
    if args.max_steps > 0:
        return args.max_steps
    try:
        batches = len(trainer.get_train_dataloader())
    except TypeError as error:
        raise ValueError(f"{who}: the Trainer's data have no length: set max_steps in its arguments") from error
    return max(1, math.ceil(args.num_train_epochs * max(1, math.ceil(batches / args.gradient_accumulation_steps))))


def _peer_of(k: int, trainer: Trainer, model: TrainerModel, who: str) -> Peer:
    """Returns the peer that a Trainer's own LoRA configuration and data describe."""
    data: Any = trainer.train_dataset
    if data is None or not hasattr(data, "__len__"):
        raise ValueError(
            f"{who}: the Trainer's train_dataset has no length: give a Peer, with num_examples, in place of the id"
        )
    return replace(peers_for([model.config.r], model.config, [len(data)], list(model.layers))[0], id=k)


def _check_scales(peer: Peer, model: TrainerModel, who: str) -> None:
    """Raises ValueError for a peer whose scale at a rank is not the one that the Trainer's model has there."""
    for name, (rank, scale) in model.scales().items():
        wanted = peer.scale_of(name, rank)
        if not math.isclose(wanted, scale, rel_tol=1e-6):
            raise ValueError(
                f"layer {name!r}: {who} has scale {wanted:g} at rank {rank}, the Trainer's model {scale:g}: give the Peer the "
                "lora_alpha, rslora and patterns of the LoraConfig, or the client its id alone, to read them from there"
            )
