"""What a layer or a model costs."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Costs that add up over layers.

    Parameters
    ----------
    params : int
        Parameters (biases included).
    macs : int
        Multiply-accumulates of one forward pass on the example input; FLOPs are twice as many.
    fm : int
        Feature-map elements written, intermediate ones included.
    weight_bytes : int
        Bytes of the parameters at their deployment data type.
    """

    params: int = 0
    macs: int = 0
    fm: int = 0
    weight_bytes: int = 0

    @property
    def memory(self) -> int:
        """Parameters plus feature-map elements, the "overall memory" of Kokhazadeh et al. (2025), section 4."""
        return self.params + self.fm

    def __add__(self, other: Cost) -> Cost:
        return Cost(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)})

    def __sub__(self, other: Cost) -> Cost:
        return Cost(**{f.name: getattr(self, f.name) - getattr(other, f.name) for f in fields(self)})

    def get(self, resource: str) -> int:
        """Return the amount of one resource, by its name in budgets (see `RESOURCES`)."""
        return getattr(self, RESOURCES[resource])


RESOURCES: dict[str, str] = {
    "params": "params",
    "macs": "macs",
    "fm": "fm",
    "memory": "memory",
    "flash": "weight_bytes",
}
"""Resource names a budget may bound, and the field of `Cost` that holds each. ``flash`` is in bytes."""
