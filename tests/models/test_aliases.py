"""Model aliases: a packaged folder first, then a fetched one, the Hub id without either, every other name untouched."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from fedelta.models.aliases import ALIASES, PackagedModel, missing_alias, portable_name, resolve_model, stand_in

MakePackage = Callable[..., PackagedModel]
UseAlias = Callable[[PackagedModel], None]


@pytest.fixture
def make_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakePackage:
    """A package on the path whose import would fail, so that a test sees if anyone imports it."""

    def make(name: str, *, model: bool) -> PackagedModel:
        package = tmp_path / name
        package.mkdir()
        (package / "__init__.py").write_text("raise RuntimeError('imported, not located')\n")
        if model:
            (package / "model").mkdir()
            (package / "model" / "config.json").write_text("{}")
        return PackagedModel(package=name, folder="model", hub_id="somebody/some-model")

    monkeypatch.syspath_prepend(str(tmp_path))
    return make


@pytest.fixture
def use_alias(monkeypatch: pytest.MonkeyPatch) -> UseAlias:
    def use(model: PackagedModel) -> None:
        monkeypatch.setattr("fedelta.models.aliases.ALIASES", {"tiny": model})

    return use


def test_an_installed_package_gives_its_folder_without_being_imported(
    make_package: MakePackage, use_alias: UseAlias, tmp_path: Path
):
    use_alias(make_package("carries_a_model", model=True))
    assert resolve_model("tiny") == resolve_model("somebody/some-model") == str(tmp_path / "carries_a_model" / "model")
    assert "carries_a_model" not in sys.modules


def test_a_missing_package_gives_the_hub_id(use_alias: UseAlias):
    use_alias(PackagedModel(package="no_such_package_here", folder="model", hub_id="somebody/some-model"))
    assert resolve_model("tiny") == "somebody/some-model"


def test_a_package_without_its_model_gives_the_hub_id(make_package: MakePackage, use_alias: UseAlias):
    use_alias(make_package("carries_nothing", model=False))
    assert resolve_model("tiny") == "somebody/some-model"


@pytest.mark.parametrize("name", ["bert-base-uncased", "somebody/some-model", "./minilm", "MiniLM"])
def test_other_names_pass_through(name: str):
    assert resolve_model(name) == name


def test_what_is_written_down_means_something_elsewhere(make_package: MakePackage, use_alias: UseAlias):
    use_alias(make_package("carries_a_model", model=True))
    for name in ("tiny", resolve_model("tiny"), "somebody/some-model"):
        assert portable_name(name) == "somebody/some-model"
    assert portable_name("./tiny") == "./tiny"


def test_a_fetched_folder_is_taken_where_no_package_is(
    make_package: MakePackage, use_alias: UseAlias, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("FEDELTA_CACHE", str(tmp_path / "cache"))
    model = PackagedModel(hub_id="somebody/some-model")
    use_alias(model)
    assert (missing_alias("tiny"), missing_alias("somebody/some-model"), missing_alias("other")) == ("tiny", "tiny", None)
    fetched = tmp_path / "cache" / "models" / "tiny"
    fetched.mkdir(parents=True)
    (fetched / "config.json").write_text("{}")
    assert resolve_model("tiny") == resolve_model("somebody/some-model") == str(fetched)
    assert missing_alias("tiny") is None
    # Other weights than the Hub's go by the alias alone.
    use_alias(replace(model, release="cut short"))
    assert (resolve_model("tiny"), resolve_model("somebody/some-model")) == (str(fetched), "somebody/some-model")
    assert stand_in("somebody/some-model") == ("tiny", fetched)
    use_alias(make_package("carries_a_model", model=True))
    assert resolve_model("tiny") == str(tmp_path / "carries_a_model" / "model")


@pytest.mark.parametrize("alias", ALIASES)
def test_each_alias_says_all_that_fetching_takes(alias: str):
    from fedelta.models.fetched.converters import CONVERTERS

    model = ALIASES[alias]
    assert model.converter in CONVERTERS
    assert model.license
    assert model.room > 2e8
    assert model.wheels
    assert all(len(wheel.sha256) == 64 and set(wheel.sha256) <= set("0123456789abcdef") for wheel in model.wheels)


def test_minilm_resolves_to_the_packaged_encoder(minilm: Path):
    assert resolve_model("minilm") == str(minilm)
    assert (minilm / "model.safetensors").is_file()
    assert ALIASES["minilm"].hub_id == "sentence-transformers/all-MiniLM-L6-v2"
