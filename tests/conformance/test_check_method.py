"""Deliberately wrong methods: each breaks the law that it is made to break, and no other."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, cast

import pytest
import torch

from fedelta import lowrank as lr
from fedelta import tree
from fedelta.lowrank import LoRA
from fedelta.merging import ClientUpdate, merge
from fedelta.method import Client, ClientState, Method, State
from fedelta.methods import get_method
from fedelta.methods.fedavg import FedAvg
from fedelta.methods.fedsa_lora import FedSALoRA
from fedelta.methods.ffa_lora import FFALoRA
from fedelta.methods.flexlora import FlexLoRA
from fedelta.methods.zeropad import ZeroPad
from fedelta.peers import Peer
from fedelta.testing import LAWS, UNEQUAL_RANKS, ConformanceError, check_method, named
from fedelta.tree import Adapter, BaseDelta, Message, Tensors


def shifted(state: State, by: float) -> State:
    """The state with its head moved."""
    return {"adapter": replace(state["adapter"], dense=tree.map_tensors(lambda x: x + by, state["adapter"].dense))}


class LostScale(FlexLoRA):
    """Averages B A without s, as several public codes do."""

    def aggregate(self, t: int, state: State, updates: Sequence[ClientUpdate]) -> State:
        def raw(weights: Sequence[float], xs: Sequence[LoRA], old: LoRA) -> LoRA:
            exact = lr.stack(weights, [LoRA(x.B, x.A) for x in xs], dtype=torch.float64)
            return LoRA(*self._factors(lr.truncate(exact, old.rank, dtype=old.dtype, fill=old.A)), old.scale)

        return {"adapter": merge(raw, updates, state["adapter"])}

    def _factors(self, x: LoRA) -> tuple[torch.Tensor, torch.Tensor]:
        return x.B, x.A


@dataclass(frozen=True, kw_only=True)
class HiddenState(FedAvg):
    """Keeps a count on itself."""

    calls: list[int] = field(default_factory=list, compare=False)

    def aggregate(self, t: int, state: State, updates: Sequence[ClientUpdate]) -> State:
        self.calls.append(t)
        return shifted(super().aggregate(t, state, updates), 1e-3 * len(self.calls))


CALLS: list[int] = []


class GlobalState(FedAvg):
    """Keeps a count in its module."""

    def aggregate(self, t: int, state: State, updates: Sequence[ClientUpdate]) -> State:
        CALLS.append(t)
        return shifted(super().aggregate(t, state, updates), 1e-3 * len(CALLS))


class GlobalRandom(FedAvg):
    """Adds noise from torch's global generator."""

    def aggregate(self, t: int, state: State, updates: Sequence[ClientUpdate]) -> State:
        return shifted(super().aggregate(t, state, updates), float(torch.rand(())))


class UnseededRandom(FedAvg):
    """Adds noise from a generator that nobody can seed again."""

    def init(self, template: Adapter, peers: Sequence[Peer], *, seed: int = 0) -> State:
        generator = torch.Generator()
        generator.seed()
        return shifted(super().init(template, peers, seed=seed), float(torch.rand((), generator=generator)))


class NoSums(FedAvg):
    """A mean that does not offer itself as a sum, for whoever breaks `aggregate`."""

    sums = None
    summand = Method.summand
    from_mean = Method.from_mean


class OrderDependent(NoSums):
    """Takes the head of whoever arrives last."""

    decentralised = False

    def aggregate(self, t: int, state: State, updates: Sequence[ClientUpdate]) -> State:
        return {"adapter": replace(super().aggregate(t, state, updates)["adapter"], dense=updates[-1].content["adapter"].dense)}


class Mutating(NoSums):
    """Rescales the uploads in place."""

    def aggregate(self, t: int, state: State, updates: Sequence[ClientUpdate]) -> State:
        for u in updates:
            u.content["adapter"].layers["hidden"].B.mul_(1.0 + 1e-6)
        return super().aggregate(t, state, updates)


class CannotTravel(FedAvg):
    """Keeps in its state what no file can hold."""

    def aggregate(self, t: int, state: State, updates: Sequence[ClientUpdate]) -> State:
        return {**super().aggregate(t, state, updates), "version": float("nan")}


class Widening(FedAvg):
    """Hands out float32 whatever came in."""

    def broadcast(self, t: int, state: State, to: Peer) -> Message:
        down = super().broadcast(t, state, to)
        x = tree.parameters(down["adapter"])["hidden.lora_A"]
        return down if x.dtype == torch.float64 else tree.map_tensors(lambda x: x.to(torch.float32), down)


class WrongFormula(FedAvg):
    """Declares half of what it sends."""

    def traffic(self, t: int, template: Adapter, peer: Peer, peers: Sequence[Peer]) -> tuple[int, int]:
        down, up = super().traffic(t, template, peer, peers)
        return down, up // 2


class SecretFactor(FedAvg):
    """Sends a tensor that nobody was told of."""

    def local_update(self, t: int, down: Message, client_state: ClientState, client: Client) -> tuple[Message, ClientState]:
        up, client_state = super().local_update(t, down, client_state, client)
        return {**up, "extra": torch.zeros(7, dtype=torch.float64)}, client_state


class HeteroWithout(FedAvg):
    """Claims unequal ranks, and cannot."""

    hetero_rank = True


class LargestToAll(ZeroPad):
    """Claims unequal ranks, and sends the largest to everybody."""

    def broadcast(self, t: int, state: State, to: Peer) -> Message:
        return {"adapter": state["adapter"]}


class RefusesSilently(FedAvg):
    """Refuses unequal ranks without saying what to do."""

    def check(self, template: Adapter, peers: Sequence[Peer]) -> None:
        if len({p.rank for p in peers}) > 1:
            raise ValueError("bad ranks")


class StepSender(Method):
    """Sends the step that training took, and adds the mean of steps to its own state: nodes never meet."""

    paper = "made up"
    decentralised = True
    coordinates = "factors"

    def local_update(self, t: int, down: Message, client_state: ClientState, client: Client) -> tuple[Message, ClientState]:
        after, before = client.train(t, down["adapter"]).adapter, tree.parameters(down["adapter"])
        return {"adapter": after, "step": {n: x - before[n] for n, x in tree.parameters(after).items()}}, client_state

    def aggregate(self, t: int, state: State, updates: Sequence[ClientUpdate]) -> State:
        merged = FedAvg().aggregate(t, state, updates)  # for its guards
        if not all("step" in u.content for u in updates):
            return merged
        old, ordered = tree.parameters(state["adapter"]), sorted(updates, key=lambda u: u.sender.id)
        step = {n: sum(u.weight * u.content["step"][n] for u in ordered) for n in old}
        return {"adapter": tree.with_parameters(state["adapter"], {n: x + step[n] for n, x in old.items()})}

    exempt: ClassVar[Mapping[str, str]] = {
        "bytes": "steps travel beside positions, for the sake of the example",
        "fixed point": "rounding of position plus step",
    }


class PlainSum(FedAvg):
    """Sums w x, so that three copies of a thing are not quite that thing."""

    def aggregate(self, t: int, state: State, updates: Sequence[ClientUpdate]) -> State:
        merged = super().aggregate(t, state, updates)["adapter"]
        alike = [tree.map(lambda x, old: lr.rescale(x, old.scale), u.content["adapter"], merged) for u in updates]
        sums = [{n: u.weight * x for n, x in tree.parameters(a).items()} for u, a in zip(updates, alike, strict=True)]
        sums.sort(key=lambda x: float(x["hidden.lora_A"].sum()))
        return {"adapter": tree.with_parameters(merged, {n: sum(x[n] for x in sums) for n in sums[0]})}


class Misread(FedAvg):
    """Says that an upload means half of what it does."""

    one_shot = False

    def position(self, t: int, state: State, update: ClientUpdate) -> tuple[Adapter, BaseDelta | None]:
        return tree.map(lambda x: LoRA(x.B / 2, x.A, x.scale), update.content["adapter"]), None


class Noted(dict[str, Any]):
    """A state with a note on it that no file will hold."""

    note = 0.0


class KeepsNotes(NoSums):
    """Reads what a checkpoint loses."""

    def aggregate(self, t: int, state: State, updates: Sequence[ClientUpdate]) -> State:
        after = Noted(shifted(super().aggregate(t, state, updates), getattr(state, "note", 0.0)))
        after.note = 1e-6
        return after


class Uniform(NoSums):
    """Replaces whatever weights it is given."""

    def aggregate(self, t: int, state: State, updates: Sequence[ClientUpdate]) -> State:
        return super().aggregate(t, state, [replace(u, weight=1 / len(updates)) for u in updates])


class Averages(FedAvg):
    """Lets NaN through."""

    def aggregate(self, t: int, state: State, updates: Sequence[ClientUpdate]) -> State:
        clean = [replace(u, content=tree.map_tensors(torch.nan_to_num, u.content)) for u in updates]
        return super().aggregate(t, state, clean)


class Peeking(FedAvg):
    """Lets validation scores decide, without saying that it needs them."""

    def aggregate(self, t: int, state: State, updates: Sequence[ClientUpdate]) -> State:
        return shifted(super().aggregate(t, state, updates), sum(u.metrics.get("validation_loss", 0.0) for u in updates))


class OtherSum(FedAvg):
    """Leads elsewhere by a sum than by updates."""

    def from_mean(self, t: int, state: State, mean: Tensors) -> State:
        return shifted(super().from_mean(t, state, mean), 1e-3)


class SecretSum(FedAvg):
    """Can be summed, and does not say so."""

    sums = None


class LoudWhenIdle(FedAvg):
    """Sends where a client stands in place of what it learned."""

    def summand(self, t: int, down: Message, up: Message, peer: Peer, ranks: Mapping[str, int] | None = None) -> Tensors:
        return {n: x + 1.0 for n, x in super().summand(t, down, up, peer, ranks).items()}


class OneScaleForAll(FedAvg):
    """Forgets in a sum that clients may have scales of their own."""

    def summand(self, t: int, down: Message, up: Message, peer: Peer, ranks: Mapping[str, int] | None = None) -> Tensors:
        terms = super().summand(t, down, up, peer, ranks)
        common = 8.0 / (peer.lora_alpha or 8.0)
        return {n: x * common if n.endswith("lora_B") else x for n, x in terms.items()}


class OnlyPadded(FedAvg):
    """Cannot say what a client adds before the server's ranks are known."""

    def summand(self, t: int, down: Message, up: Message, peer: Peer, ranks: Mapping[str, int] | None = None) -> Tensors:
        assert ranks is not None
        return super().summand(t, down, up, peer, ranks)


class OtherUnpadded(FedAvg):
    """Adds something else where it knows no ranks to pad to."""

    def summand(self, t: int, down: Message, up: Message, peer: Peer, ranks: Mapping[str, int] | None = None) -> Tensors:
        terms = super().summand(t, down, up, peer, ranks)
        return terms if ranks is not None else {n: 2.0 * x for n, x in terms.items()}


class MisspeltSums(FedAvg):
    """Claims a kind of sum that there is not."""

    sums = cast("Any", "exakt")


class TrueSums(FedAvg):
    """Says yes where a kind of sum belongs."""

    sums = cast("Any", True)


class MisspeltCoordinates(FedAvg):
    """Has coordinates of no known kind."""

    coordinates = cast("Any", "fctors")


class MisspeltSource(FedAvg):
    """Was read where nobody can look."""

    follows = cast("Any", "hearsay")


class TextForTruth(FedAvg):
    """Answers a yes-or-no claim with a text, which is true whatever it says."""

    personal = cast("Any", "no")


class Impersonal(FedAvg):
    """Claims models of their own for clients that have none."""

    personal = True


class AsksInSecret(FFALoRA):
    """Freezes A, and does not say that its clients must."""

    asks = frozenset()


class SecretlyPersonal(FedSALoRA):
    """Has them, and does not say so."""

    personal = False

    exempt: ClassVar[Mapping[str, str]] = {"one client": "B stays at the client", "scale": "B stays at the client"}


class NotAtOnce(FedSALoRA):
    """Claims to aggregate without training, where B never travels."""

    one_shot = True


class Idle(FedAvg):
    """Sends back what it got."""

    def local_update(self, t: int, down: Message, client_state: ClientState, client: Client) -> tuple[Message, ClientState]:
        client.train(t, down["adapter"])
        return self.upload(down["adapter"]), client_state

    def position(self, t: int, state: State, update: ClientUpdate) -> tuple[Adapter, BaseDelta | None]:
        return update.content["adapter"], None


class RowMajor(FedAvg):
    """Looks at no shape but the rank, and averages what has too few layers."""

    def aggregate(self, t: int, state: State, updates: Sequence[ClientUpdate]) -> State:
        layers = set.intersection(*(set(u.content["adapter"].layers) for u in updates)) if updates else set()
        if layers and layers != set(state["adapter"].layers):
            return state
        return super().aggregate(t, state, updates)


WRONG: dict[str, tuple[Any, str]] = {
    "lost scale": (LostScale, "scale"),
    "state on the object": (HiddenState, "pure"),
    "state in the module": (GlobalState, "pure"),
    "global generator": (GlobalRandom, "own generators"),
    "unseeded generator": (UnseededRandom, "deterministic"),
    "order of arrival": (OrderDependent, "order-free"),
    "changes its arguments": (Mutating, "pure"),
    "NaN in the state": (CannotTravel, "serialisable"),
    "a note on the state": (KeepsNotes, "resumable"),
    "wider dtype": (Widening, "dtype"),
    "dead components": (ZeroPad(faithful=True), "no dead component"),
    "a sum without differences": (PlainSum, "fixed point"),
    "misreads uploads": (Misread, "one client"),
    "wrong formula of bytes": (WrongFormula, "bytes"),
    "a tensor that is not declared": (SecretFactor, "bytes"),
    "claims unequal ranks": (HeteroWithout, "unequal ranks"),
    "sends the largest rank": (LargestToAll, "unequal ranks"),
    "refuses without a remedy": (RefusesSilently, "unequal ranks"),
    "accumulates differences": (StepSender, "decentralised"),
    "overwrites weights": (Uniform, "weights"),
    "swallows NaN": (Averages, "finite"),
    "reads scores": (Peeking, "validation"),
    "another state from a sum": (OtherSum, "sums"),
    "is a sum": (SecretSum, "sums"),
    "an idle client that adds to the sum": (LoudWhenIdle, "sums"),
    "a sum at one scale": (OneScaleForAll, "sums"),
    "a sum that needs the server's ranks": (OnlyPadded, "sums"),
    "another sum without ranks": (OtherUnpadded, "sums"),
    "a kind of sum that is none": (MisspeltSums, "claims"),
    "a sum of kind True": (TrueSums, "claims"),
    "coordinates that are none": (MisspeltCoordinates, "claims"),
    "a source that is none": (MisspeltSource, "claims"),
    "a text for a claim of yes or no": (TextForTruth, "claims"),
    "claims to be personal": (Impersonal, "personal"),
    "is personal": (SecretlyPersonal, "personal"),
    "an argument that it does not claim": (AsksInSecret, "asks"),
    "cannot do without training": (NotAtOnce, "one shot"),
    "learns nothing": (Idle, "learns"),
    "ignores missing layers": (RowMajor, "fits"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_method_breaks_exactly_the_law_that_it_is_made_to_break(wrong: str) -> None:
    method, law = WRONG[wrong]
    report = check_method(method, raise_on_failure=False)
    assert list(report.violations) == [law], str(report)


def test_every_law_has_a_method_that_breaks_it() -> None:
    broken = {law for _, law in WRONG.values()}
    # What breaks on the complete graph alone is the engine: a method that is pure and order-free cannot tell.
    assert {law.name for law in (UNEQUAL_RANKS, *LAWS)} - broken == {"complete graph"}


def test_a_broken_law_raises_with_the_report() -> None:
    message = r"(?s)WrongFormula: 1 of \d+ laws are broken.*bytes: broken: round 0, client 0"
    with pytest.raises(ConformanceError, match=message) as raised:
        check_method(WrongFormula)
    assert list(raised.value.report.violations) == ["bytes"]


def test_no_law_is_skipped_in_silence() -> None:
    report = check_method(get_method("lora_a2"))
    assert [v.law for v in report.verdicts] == [law.name for law in (UNEQUAL_RANKS, *LAWS)]
    assert all(v.detail for v in report.verdicts if v.outcome != "kept")
    assert {v.law for v in report.verdicts if v.outcome == "exempt"} == {"bytes"}
    assert report.as_dict()["ok"] is True


def test_a_claim_that_cannot_be_is_named_with_what_it_may_be() -> None:
    report = check_method(MisspeltSums, raise_on_failure=False)
    assert report.violations["claims"] == "sums = 'exakt' must be 'exact', 'sketch' or None"


def test_unequal_scales_are_asked_of_a_method_that_takes_them_alone() -> None:
    class OneAlpha(FedAvg):
        def check(self, template: Adapter, peers: Sequence[Peer]) -> None:
            super().check(template, peers)
            if len({p.lora_alpha for p in peers}) > 1:
                raise ValueError("one lora_alpha for all")

        exempt: ClassVar[Mapping[str, str]] = {"scale": "one lora_alpha for all"}

    assert check_method(OneAlpha).ok


def test_what_is_impure_is_not_judged_further() -> None:
    report = check_method(GlobalState, raise_on_failure=False)
    at = [v.law for v in report.verdicts].index("pure")
    assert {v.outcome for v in report.verdicts[at + 1 :]} == {"not asked"}


def test_exemptions_name_a_law_and_a_reason() -> None:
    class NoLaw(FedAvg):
        exempt: ClassVar[Mapping[str, str]] = {"byte": "they are many"}

    class NoReason(FedAvg):
        exempt: ClassVar[Mapping[str, str]] = {"bytes": " "}

    with pytest.raises(ValueError, match=r"NoLaw is exempt from 'byte', which is no law; did you mean 'bytes'\?"):
        check_method(NoLaw)
    with pytest.raises(ValueError, match="NoReason is exempt from 'bytes' without a reason"):
        check_method(NoReason)


def test_a_method_is_checked_with_what_it_declares_lawful() -> None:
    assert check_method(named("florist")).subject == "FLoRIST(tau=1.0)"


@pytest.mark.parametrize("ranks", [(1, 5, 2), (4, 2, 3, 1)])
def test_ranks_and_seed_can_be_chosen(ranks: tuple[int, ...]) -> None:
    assert check_method(get_method("flexlora", sigma_on="both"), hetero_ranks=ranks, seed=3).ok


def test_methods_come_from_files(tmp_path: Path) -> None:
    template = Path(__file__).parents[2] / "src" / "fedelta" / "methods" / "_template.py"
    assert named(str(template)).__name__ == "DampedMean"
    cases = {
        "": "defines none",
        "import nothing_of_this_name": "cannot be imported: ModuleNotFoundError",
        "raise SystemExit(0)": r"case2.py cannot be imported: SystemExit: 0",
        "import sys; sys.exit()": r"case3.py cannot be imported: SystemExit",
    }
    for k, (text, message) in enumerate(cases.items()):
        path = tmp_path / f"case{k}.py"
        path.write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match=message):
            named(str(path))
    with pytest.raises(FileNotFoundError, match="no file"):
        named(str(tmp_path / "nowhere.py"))


def test_a_class_that_cannot_be_made_is_answered_with_a_remedy() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Needy(FedAvg):
        rate: float

    with pytest.raises(ValueError, match="Needy cannot be made without arguments"):
        check_method(Needy)
