"""The contract of an attention module: what search, derivation, cost and export rely on."""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from acla_nas import attention as attentions
from acla_nas.attention import Attention, Feature
from acla_nas.testing.macs import count_macs

# Other channel counts than the query's among the references; the last one is the module's own layer.
_CHANNELS = {"1": 12, "2": 16, "4": 8, "5": 16}
_OWN = "5"


def check_attention(
    attention: str | Callable[..., Attention], *, starts_as_identity: bool = True, **options: Any
) -> None:
    """Assert that an attention module keeps the contract of :class:`acla_nas.attention.Attention`.

    Checked are: the update's shape and dtype, for references of any size and any number of channels; that
    ``insert`` adds it to the query; that it starts at 0 and can leave it; that gates of 0 equal removal
    and carry a gradient; that ``select`` drops what it must and keeps the rest exactly; copies and state
    dicts; ``torch.export`` and ``torch.jit.trace``; and ``macs()`` against the operations that run.

    Args:
        attention: a registered name, such as "acla+se", or what makes the module.
        starts_as_identity: False for a module whose first update is not 0, which then has to say so.
        options: of the module.

    Raises:
        AssertionError: with what is wrong, and where.

    Example:
        >>> check_attention("se", reduction=4)
    """
    make = attentions.get(attention) if isinstance(attention, str) else attention
    build = functools.partial(_build, make, options)
    checks: list[Callable[[_Build], None]] = [
        _check_update,
        _check_identity if starts_as_identity else _check_not_identity,
        _check_every_weight_is_reached,
        _check_gates_of_0_equal_removal,
        _check_gates_get_their_gradient,
        _check_select,
        _check_copies,
        _check_export,
        _check_macs,
    ]
    with torch.random.fork_rng(devices=[]):
        for check in checks:
            check(build)


_Build = Callable[..., Attention]


def _build(
    make: Callable[..., Attention], options: Mapping[str, Any], *, seed: int | None = 0, train: bool = False
) -> Attention:
    """Return a module in float64 with random weights, or those that it starts with where seed is None."""
    torch.manual_seed(seed or 0)
    module = make(_CHANNELS[_OWN], reference_channels=_CHANNELS, **options)
    assert isinstance(module, Attention), f"{type(module).__name__} is not an Attention"
    assert list(module.state_dict()), "a module without weights has nothing to learn"
    if seed is not None:
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.normal_(std=0.4)
    return module.double().train(train)


def _features(
    seed: int = 0,
    sizes: Mapping[str, tuple[int, int]] | None = None,
    batch: int = 2,
    size: tuple[int, int] = (6, 7),
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return a query and its references, the query's own layer last."""
    generator = torch.Generator().manual_seed(seed + 100)
    references = {
        name: torch.randn(batch, c, *(sizes or {}).get(name, size), generator=generator, dtype=torch.float64)
        for name, c in _CHANNELS.items()
    }
    return references[_OWN], references


def _check_update(build: _Build) -> None:
    for sizes in ({}, {"1": (12, 14), "4": (3, 4)}):
        query, references = _features(sizes=sizes)
        module = build()
        for names in (list(references), ["2", _OWN], [_OWN]):
            update = module(query, {name: references[name] for name in names})
            shown = f"with references {names} of {[tuple(references[n].shape) for n in names]}"
            assert update.shape == query.shape, (
                f"the update is {tuple(update.shape)}, not {tuple(query.shape)}, {shown}"
            )
            assert update.dtype == query.dtype, f"the update is {update.dtype}, not {query.dtype}"
            assert torch.isfinite(update).all(), f"the update is not finite {shown}"
            alone = module(query[1:], {name: references[name][1:] for name in names})
            _assert_close(alone, update[1:], "an image's update depends on the other images of the batch")
            with torch.no_grad():
                inserted = module.insert(query, {name: references[name] for name in names})
            _assert_close(inserted, query + update, f"insert does not give the query plus the update {shown}")
    single = build().float()(query.float(), {name: x.float() for name, x in references.items()})
    assert single.dtype == torch.float32, f"the update of float32 features is {single.dtype}"


def _check_identity(build: _Build) -> None:
    moves = False
    for seed in range(3):
        query, references = _features(seed)
        for train in (False, True):
            module = build(seed=None, train=train)
            update = module(query, references)
            assert not update.any(), (
                "the update does not start at 0, so that insertion changes what a trained backbone computes; "
                "starts_as_identity=False if that is meant"
            )
            update.sum().backward()
            moves |= any(p.grad is not None and bool(p.grad.any()) for p in module.parameters())
    assert moves, "the update starts at 0 and no weight has a gradient there: it can never leave it"


def _check_not_identity(build: _Build) -> None:
    query, references = _features()
    assert build(seed=None)(query, references).any(), "the update starts at 0: leave starts_as_identity out"


def _check_every_weight_is_reached(build: _Build) -> None:
    unreached = {name for name, _ in build().named_parameters()}
    for seed in range(4):  # a gate or a rectifier may shut one off for some weights and features
        query, references = _features(seed)
        module = build(seed=seed, train=True)
        (module(query, references) ** 2).sum().backward()
        unreached -= {n for n, p in module.named_parameters() if p.grad is not None and p.grad.any()}
    assert not unreached, f"no gradient reaches {sorted(unreached)}"


def _check_gates_of_0_equal_removal(build: _Build) -> None:
    for sizes in ({}, {"1": (12, 14), "4": (3, 4)}):
        query, references = _features(sizes=sizes)
        module = build()
        fewer = max(1, module.num_keys // 2)
        shut_keys = (torch.arange(module.num_keys) < fewer).to(query)
        for off, keys in (
            ((), None),
            (("1",), None),
            (("1", "4"), None),
            ((), shut_keys),
            (("2", "4"), shut_keys),
        ):
            names = [name for name in references if name not in off]
            removed = module.select(names, module.num_keys if keys is None else fewer)
            expected = removed(query, {name: references[name] for name in names})
            for requires_grad in (False, True):
                gates = {
                    name: query.new_tensor(float(name not in off)).requires_grad_(requires_grad)
                    for name in references
                    if name != _OWN
                }
                given = keys if keys is None else keys.clone().requires_grad_(requires_grad)
                actual = module(query, references, gates, given)
                what = f"references {list(off)} gated off, keys {'all on' if keys is None else 'half off'}"
                _assert_close(actual, expected, f"{what}: not what the module without them gives")
            _assert_close(module(query, {n: references[n] for n in names}, None, keys), expected, "left out")


def _check_gates_get_their_gradient(build: _Build) -> None:
    query, references = _features()
    module = build()
    whole = module(query, references)
    for value in (0.0, 1.0):
        gates = {n: query.new_tensor(value, requires_grad=True) for n in references if n != _OWN}
        upstream = torch.randn(query.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        (module(query, references, gates) * upstream).sum().backward()
        for name, gate in gates.items():
            without = module(query, {n: x for n, x in references.items() if n != name})
            if torch.equal(whole, without):
                continue  # the module does not refer to it
            assert gate.grad is not None, f"the gate of reference {name}, {value}, gets no gradient"
            assert torch.isfinite(gate.grad), (
                f"the gradient of the gate of reference {name}, {value}, is {gate.grad}"
            )
            assert gate.grad != 0, f"the gradient of the gate of reference {name}, {value}, is 0"
        if module.num_keys > 1:
            keys = query.new_ones(module.num_keys)
            keys[module.num_keys // 2 :] = value
            keys.requires_grad_()
            (module(query, references, None, keys) * upstream).sum().backward()
            assert keys.grad is not None, "the key gates get no gradient"
            assert torch.isfinite(keys.grad).all(), f"the key gates' gradient is {keys.grad}"
            assert keys.grad.count_nonzero() > 0, "the key gates' gradient is 0"


def _check_select(build: _Build) -> None:
    module = build()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    dropped = ["1", "4"]
    kept = [name for name in _CHANNELS if name not in dropped]
    selected = module.select(kept, module.num_keys)
    assert type(selected) is type(module), f"select returns a {type(selected).__name__}"
    assert selected.training == module.training, "select changes the mode"
    gone = {name for name in before if any(f"references.{d}." in f".{name}" for d in dropped)}
    state = selected.state_dict()
    assert set(state) == set(before) - gone, (
        f"select must drop the weights of the references left out, {sorted(gone)}, and no others; "
        f"it differs in {sorted(set(state) ^ (set(before) - gone))}"
    )
    for name, value in state.items():
        assert torch.equal(value, before[name]), f"select changes the weight {name}"

    fewer = module.select(kept, max(1, module.num_keys - 1))
    assert fewer.num_keys == max(1, module.num_keys - 1), f"select leaves num_keys {fewer.num_keys}"
    for name, value in fewer.state_dict().items():
        assert torch.equal(value, before[name][: len(value)]), f"{name} is not that of the first keys"

    with torch.no_grad():
        for parameter in [*selected.parameters(), *fewer.parameters()]:
            parameter.add_(1.0)
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name]), (
            f"what select returns shares the weight {name} with its source"
        )


def _check_copies(build: _Build) -> None:
    query, references = _features()
    module = build()
    expected = module(query, references)
    copied = copy.deepcopy(module)
    loaded = build(seed=7)
    loaded.load_state_dict(module.state_dict())
    for other, what in ((copied, "a deep copy"), (loaded, "a module with its state dict loaded")):
        _assert_close(other(query, references), expected, f"{what} computes something else")
    assert not {id(p) for p in module.parameters()} & {id(p) for p in copied.parameters()}
    _assert_close(module(query, references), expected, "the module in evaluation is not deterministic")


class _Flat(nn.Module):
    """A module with its features as arguments in order, for tracers that take nothing else."""

    def __init__(self, attention: Attention, names: Sequence[str]) -> None:
        super().__init__()
        self.attention, self.names = attention, names

    def forward(self, query: Tensor, *references: Tensor) -> Tensor:
        update: Tensor = self.attention(query, dict(zip(self.names, references)))
        return update


def _check_export(build: _Build) -> None:
    whole, names = build(), ("2", _OWN)
    module = _Flat(whole.select(names, min(2, whole.num_keys)), names)  # tracing time grows with both

    def inputs(size: tuple[int, int], batch: int) -> tuple[Tensor, ...]:
        query, references = _features(size=size, batch=batch)
        return query, *(references[name].clone() for name in names)

    small, large = inputs((6, 7), 2), inputs((9, 8), 3)
    dims = {0: torch.export.Dim("batch"), 2: torch.export.Dim("height"), 3: torch.export.Dim("width")}
    program = torch.export.export(module, small, dynamic_shapes=(dims, (dims,) * len(names)), strict=False)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that tracing is deprecated, and fixes what does not vary
        traced = torch.jit.trace(module, small, check_trace=False)
        for given in (small, large):
            _assert_close(program.module()(*given), module(*given), "torch.export gives something else")
        # Numbers worked out from sizes are float32 in a trace.
        _assert_close(traced(*small), module(*small), "torch.jit.trace gives something else", 1e-5)


def _check_macs(build: _Build) -> None:
    for sizes in ({}, {"1": (18, 20), "4": (5, 5)}):
        query, references = _features(sizes=sizes, batch=1, size=(9, 10))
        module = build()
        own = Feature(*query.shape[1:])
        for names in ([_OWN], list(references)):
            stated = module.macs(own) + sum(
                module.reference_macs(own, Feature(*references[name].shape[1:])) for name in names
            )
            executed = count_macs(module, query, {name: references[name] for name in names})
            assert abs(stated - executed) <= 0.01 * executed, (
                f"macs() and reference_macs() state {stated:,} for {names}, but {executed:,} are executed"
            )


def _assert_close(actual: Tensor, expected: Tensor, message: str, tolerance: float = 1e-12) -> None:
    """Compare in float64; the default leaves room for another order of summation only."""
    torch.testing.assert_close(
        actual, expected, rtol=tolerance, atol=tolerance, msg=lambda text: f"{message}: {text}"
    )
