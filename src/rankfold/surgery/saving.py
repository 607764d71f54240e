"""Other libraries' ways to save a model, which do not support factored layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from rankfold.errors import ModelError
from rankfold.surgery.factored import Factored

_METHODS = ("save_pretrained", "push_to_hub")


def refuse_save_pretrained_(model: nn.Module) -> None:
    """Let ``save_pretrained`` and ``push_to_hub`` of transformers, diffusers, PEFT and others raise.

    That is, of every module that holds factors.

    They would write a folder from which ``from_pretrained`` builds the dense architecture again, with random numbers
    for all weights that have become factors, and with no more than a warning. The ``Trainer`` of transformers calls the
    same method. Methods are replaced on the instances only.
    """
    for module in model.modules():
        # Asked of the class: wrappers hand on the attributes of what they wrap.
        methods = [name for name in _METHODS if callable(getattr(type(module), name, None))]
        if methods and any(isinstance(part, Factored) for part in module.modules()):
            for name in methods:
                vars(module)[name] = Refusal(type(module).__name__, name, stripped=False)


def refuse_stripped_(model: nn.Module) -> None:
    """Let what raises already know that the model consists of plain modules now."""
    for module in model.modules():
        for name in _METHODS:
            if isinstance(vars(module).get(name), Refusal):
                vars(module)[name] = Refusal(type(module).__name__, name, stripped=True)


class Refusal:
    """A method that raises.

    Parameters
    ----------
    model, method : str
        The class of the model that it belongs to, and its own name.
    stripped : bool
        Whether the model needs rankfold no longer. This must not need it either, to be unpickled: it is pickled as
        ``"{reason}".format`` then, which raises a KeyError with the reason, whatever it is called with.
    """

    def __init__(self, model: str, method: str, stripped: bool) -> None:
        self.model, self.method, self.stripped = model, method, stripped

    def __call__(self, *args: object, **kwargs: object) -> None:  # noqa: ARG002 - whatever the method takes
        """Raise `ModelError`."""
        raise ModelError(
            f"{self.model}.{self.method} would write weights that from_pretrained cannot load: this model was "
            f"compressed, and {self.model}.from_pretrained would fill the layers in question with random numbers. "
            + (
                "Save the model with rankfold.save before stripping it, or its state_dict with torch.save."
                if self.stripped
                else "Save it with rankfold.save(model, folder) and load it with rankfold.load(folder, dense), where "
                f"dense is a new {self.model}(config) or AutoModel.from_config(config); the Trainer of transformers "
                "needs save_strategy='no'."
            )
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> Refusal:
        return self

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        if not self.stripped:
            return Refusal, (self.model, self.method, self.stripped)
        return getattr, (f"{{{self.model} was compressed and from_pretrained cannot load it}}", "format")
