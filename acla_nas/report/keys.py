"""Which keys a query pixel reads in each layer that it refers to."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from acla_nas.arch import shown_positions
from acla_nas.attention import ACLA
from acla_nas.attention.cross_layer_non_local import CrossLayerNonLocal
from acla_nas.errors import AclaError
from acla_nas.evaluation import evaluating
from acla_nas.network import CrossLayerNetwork


@dataclass(frozen=True)
class LayerKeys:
    """The K keys that one query pixel has in one layer.

    Attributes:
        position: of the layer, 1-based.
        path: its module path in the backbone.
        size: (height, width) of the layer's feature map.
        places: (K, 2), the (x, y) of each key in pixels of that map; whole numbers are centres of pixels.
        weights: (K,), what each key counts for; 0 where its gate is closed.
        open: (K,) bool, the gates.

    Example:
        >>> keys = LayerKeys(3, "body.2", (4, 6), np.array([[0.5, 3.0], [7.0, 1.0]]), np.array([0.5, 0.5]),
        ...                  np.array([True, True]))
        >>> keys.inside.tolist()
        [True, False]
    """

    position: int
    path: str
    size: tuple[int, int]
    places: np.ndarray
    weights: np.ndarray
    open: np.ndarray

    @property
    def inside(self) -> np.ndarray:
        """(K,) bool: does the key lie on a pixel of the map? Outside, what it reads fades to 0."""
        height, width = self.size
        x, y = self.places.T
        return (x >= -0.5) & (x <= width - 0.5) & (y >= -0.5) & (y <= height - 0.5)

    @property
    def drawn(self) -> np.ndarray:
        """(K,) bool: open, and inside the map."""
        return self.open & self.inside


@dataclass(frozen=True)
class ModuleKeys:
    """The keys of all query pixels of one module, as :meth:`acla_nas.attention.ACLA.keys` returns them.

    Attributes:
        position: of the module, 1-based.
        path: its module path in the backbone.
        references: position -> module path of each layer that it reads.
        offsets: (R, K, 2, H, W), (dx, dy) from the query to the key, in pixels of the query's grid.
        weights: (R, K, H, W), 0 where the gate is closed.
        open: (R, K, H, W) bool, the gates.
    """

    position: int
    path: str
    references: Mapping[int, str]
    offsets: Tensor
    weights: Tensor
    open: Tensor


def all_keys(network: nn.Module, image: Tensor) -> tuple[ModuleKeys, ...]:
    """Return the keys of every module that samples keys, for every query pixel of an image.

    Args:
        network: a derived network, as :func:`acla_nas.export` returns it.
        image: (C, H, W) in 0 .. 1, as the network takes it, without the batch dimension.

    Returns:
        One :class:`ModuleKeys` for each module that is :class:`acla_nas.attention.ACLA` or has one in it,
        in order; none where there are no such modules.

    Example:
        >>> import acla_nas
        >>> space = acla_nas.search_spaces.edsr(num_blocks=2, num_channels=8, num_keys=4)
        >>> network = space.freeze({"insert/1": True, "insert/2": True, "keys": 4})
        >>> [keys.offsets.shape for keys in all_keys(network, torch.rand(3, 6, 8))]
        [torch.Size([1, 4, 2, 6, 8]), torch.Size([2, 4, 2, 6, 8])]
    """
    if not isinstance(network, CrossLayerNetwork):
        raise AclaError(f"{type(network).__name__} is not a derived network: give what export returns")
    found: dict[int, ModuleKeys] = {}

    def look(position: int, module: ACLA, inputs: Any) -> None:
        query, references = inputs[:2]
        offsets, weights, gates = (t[0].float().cpu() for t in module.keys(query, references))
        paths = {int(name): network.paths[int(name)] for name in references}
        found[position] = ModuleKeys(position, network.paths[position], paths, offsets, weights, gates > 0.5)

    hooks = []
    for j in network.positions:
        module = network.attention[str(j)]
        part = next((part for part in module.modules() if isinstance(part, ACLA)), None)
        if part is not None:
            hooks.append(part.register_forward_pre_hook(functools.partial(look, j)))
    try:
        with evaluating(network), torch.no_grad():
            weight = next(network.parameters())
            network(image[None].to(weight.device, weight.dtype))
    finally:
        for handle in hooks:
            handle.remove()
    return tuple(found[j] for j in sorted(found))


def selected_keys(
    network: nn.Module, image: Tensor, position: int, query: tuple[int, int]
) -> tuple[LayerKeys, ...]:
    """Return the keys that one query pixel of a module reads, one :class:`LayerKeys` per reference.

    Args:
        network: a derived network, as :func:`acla_nas.export` returns it.
        image: (C, H, W) in 0 .. 1, as the network takes it, without the batch dimension.
        position: of a module that is :class:`acla_nas.attention.ACLA`, or has one in it.
        query: (x, y) in pixels of the image.

    Raises:
        AclaError: no such position or pixel, or a module without sampled keys.

    Example:
        >>> import acla_nas
        >>> space = acla_nas.search_spaces.edsr(num_blocks=2, num_channels=8, num_keys=4)
        >>> network = space.freeze({"insert/1": True, "insert/2": True, "keys": 4})
        >>> [keys.path for keys in selected_keys(network, torch.rand(3, 12, 12), 2, (5, 6))]
        ['body.0', 'body.1']
    """
    seen = _run_to(network, image, position, query, ACLA)
    module = seen.module
    if not isinstance(module, ACLA):
        raise AclaError(
            f"the module at position {position} is {type(module).__name__}, which samples no keys: "
            "give a network with acla or cla"
        )
    with evaluating(module), torch.no_grad():
        offsets, weights, gates = (
            t[0, ..., seen.y, seen.x] for t in module.keys(seen.query, seen.references)
        )  # R x K x 2, R x K, R x K
    result = []
    for r, (name, feature) in enumerate(seen.references.items()):
        grid = np.array(seen.query.shape[:1:-1])  # (W, H)
        size = np.array(feature.shape[:1:-1])
        start = np.array([seen.x, seen.y])
        places = (start + 0.5 + _numpy(offsets[r])) * (size / grid) - 0.5
        keys = (places, _numpy(weights[r]), _numpy(gates[r]) > 0.5)
        result.append(_layer_keys(seen, name, *keys))
    return tuple(result)


def non_local_keys(
    network: nn.Module, image: Tensor, position: int, query: tuple[int, int], num_keys: int = 16
) -> tuple[LayerKeys, ...]:
    """Return the pixels with the largest weights in cross-layer non-local attention (CLNL, Eq. 3).

    The weights are the softmax of ``<theta x^j_query, phi_l x^l_n>`` over all pixels n of all layers l that
    the module refers to; of each layer the `num_keys` largest are returned, largest first. theta and phi are
    those of the module where it is CLNL, else the identity: what CLNL without embeddings would attend to,
    given these features.

    Args:
        network: as for :func:`selected_keys`.
        image: likewise.
        position: of the module whose query and references are taken; any kind of attention.
        query: likewise.
        num_keys: pixels to return for each layer, fewer where it has no more.

    Raises:
        AclaError: no such position or pixel; layers of different numbers of channels, without embeddings.
    """
    seen = _run_to(network, image, position, query, CrossLayerNonLocal)
    logits = _non_local_logits(seen)
    total = torch.cat([a.flatten() for a in logits.values()]).logsumexp(0)
    result = []
    for name, a in logits.items():
        best = a.flatten().topk(min(num_keys, a.numel()))
        rows, columns = best.indices // a.shape[1], best.indices % a.shape[1]
        weights = _numpy((best.values - total).exp())
        places = _numpy(torch.stack((columns, rows), 1))
        result.append(_layer_keys(seen, name, places, weights, np.ones(len(weights), dtype=bool)))
    return tuple(result)


def _non_local_logits(seen: _Seen) -> dict[str, Tensor]:
    """Return the products of the query with every pixel of every reference: name -> (H_l, W_l)."""
    query = seen.query[..., seen.y : seen.y + 1, seen.x : seen.x + 1]
    features = dict(seen.references)
    module = seen.module
    if isinstance(module, CrossLayerNonLocal):
        with torch.no_grad():
            query = module.theta(query)
            features = {l: module.references[l].phi(x) for l, x in features.items()}  # type: ignore[operator]
    if any(x.shape[1] != query.shape[1] for x in features.values()):
        raise AclaError("the layers referred to differ in their channels: there is no dot product of them")
    return {l: (query.double() * x.double()).sum(1)[0] for l, x in features.items()}


@dataclass(frozen=True)
class _Seen:
    """What one module was given for one image, and where the query is in it."""

    module: nn.Module
    query: Tensor
    references: Mapping[str, Tensor]
    x: int
    y: int
    paths: Mapping[int, str]


def _run_to(
    network: nn.Module, image: Tensor, position: int, query: tuple[int, int], kind: type[nn.Module]
) -> _Seen:
    """Run the network on an image and return what a module, or its part of a kind, is given."""
    if not isinstance(network, CrossLayerNetwork):
        raise AclaError(f"{type(network).__name__} is not a derived network: give what export returns")
    if position not in network.positions:
        inserted = shown_positions(network.positions)
        raise AclaError(f"the network has no attention at position {position}: it has {inserted}")
    if image.dim() != 3:
        raise AclaError(f"the image must be (C, H, W), not {tuple(image.shape)}")
    height, width = image.shape[1:]
    x, y = query
    if not (0 <= x < width and 0 <= y < height):
        raise AclaError(f"query ({x}, {y}) lies outside the image of {width}x{height} pixels")

    module = network.attention[str(position)]
    module = next((part for part in module.modules() if isinstance(part, kind)), module)
    hook = module.register_forward_pre_hook(_stop)
    try:
        with evaluating(network), torch.no_grad():
            weight = next(network.parameters())
            network(image[None].to(weight.device, weight.dtype))
        raise AclaError(f"the network does not run position {position} on this image")
    except _Stopped as stopped:
        feature, references = stopped.args[0][:2]
    finally:
        hook.remove()
    rows, columns = feature.shape[2:]
    x, y = x * columns // width, y * rows // height
    return _Seen(module, feature, references, x, y, network.paths)


class _Stopped(Exception):
    """Carries what a module was given out of the network, the rest of which need not be run."""


def _stop(module: nn.Module, inputs: Any) -> None:
    raise _Stopped(inputs)


def _layer_keys(
    seen: _Seen, name: str, places: np.ndarray, weights: np.ndarray, is_open: np.ndarray
) -> LayerKeys:
    height, width = seen.references[name].shape[2:]
    return LayerKeys(int(name), seen.paths[int(name)], (height, width), places, weights, is_open)


def _numpy(tensor: Tensor) -> np.ndarray:
    return tensor.double().cpu().numpy()
