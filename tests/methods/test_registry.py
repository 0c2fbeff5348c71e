"""Names, presets and options of methods."""

from __future__ import annotations

import pytest

from rdcache.errors import UnknownNameError, UsageError
from rdcache.methods import find_method, list_methods


def test_the_catalogue_tells_what_each_method_needs() -> None:
    cards = {card.name: card for card in list_methods()}
    assert {"rd", "rd-paper", "direct", "none"} <= cards.keys()
    assert all(card.title and card.needs and card.paper for card in cards.values())


def test_an_unknown_method_is_answered_with_its_neighbours() -> None:
    with pytest.raises(UnknownNameError, match="rd-paper"):
        find_method("rd_papr")


def test_the_papers_preset_is_the_literal_reading() -> None:
    config = find_method("rd-paper").config({}).model_dump()
    assert config["cka_estimator"] == "biased"
    assert config["kl_grad"] == config["cka_grad"] == "both"
    assert config["temperature"] == 4.0
    assert find_method("rd-paper").training["schedule"] == "step"
    assert find_method("rd-paper").training["lr"] == 5e-3


def test_what_a_user_gives_overrides_a_preset_and_the_rest_stays() -> None:
    config = find_method("rd-paper").config({"cka_estimator": "unbiased"}).model_dump()
    assert config["cka_estimator"] == "unbiased"
    assert config["kl_grad"] == "both"


def test_wrong_options_are_one_sentence() -> None:
    with pytest.raises(UnknownNameError, match=r"no option of rd named 'temprature'[\s\S]*temper"):
        find_method("rd").config({"temprature": 3})
    with pytest.raises(UsageError, match="temperature: input should be greater than 0"):
        find_method("rd").config({"temperature": -1})


def test_options_that_nothing_would_read_are_refused() -> None:
    hint = find_method("hint")
    for given in ({"temperature": 2.0}, {"teacher_epochs": 3}):
        with pytest.raises(UsageError, match="nothing of hint would read it"):
            hint.require_read(given)
        hint.require_read({**given, "kd_weight": 1.0, "teacher_head": "rd"})
    with pytest.raises(UsageError, match="teacher_epochs is given"):
        find_method("kd").require_read({"teacher_epochs": 3, "temperature": 2.0})


@pytest.mark.parametrize("name", [card.name for card in list_methods()])
def test_all_options_may_be_given_at_their_defaults(name: str) -> None:
    """As they are in a run's resolved config, with the one head that a call gives all methods."""
    card = find_method(name)
    complete = card.config({}).model_dump()
    if "teacher_head" in complete:
        complete["teacher_head"] = "linear-probe"
    card.require_read(complete)
    assert card.config(complete).model_dump() == complete
