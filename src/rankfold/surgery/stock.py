"""Stock layers without initial values."""

from __future__ import annotations

from functools import cache

from torch import nn


def uninitialised(kind: type[nn.Module], **options: object) -> nn.Module:
    """Construct a layer without drawing random numbers: the library never touches the global generator.

    As ``torch.nn.utils.skip_init``, which runs the initialisation on the meta device and takes ten times as long.
    """
    module = _bare(kind)(**options)
    module.__class__ = kind
    return module


@cache
def _bare(kind: type[nn.Module]) -> type[nn.Module]:
    return type(kind.__name__, (kind,), {"reset_parameters": lambda self: None})  # noqa: ARG005 - torch's signature
