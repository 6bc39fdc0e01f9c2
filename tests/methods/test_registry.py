"""Methods by name, their claims, and what the registry says of what it does not know."""

import inspect
import pkgutil
import sys
from typing import get_args, get_type_hints, is_typeddict

import pytest

import fedelta
from fedelta import methods
from fedelta.method import Method, Provenance
from fedelta.methods import get_method, list_methods, method_class
from fedelta.methods._compose.parts import PARTS
from fedelta.methods._compose.rules import LocalRule
from fedelta.testing import scene_of


def test_every_module_without_an_underscore_is_a_method() -> None:
    modules = [m.name for m in pkgutil.iter_modules(methods.__path__) if not m.name.startswith("_")]
    assert list_methods() == sorted(modules)
    assert fedelta.list_methods() == list_methods()


@pytest.mark.parametrize("name", list_methods())
def test_a_method_is_a_frozen_value_with_a_documented_algorithm(name: str) -> None:
    cls = method_class(name)
    assert get_method(name) == cls()
    assert hash(get_method(name)) == hash(cls())
    assert isinstance(get_method(name), Method)
    assert "Algorithm:" in (inspect.getdoc(cls) or "")
    assert cls.paper
    assert vars(cls).get("follows") in get_args(Provenance), f"{name} must say itself where its formula was read"
    assert cls.travels
    assert getattr(methods, cls.__name__) is cls
    assert cls.__name__ in dir(methods)


def state_types() -> list[set[str]]:
    """The entries of every TypedDict of a state in the methods' files."""
    modules = [m for name, m in sys.modules.items() if name.startswith("fedelta.methods.")]
    found = [c for m in modules for c in vars(m).values() if is_typeddict(c) and c.__name__.endswith("State")]
    return [set(get_type_hints(c)) for c in found]


@pytest.mark.parametrize("name", list_methods())
def test_a_state_with_more_than_an_adapter_is_typed(name: str) -> None:
    for done in scene_of(method_class(name)).rounds:
        states = [{key: x for key, x in done.state.items() if key != PARTS}]
        if issubclass(method_class(name), LocalRule):
            states += done.state.get(PARTS, {}).values()
        for state in states:
            assert set(state) == {"adapter"} or set(state) in state_types()


def test_aliases() -> None:
    assert method_class("fedit") is methods.FedAvg
    assert method_class("hlora") is methods.FlexLoRA
    assert method_class("rb_lora") is methods.RaFLoRA
    assert not {"fedit", "hlora", "rb_lora"} & set(list_methods())


def test_unknown_names_are_answered_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"no method is called 'flexlroa'; did you mean 'flexlora'\? There are centralised"):
        get_method("flexlroa")
    with pytest.raises(ValueError, match=r"no hyper-parameter 'sigma_no'; did you mean 'sigma_on'\? It has sigma_on"):
        get_method("flexlora", sigma_no="A")
    with pytest.raises(ValueError, match=r"no hyper-parameter 'mu'; it has none"):
        get_method("fedavg", mu=1.0)
    with pytest.raises(ValueError, match=r"FlexLoRA: sigma_on must be 'A', 'B' or 'both', got 'C'"):
        get_method("flexlora", sigma_on="C")
    with pytest.raises(AttributeError, match="has no attribute 'NoSuchMethod'"):
        _ = methods.NoSuchMethod


def test_the_template_is_a_method_that_works(fake_round) -> None:
    from fedelta.methods._template import DampedMean

    done = fake_round((3, 3))
    still, whole = done.run(DampedMean(rate=0.0)), done.run(DampedMean(rate=1.0))
    reference = done.run(get_method("fedavg"))
    for layer, x in reference["adapter"].layers.items():
        assert not still["adapter"].layers[layer].B.any()
        assert whole["adapter"].layers[layer].dense() == pytest.approx(x.dense())
