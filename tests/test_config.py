"""Config dataclasses from mappings, and the registry."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from rankfold._config import build_config, changed, config_to_dict, is_integer, is_number, require
from rankfold._registry import Registry
from rankfold.errors import ConfigError, UnknownNameError


@dataclass(frozen=True, slots=True, kw_only=True)
class Wheels:
    count: int = 4
    sizes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        require(is_integer(self.count) and self.count > 0, "count", self.count, "an integer above 0")


class Car(Wheels):
    name = "car"


class OtherCar(Wheels):
    name = "car"


class Cart(Wheels):
    name = "cart"


def test_defaults_mappings_and_instances() -> None:
    assert build_config(Wheels, None, owner="cars") == Wheels()
    assert build_config(Wheels, {"count": 3, "sizes": [1, [2]]}, owner="cars") == Wheels(count=3, sizes=(1, (2,)))
    own = Wheels(count=9)
    assert build_config(Wheels, own, owner="cars") is own
    assert build_config(Wheels, config_to_dict(own), owner="cars") == own != Wheels()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"cuont": 3}, UnknownNameError, "unknown option 'cuont' of cars. Did you mean 'count'"),
        ({"count": 0}, ConfigError, "count must be an integer above 0. Got 0 instead"),
        ({"count": "four"}, ConfigError, "count must be an integer above 0. Got 'four' instead"),
        ({3: 4}, UnknownNameError, "unknown option 3 of cars"),
        ("count=3", ConfigError, "options of cars must be a mapping or Wheels. Got str instead"),
        (3, ConfigError, "Got int instead"),
    ],
)
def test_wrong_options(options: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        build_config(Wheels, options, owner="cars")


def test_numbers() -> None:
    assert [is_number(v) for v in (1, 0.5, True, "1", None)] == [True, True, False, False, False]
    assert [is_integer(v) for v in (1, 0.5, True, "1", None)] == [True, False, False, False, False]


def test_registry() -> None:
    registry: Registry[Any] = Registry("vehicle")
    registry.register(Car, summary="four wheels")
    registry.register(Cart, summary="two wheels")
    assert registry.entry("car").plugin is Car
    assert registry.names() == ["car", "cart"]
    assert registry.names("*t") == ["cart"]
    assert [entry.summary for entry in registry] == ["four wheels", "two wheels"]
    with pytest.raises(ValueError, match="vehicle 'car' is already registered"):
        registry.register(OtherCar, summary="")
    assert registry.entry("car").plugin is Car
    with pytest.raises(UnknownNameError, match="unknown vehicle 'crt'. Did you mean 'cart'.*Choose from: car, cart"):
        registry.get("crt")
    with pytest.raises(UnknownNameError, match="Did you mean 'cart'"):
        registry.entry("crt")
    for name in (None, 3, ["car"], {"car": 1}):
        with pytest.raises(UnknownNameError, match="Choose from: car, cart"):
            registry.get(name)


def test_plugins_by_name_or_object() -> None:
    registry: Registry[Any] = Registry("vehicle")
    registry.register(Car, summary="four wheels")
    assert type(registry.get("car")) is Car
    assert registry.get("car", {"count": 3}) == Car(count=3) != registry.get("car")
    own = Car(count=3)
    assert registry.get(own) is registry.get("car", own) is own
    with pytest.raises(UnknownNameError, match="unknown option 'cuont' of vehicle 'car'"):
        registry.get("car", {"cuont": 3})
    with pytest.raises(ConfigError, match="vehicle 'car' is given as an object. Set its options there"):
        registry.get(own, {"count": 3})
    with pytest.raises(ConfigError, match=r"must be a name or an object: 'car' or Car\(\)"):
        registry.get(Car)
    for stranger in (Cart(), Wheels(), Cart):  # not registered
        with pytest.raises(UnknownNameError, match="Choose from: car"):
            registry.get(stranger)


def test_changed_options() -> None:
    assert changed(Wheels()) == changed(Wheels(count=4)) == {}
    assert changed(Wheels(sizes=(1, 2))) == {"sizes": [1, 2]}
    assert build_config(Wheels, changed(Wheels(count=2)), owner="cars") == Wheels(count=2)
