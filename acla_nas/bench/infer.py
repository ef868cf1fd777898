"""infer: how much longer a network takes with ACLA than without, where nothing is trained."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
from torch import nn

from acla_nas.attention import ACLA
from acla_nas.bench.counts import INPUT_SHAPE, backbone_macs, inserted_macs
from acla_nas.bench.memory import keep_freed_memory
from acla_nas.bench.ops import REACH, ratio
from acla_nas.bench.paper_tables import EDSR_POSITIONS
from acla_nas.bench.parts import parts_of_module
from acla_nas.bench.positions import even_positions
from acla_nas.cost.timing import Timing, device_name, time_in_turns
from acla_nas.network import CrossLayerNetwork, trace_features
from acla_nas.search_spaces.edsr import EDSR

_FORMATS = {"channels first": torch.contiguous_format, "channels last": torch.channels_last}
_GATES = {"all open": 50.0, "half closed": 0.0}  # what is added to random mask logits


@dataclass(frozen=True)
class Case:
    """An EDSR at scale 2 and where ACLA is inserted in it.

    Attributes:
        num_blocks: of the backbone.
        num_channels: of its features.
        positions: 1-based.
    """

    num_blocks: int
    num_channels: int
    positions: tuple[int, ...]

    def networks(self) -> dict[str, nn.Module]:
        """Return the bare backbone, and by the state of their key gates, networks with ACLA.

        Offsets and logits are random; offsets have the standard deviation of ``bench ops``, in pixels, for an
        image of random numbers.
        """
        torch.manual_seed(0)
        backbone = EDSR(2, self.num_blocks, self.num_channels)
        paths = {j: f"body.{j - 1}" for j in self.positions}
        networks: dict[str, nn.Module] = {"bare": backbone}
        for name, bias in _GATES.items():
            own = EDSR(2, self.num_blocks, self.num_channels)
            own.load_state_dict(backbone.state_dict())
            network = CrossLayerNetwork.dense(own, paths, "acla", gate_bias=bias, zero_masks=False)
            for module in network.attention.modules():
                if isinstance(module, nn.Conv2d):
                    nn.init.normal_(module.weight, std=0.1 / self.num_channels**0.5)
            hooks = [m.register_forward_pre_hook(_scale_offsets) for m in network.attention.values()]
            with torch.no_grad():
                network(torch.rand(1, *INPUT_SHAPE))
            for hook in hooks:
                hook.remove()
            networks[name] = network
        return networks


def _scale_offsets(module: nn.Module, inputs: tuple[Any, ...]) -> None:
    for reference in cast(ACLA, module).references.values():
        offset: Any = reference.offset
        offset.weight *= REACH / offset(inputs[0]).std()


CASES = (Case(32, 256, EDSR_POSITIONS), Case(16, 64, even_positions(5, of=16)))


@dataclass(frozen=True)
class InferRow:
    """A network and its bare backbone, their weights in one memory format.

    Attributes:
        case: which network.
        memory_format: "channels first" or "channels last".
        default: time of the backbone as PyTorch makes it, with channels first.
        bare: of the backbone in this memory format.
        times: state of the key gates -> time with ACLA.
        parts: time of the bare backbone, and then of what its modules cannot do without, see
            :func:`acla_nas.bench.parts.parts_of_module`.
        floor: the ratio if a multiply-accumulate of the modules took as long as one of the backbone, and all
            else nothing; H is multiplied into the G_l.
    """

    case: Case
    memory_format: str
    default: Timing
    bare: Timing
    times: dict[str, Timing]
    parts: Timing
    floor: float


@dataclass(frozen=True)
class InferCheck:
    """Inference of one image of `input_shape` on the machine at hand."""

    device: str
    threads: int
    input_shape: tuple[int, ...]
    rows: tuple[InferRow, ...]

    def text(self) -> str:
        """Return the check as plain text."""
        size = "x".join(map(str, self.input_shape))
        lines = [
            f"one {size} image on {self.device}, {self.threads} threads; medians in ms, times bare",
            f"{'EDSR':<9}{'positions':<20}{'weights':<15}{'bare':>16}"
            + "".join(f"{name:>26}" for name in _GATES)
            + f"{'bare + parts':>26}{'floor':>8}{'all open to default bare':>28}",
        ]
        for row in self.rows:
            name = f"{row.case.num_blocks}x{row.case.num_channels}"
            positions = ", ".join(map(str, row.case.positions))
            line = f"{name:<9}{positions:<20}{row.memory_format:<15}"
            line += f"{row.bare.median_ms:>9.1f} ± {row.bare.error_ms:<4.1f}"
            for time in (*row.times.values(), row.parts):
                quotient, off = ratio(time, row.bare)
                line += f"{time.median_ms:>11.1f}: {quotient:.3f}x ± {off:.3f}"
            quotient, off = ratio(row.times["all open"], row.default)
            lines.append(f"{line}{row.floor:>8.3f}{quotient:>19.3f}x ± {off:.3f}")
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """Return everything as what JSON knows."""
        rows = []
        for row in self.rows:
            beside = {}
            for name, time in {**row.times, "parts": row.parts}.items():
                quotient, off = ratio(time, row.bare)
                beside[name] = {**time._asdict(), "ratio": quotient, "ratio_error": off}
            found = {**asdict(row), "default": row.default._asdict(), "bare": row.bare._asdict()}
            rows.append({**found, "parts": beside.pop("parts"), "times": beside})
        return {**asdict(self), "rows": rows}


def check_inference(
    *,
    size: int = INPUT_SHAPE[1],
    device: str = "cpu",
    runs: int = 15,
    cases: Sequence[Case] = CASES,
) -> InferCheck:
    """Measure networks with ACLA beside their bare backbones.

    Args:
        size: sides of the one image, in pixels.
        device: "cpu" or "cuda".
        runs: of each network at most, see :func:`acla_nas.cost.timing.time_in_turns`.
        cases: the networks.

    Example:
        >>> check = check_inference(size=12, runs=7, cases=[Case(2, 8, (1, 2))])
        >>> [row.memory_format for row in check.rows]
        ['channels first', 'channels last']
    """
    keep_freed_memory()
    input_shape = (INPUT_SHAPE[0], size, size)
    rows = [row for case in cases for row in _rows(case, torch.device(device), runs, input_shape)]
    threads = torch.get_num_threads()
    return InferCheck(device_name(torch.device(device)), threads, input_shape, tuple(rows))


def _rows(case: Case, device: torch.device, runs: int, input_shape: tuple[int, int, int]) -> list[InferRow]:
    networks = case.networks()
    floor, rows = _floor(networks["all open"], input_shape), []
    parts = [
        parts_of_module(case.num_channels, references, input_shape[1], device=device)
        for references in range(1, len(case.positions) + 1)
    ]
    image = torch.rand(1, *input_shape, device=device)
    calls: dict[tuple[str, str], Callable[[], object]] = {}
    for name, memory_format in _FORMATS.items():
        for state, network in networks.items():
            own: Any = copy.deepcopy(network).eval()
            own.to(device, memory_format=memory_format)
            calls[name, state] = functools.partial(own, image)
        calls[name, "parts"] = functools.partial(_in_turn, calls[name, "bare"], *parts)
    times = time_in_turns(calls, device, runs)
    default = times["channels first", "bare"]
    for name in _FORMATS:
        of_states = {state: times[name, state] for state in _GATES}
        found = times[name, "bare"], of_states, times[name, "parts"]
        rows.append(InferRow(case, name, default, *found, floor))
    return rows


def _in_turn(*calls: Callable[[], object]) -> None:
    for call in calls:
        call()


def _floor(network: nn.Module, input_shape: tuple[int, int, int]) -> float:
    assert isinstance(network, CrossLayerNetwork)
    features = trace_features(network.backbone, network.paths, input_shape)
    products = sum(feature.pixels * feature.channels**2 for feature in features.values())  # with H
    bare = backbone_macs(network.backbone, input_shape)
    return 1 + (inserted_macs(network, input_shape) - products) / bare
