"""Cost of a dense layer."""

from __future__ import annotations

import math

from rankfold.records.cost import Cost
from rankfold.records.deploy import layer_bytes
from rankfold.records.layer import LayerInfo


def dense_cost(layer: LayerInfo, *, deploy_dtype: str | None = None) -> Cost:
    """Return the cost of a layer before it is factored, at a deployment data type or by default its own.

    A convolution multiplies every weight once per output position, a transposed convolution once per input position, a
    linear layer once per input vector.
    """
    weight = math.prod(layer.weight_shape)
    params = weight + (layer.out_channels if layer.bias else 0)
    uses = positions = 0
    for call in layer.calls:
        times = call.batch * call.count
        uses += times * math.prod(call.in_size if layer.transposed else call.out_size)
        positions += times * math.prod(call.out_size)
    size = layer_bytes(layer, deploy_dtype)
    return Cost(params=params, macs=weight * uses, fm=layer.out_channels * positions, weight_bytes=size)
