"""Other libraries' methods to save a model, which do not support factored layers: replaced, or made to raise."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from torch import nn

from rankfold.errors import ModelError
from rankfold.records import Narrowing
from rankfold.surgery.factored import Factored

_METHODS = ("save_pretrained", "push_to_hub")

Saver = Callable[..., bool]
"""Saves a compressed model to a folder, with the arguments of ``save_pretrained``; False if it cannot be loaded."""

_savers: list[Saver] = []


def save_pretrained_with(saver: Saver) -> None:
    """Set the function that ``save_pretrained`` of compressed models calls; `rankfold.storage` provides it."""
    _savers[:] = [saver]


def replace_save_pretrained_(model: nn.Module, narrowing: Narrowing) -> None:
    """Replace ``save_pretrained`` and ``push_to_hub`` of modules that contain factors or have lost channels.

    With these methods of transformers, diffusers, PEFT and others, and with the ``Trainer`` that calls them,
    ``from_pretrained`` would build the dense architecture again and fill the factored weights with random numbers,
    with only a warning. ``save_pretrained`` of the model now writes what `rankfold.load_pretrained` loads, if that can
    build the network. ``push_to_hub``, and both methods of parts of the model, raise.
    """
    narrowed = {name for group in narrowing for name in (axis.name for axis in group.axes)}
    for path, module in model.named_modules():
        # Look at the class, because wrappers forward the attributes of the wrapped module.
        methods = [name for name in _METHODS if callable(getattr(type(module), name, None))]
        inside = any(not path or name.startswith(f"{path}.") for name in narrowed)
        if methods and (inside or any(isinstance(part, Factored) for part in module.modules())):
            for name in methods:
                vars(module)[name] = Refusal(type(module).__name__, name, stripped=False)
            if not path and "save_pretrained" in methods:
                vars(module)["save_pretrained"] = SavePretrained(module)


def refuse_stripped_(model: nn.Module) -> None:
    """Make these methods raise on a model that now consists of plain modules."""
    for module in model.modules():
        for name in _METHODS:
            if isinstance(vars(module).get(name), Refusal | SavePretrained):
                vars(module)[name] = Refusal(type(module).__name__, name, stripped=True)


class SavePretrained:
    """The method ``save_pretrained`` of a compressed model.

    It refers to the model weakly, so that a model is still freed as soon as nothing else refers to it.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model, self._name = weakref.ref(model), type(model).__name__

    def __call__(self, save_directory: Any, **options: Any) -> None:
        """Save the model, or raise `ModelError` if its network is unknown."""
        model = self._model()
        if model is None:
            raise ModelError(
                f"the {self._name} was freed before save_pretrained ran. Keep it in a variable: model = ...; "
                "model.save_pretrained(...)."
            )
        if not _savers or not _savers[0](model, save_directory, **options):
            Refusal(self._name, "save_pretrained", stripped=False)()

    def __deepcopy__(self, memo: dict[int, Any]) -> SavePretrained:
        model = self._model()
        return self if model is None else SavePretrained(memo.get(id(model), model))

    def __reduce__(self) -> tuple[Any, ...]:
        # The model is the state, because pickle then allows that it refers to this object.
        return SavePretrained.__new__, (SavePretrained,), {"model": self._model()}

    def __setstate__(self, state: dict[str, nn.Module]) -> None:
        self.__init__(state["model"])


class Refusal:
    """A method that raises.

    Parameters
    ----------
    model, method : str
        Names of the model's class and of the method.
    stripped : bool
        Whether the model no longer requires rankfold. To be unpickled without rankfold, the method is then pickled as
        ``"{reason}".format``, which raises a KeyError with the reason for any arguments.
    """

    def __init__(self, model: str, method: str, stripped: bool) -> None:
        self.model, self.method, self.stripped = model, method, stripped

    def __call__(self, *args: object, **kwargs: object) -> None:  # noqa: ARG002 - any signature
        """Raise `ModelError`."""
        raise ModelError(
            f"{self.model}.{self.method} would write weights that from_pretrained cannot load: this model was "
            f"compressed, and {self.model}.from_pretrained would build the original layers again. "
            + (
                "Save the model with rankfold.save before stripping it, or its state_dict with torch.save."
                if self.stripped
                else "Save it with rankfold.save(model, folder) and load it with rankfold.load(folder, dense), where "
                f"dense is a new {self.model} of the same configuration; the Trainer of transformers then needs "
                "save_strategy='no'."
            )
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> Refusal:
        return self

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        if not self.stripped:
            return Refusal, (self.model, self.method, self.stripped)
        return getattr, (f"{{{self.model} was compressed and from_pretrained cannot load it}}", "format")
