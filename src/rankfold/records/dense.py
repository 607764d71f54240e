"""The cost of a layer as it is."""

from __future__ import annotations

import math

from rankfold.records.cost import Cost
from rankfold.records.deploy import layer_bytes
from rankfold.records.layer import LayerInfo


def dense_cost(layer: LayerInfo, *, deploy_dtype: str | None = None) -> Cost:
    """Return what a layer costs before it is factored.

    A convolution multiplies every weight once for each output position, a transposed one once for
    each input position, a linear layer once for each input vector. Bytes are those at the deploy_dtype
    data type, by default the layer's own.
    """
    weight = math.prod(layer.weight_shape)
    params = weight + (layer.out_channels if layer.bias else 0)
    uses = positions = 0
    for call in layer.calls:
        times = call.batch * call.count
        uses += times * math.prod(call.in_size if layer.transposed else call.out_size)
        positions += times * math.prod(call.out_size)
    return Cost(
        params=params,
        macs=weight * uses,
        fm=layer.out_channels * positions,
        weight_bytes=layer_bytes(layer, deploy_dtype),
    )
