"""Training steps of a dense supernet on EDSR, of its bare backbone, and of the literal supernet."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acla_nas.attention import ACLA
from acla_nas.bench.memory import peak_bytes
from acla_nas.bench.parts import parts_of_module
from acla_nas.network import CrossLayerNetwork
from acla_nas.ops.sampling import sample_at
from acla_nas.search_spaces.edsr import EDSR

BARE, WEIGHTS, ALPHAS, LITERAL = "bare", "weight step", "alpha step", "literal"
PARTS = "bare + parts"


@dataclass(frozen=True)
class Case:
    """A dense supernet on EDSR at scale 2: every block is a position, K = 16.

    Attributes:
        num_blocks: of the backbone.
        num_channels: of its features.
        batch_size: patches of a step.
        size: of a patch, in pixels.
        dtype: of convolutions and products; weights and gradients of them are in float32.
    """

    num_blocks: int
    num_channels: int
    batch_size: int
    size: int
    dtype: str = "float32"

    def network(self) -> CrossLayerNetwork:
        """Return the supernet, with an H that is not 0, so that nothing is left out for being so."""
        torch.manual_seed(0)
        backbone = EDSR(scale=2, num_blocks=self.num_blocks, num_channels=self.num_channels)
        paths = {j: f"body.{j - 1}" for j in range(1, self.num_blocks + 1)}
        network = CrossLayerNetwork.dense(backbone, paths, "acla")
        for module in network.attention.values():
            assert isinstance(module, ACLA)
            nn.init.normal_(module.out.weight, std=0.1 / self.num_channels)
        return network.train()

    def patches(self) -> tuple[Tensor, Tensor]:
        """Return a batch and what it is to become."""
        torch.manual_seed(1)
        small = torch.rand(self.batch_size, 3, self.size, self.size)
        return small, torch.rand(self.batch_size, 3, 2 * self.size, 2 * self.size)


def make_step(case: Case, kind: str, device: torch.device) -> Callable[[], object]:
    """Return a training step: forward, backward and Adam.

    Args:
        case: the supernet.
        kind: "bare", of the backbone alone; "weight step", with every other position on, as half of them are
            at the start; "alpha step", of all gates under frozen weights, likewise half of them on; or
            "literal", a weight step as the equations have it: of every module with all its references; or
            "bare + parts", on a CPU, a bare step and what a weight step's modules cannot do without, see
            :func:`acla_nas.bench.parts.parts_of_module`.
        device: to run on.
    """
    if kind == PARTS:
        modules = [
            parts_of_module(case.num_channels, references, case.size, case.batch_size, training=True)
            for references in range(1, case.num_blocks // 2 + 1)
        ]
        bare = make_step(case, BARE, device)
        return lambda: (bare(), *(parts() for parts in modules))
    network = case.network()
    if kind == LITERAL:
        network.attention = nn.ModuleDict({j: Literal(module) for j, module in network.attention.items()})
    network = network.to(device)
    given, wanted = (x.to(device) for x in case.patches())
    half = {j: j % 2 == 0 for j in network.positions}
    gates: Mapping[int, bool | Tensor] = half
    if kind == BARE:
        gates = dict.fromkeys(half, False)
    elif kind == LITERAL:
        gates = dict.fromkeys(half, True)
    weights: list[Tensor] = list(network.parameters())
    if kind == ALPHAS:
        network.requires_grad_(False)
        weights = [torch.tensor(float(on), device=device, requires_grad=True) for on in half.values()]
    optimizer = torch.optim.Adam(weights, lr=1e-6, fused=device.type == "cuda" or None)

    def step() -> None:
        with torch.inference_mode(False), torch.enable_grad():
            now = gates
            if kind == ALPHAS:  # straight through: 0 or 1, whatever Adam makes of the alpha
                now = {j: alpha - alpha.detach() + float(half[j]) for j, alpha in zip(half, weights)}
            optimizer.zero_grad()
            with torch.autocast(device.type, getattr(torch, case.dtype), enabled=case.dtype != "float32"):
                loss = F.l1_loss(network(given, gates=now), wanted)
            loss.backward()
            optimizer.step()

    return step


class Literal(nn.Module):
    """ACLA as Eq. 6 to 9 have it: features are read at every key, and what was read is projected.

    Args:
        module: whose weights it uses.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        assert isinstance(module, ACLA)
        self.module = module

    def forward(self, query: Tensor, references: Mapping[str, Tensor], *_: Any) -> Tensor:
        """Return the module's update; all references and keys count."""
        module, scores, sums = self.module, [], []
        for name, feature in references.items():
            layer: Any = module.references[name]
            offsets = F.conv2d(query, layer.offset.weight).unflatten(1, (module.num_keys, 2))
            read = sample_at(feature, offsets + module.base.view(1, -1, 2, 1, 1))  # B x C x K x H x W
            flat = read.flatten(2, 3)
            masks = layer.mask_scale * F.conv2d(flat, layer.mask.weight).unflatten(2, read.shape[2:4])
            mask = masks.diagonal(dim1=1, dim2=2).movedim(-1, 1)  # of each key its own
            soft = torch.sigmoid((mask + module.gate_bias) / module.gate_temperature)
            gates = (soft > 0.5).to(soft.dtype) + soft - soft.detach()
            values = F.conv2d(flat, layer.value.weight).unflatten(2, read.shape[2:4])
            score = F.conv2d(query, layer.logit.weight).exp()
            scores.append(score.sum(1, keepdim=True))
            sums.append((values * (score * gates).unsqueeze(1)).sum(2))
        return module.out(sum(sums) / sum(scores))


def step_peak(case: Case, kind: str) -> int:
    """Return the bytes that weights and two steps need at most, in a process that has done nothing else."""
    make_step(Case(2, 8, 1, 12), kind, torch.device("cpu"))()  # loads what is loaded once
    before = peak_bytes()
    step = make_step(case, kind, torch.device("cpu"))
    step()
    step()  # Adam's means are there from the second on
    return peak_bytes() - before
