"""Disable other libraries' methods to save a model, which do not support factored layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from rankfold.errors import ModelError
from rankfold.records import Narrowing
from rankfold.surgery.factored import Factored

_METHODS = ("save_pretrained", "push_to_hub")


def refuse_save_pretrained_(model: nn.Module, narrowing: Narrowing) -> None:
    """Make ``save_pretrained`` and ``push_to_hub`` raise, on modules that contain factors or have lost channels.

    With these methods of transformers, diffusers, PEFT and others, and with the ``Trainer`` that calls them,
    ``from_pretrained`` would build the dense architecture again and fill the factored weights with random numbers,
    with only a warning.
    """
    narrowed = {name for group in narrowing for name in (axis.name for axis in group.axes)}
    for path, module in model.named_modules():
        # Look at the class, because wrappers forward the attributes of the wrapped module.
        methods = [name for name in _METHODS if callable(getattr(type(module), name, None))]
        inside = any(not path or name.startswith(f"{path}.") for name in narrowed)
        if methods and (inside or any(isinstance(part, Factored) for part in module.modules())):
            for name in methods:
                vars(module)[name] = Refusal(type(module).__name__, name, stripped=False)


def refuse_stripped_(model: nn.Module) -> None:
    """Adapt the methods that raise to a model that now consists of plain modules."""
    for module in model.modules():
        for name in _METHODS:
            if isinstance(vars(module).get(name), Refusal):
                vars(module)[name] = Refusal(type(module).__name__, name, stripped=True)


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
