"""The hot operator: cross_layer_gather, its fast form and its literal reference."""

from acla_nas.ops.gather import cross_layer_gather
from acla_nas.ops.reference import cross_layer_gather_reference

__all__ = ["cross_layer_gather", "cross_layer_gather_reference"]
