"""ACLA against the equations written out literally, in float64."""

from __future__ import annotations

import itertools
import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from acla_nas import attention as attentions
from acla_nas.attention import ACLA, Feature, cla
from acla_nas.attention.acla import key_rings
from acla_nas.attention.open_keys import open_key_shares
from acla_nas.errors import AclaError
from acla_nas.ops import cross_layer_gather_reference
from acla_nas.testing import count_macs

# Half of the gates are then closed; by default hardly any is at first.
PAPERS_GATES = {"gate_bias": 0.0, "gate_noise": True, "zero_masks": False, "mask_scale": 1.0}

OPTIONS = [
    {"adaptive": False},
    {"adaptive": False, "softmax": "reference"},
    {"adaptive": True, "gate_bias": 0.7, "gate_temperature": 0.5, "mask_scale": 0.4},
    *(
        {"adaptive": True, "shared_mask": shared, "softmax": softmax, "renormalize": renormalize}
        for shared, softmax, renormalize in itertools.product(
            (False, True), ("joint", "reference"), (False, True)
        )
    ),
]


def option_name(options):
    return "-".join(f"{k}={v}" for k, v in options.items())


def randomize(module, scale=0.4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * scale)
    return module


def make(channels=(3, 5, 4), num_keys=3, *, seed=0, batch=2, size=(6, 7), **options):
    """An attention module with references "2", "5", "6" of these channels; the last one is the query."""
    names = [str(j) for j in (2, 5, 6)][-len(channels) :]
    options = {**PAPERS_GATES, **options}
    module = ACLA(channels[-1], num_keys, reference_channels=dict(zip(names, channels)), **options)
    randomize(module.double(), seed=seed).eval()
    generator = torch.Generator().manual_seed(seed + 1)
    features = {
        name: torch.randn(batch, c, *size, generator=generator, dtype=torch.float64).requires_grad_()
        for name, c in zip(names, channels)
    }
    return module, features[names[-1]], features


def literal(module, query, references, reference_gates=None, key_gates=None):
    """DESIGN, section 2, key by key: raw features are sampled, then projected by M and G."""
    ones = query.new_ones(query.shape[0], 1, 1, *query.shape[-2:])
    exps, gates, values, counted, s = {}, {}, {}, {}, {}
    for l, feature in references.items():
        layer = module.references[l]
        offsets, logits = F.conv2d(query, layer.offset.weight), F.conv2d(query, layer.logit.weight)
        for k in range(module.num_keys):
            place = offsets[:, 2 * k : 2 * k + 2] + module.base[k].view(1, 2, 1, 1)
            sampled = cross_layer_gather_reference([feature], place[:, None, None], ones)  # x^l(p + d)
            exps[l, k] = logits[:, k].exp()
            values[l, k] = F.conv2d(sampled, layer.value.weight)
            gates[l, k] = torch.ones_like(logits[:, k])
            if module.adaptive:
                mask = F.conv2d(sampled, layer.mask.weight)[:, 0 if module.shared_mask else k]
                soft = torch.sigmoid((layer.mask_scale * mask + module.gate_bias) / module.gate_temperature)
                gates[l, k] = (soft > 0.5).double() + soft - soft.detach()
            s[l] = 1.0 if reference_gates is None else reference_gates.get(l, 1.0)
            key = 1.0 if key_gates is None else key_gates[k]
            counted[l, k] = key * s[l] if module.softmax == "joint" else key

    def total(group):
        every = sum(counted[i] * exps[i] for i in group)
        if not module.renormalize:
            return every
        return sum(counted[i] * gates[i] * exps[i] for i in group) + 1e-6 * every

    y = torch.zeros_like(query)
    for l, k in exps:
        joint = module.softmax == "joint"
        weight = counted[l, k] * gates[l, k] * exps[l, k] / total([i for i in exps if joint or i[0] == l])
        if not joint:  # s_l weighs the whole reference: within its own softmax it would cancel
            weight = weight * s[l]
        y = y + weight.unsqueeze(1) * values[l, k]
    return F.conv2d(y, module.out.weight)


def output_and_gradients(function, module, query, references, **gates):
    out = function(query, references, **gates)
    upstream = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    inputs = [*references.values(), *module.parameters()]
    return out, torch.autograd.grad(out, inputs, upstream)


@pytest.mark.parametrize("options", OPTIONS, ids=option_name)
def test_equals_the_literal_equations_with_all_gradients(options):
    module, query, references = make(**options)
    out, gradients = output_and_gradients(module, module, query, references)
    expected, expected_gradients = output_and_gradients(
        lambda *a: literal(module, *a), module, query, references
    )
    assert expected.abs().max() > 1e-2
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-10)
    assert all(g.abs().max() > 0 for g in expected_gradients)
    for actual, wanted in zip(gradients, expected_gradients):
        assert (actual - wanted).norm() <= 1e-10 * wanted.norm()


def test_equals_the_literal_equations_for_references_of_other_resolutions():
    module, query, references = make((3, 5, 4))
    references = {**references, "2": torch.randn(2, 3, 12, 14, dtype=torch.float64)}
    references["5"] = torch.randn(2, 5, 3, 5, dtype=torch.float64)
    torch.testing.assert_close(
        module(query, references), literal(module, query, references), rtol=1e-10, atol=1e-10
    )


def test_a_reference_that_is_not_given_does_not_count():
    module, query, references = make((4, 4, 4))
    fewer = {name: references[name] for name in ("2", "6")}
    torch.testing.assert_close(module(query, fewer), literal(module, query, fewer), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("options", OPTIONS, ids=option_name)
def test_insertion_starts_as_the_identity_and_can_leave_it(options):
    torch.manual_seed(0)
    module = ACLA(4, 3, num_references=2, **options)
    x1, x2 = torch.randn(2, 2, 4, 5, 6)
    update = module(x2, {"1": x1, "2": x2})
    assert torch.equal(update, torch.zeros_like(x2))
    update.sum().backward()
    assert module.out.weight.grad is not None
    assert module.out.weight.grad.abs().max() > 0


def test_the_first_step_away_from_the_identity_reaches_every_weight():
    torch.manual_seed(0)
    module = ACLA(4, 3, num_references=2)
    nn.init.normal_(module.out.weight)
    x1, x2 = torch.randn(2, 2, 4, 5, 6)
    (module(x2, {"1": x1, "2": x2}) ** 2).sum().backward()
    unreached = [n for n, p in module.named_parameters() if p.grad is None or p.grad.abs().max() == 0]
    assert not unreached


@pytest.mark.parametrize("options", OPTIONS, ids=option_name)
def test_gates_of_0_equal_removing_what_they_gate(options):
    module, query, references = make(num_keys=5, **options)
    shut = {"2": torch.zeros((), dtype=torch.float64), "5": torch.ones((), dtype=torch.float64)}
    keys = torch.tensor([1.0, 1, 1, 0, 0], dtype=torch.float64)
    kept = {name: references[name] for name in ("5", "6")}
    for reference_gates, key_gates, names, num_keys in (
        (shut, None, ["5", "6"], 5),
        (None, keys, ["2", "5", "6"], 3),
        (shut, keys, ["5", "6"], 3),
    ):
        removed = module.select(names, num_keys)
        expected = removed(query, kept if len(names) == 2 else references)
        actual = module(query, references, reference_gates, key_gates)
        assert expected.abs().max() > 1e-3
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "values", [(0.3, 0.8, 1.0, 0.6, 0.2), (0.0, 1.0, 1.0, 1.0, 0.0), (0.0, 0.0, 1.0, 0, 0)]
)
@pytest.mark.parametrize("options", OPTIONS, ids=option_name)
def test_gates_equal_the_literal_equations_with_all_gradients(options, values):
    module, query, references = make(**options)
    first, second, *keys = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in values)
    given = [first, second, *keys, *references.values(), *module.parameters()]
    results = []
    for function in (module, lambda *a, **k: literal(module, *a, **k)):
        out = function(
            query, references, reference_gates={"2": first, "5": second}, key_gates=torch.stack(keys)
        )
        gradients = torch.autograd.grad((out**2).sum() + out.sum(), given, allow_unused=True)
        results.append([out, *(torch.zeros_like(x) if g is None else g for x, g in zip(given, gradients))])
    for actual, wanted in zip(*results):
        torch.testing.assert_close(actual, wanted, rtol=1e-8, atol=1e-9)
    assert all(g.abs() > 1e-4 for g in results[0][1:3])


def test_gates_of_0_stay_finite_where_a_closed_logit_dwarfs_the_others():
    module, query, references = make((4, 4), adaptive=False)
    with torch.no_grad():
        module.references["5"].logit.weight.mul_(1e4)
    shut = {"5": torch.zeros((), dtype=torch.float64, requires_grad=True)}
    actual = module(query, references, shut)
    expected = module.select(["6"], 3)(query, {"6": query})
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
    actual.sum().backward()
    gradients = [p.grad for p in (shut["5"], *module.parameters()) if p.grad is not None]
    assert len(gradients) > 4
    assert all(torch.isfinite(g).all() for g in gradients)


@pytest.mark.parametrize("options", OPTIONS, ids=option_name)
def test_select_keeps_exact_weights_and_leaves_the_original_alone(options):
    module, query, references = make(num_keys=5, **options)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    selected = module.select(["2", "6"], 2)
    assert list(selected.references) == ["2", "6"]
    assert selected.num_keys == 2
    for name, layer in selected.references.items():
        source = module.references[name]
        assert torch.equal(layer.offset.weight, source.offset.weight[:4])
        assert torch.equal(layer.logit.weight, source.logit.weight[:2])
        assert torch.equal(layer.value.weight, source.value.weight)
        if options["adaptive"]:
            rows = 1 if options.get("shared_mask") else 2
            assert torch.equal(layer.mask.weight, source.mask.weight[:rows])
    assert torch.equal(selected.out.weight, module.out.weight)
    assert torch.equal(selected.base, module.base[:2])

    with torch.no_grad():
        for parameter in selected.parameters():
            parameter.add_(1.0)
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert list(module.references) == ["2", "5", "6"]
    assert module.num_keys == 5
    selected(query, {"2": references["2"], "6": references["6"]})


@pytest.mark.parametrize(
    ("options", "masks"), [({"adaptive": False}, 0), ({}, 3), ({"shared_mask": True}, 1)]
)
def test_parameter_counts(options, masks):
    module = ACLA(4, 3, reference_channels={"1": 5, "2": 4}, **options)
    query_part, references = 3 * 3 * 4, (5, 4)
    expected = 4 * 4 + sum(query_part + c * (4 + masks) for c in references)
    assert sum(p.numel() for p in module.parameters()) == expected
    fewer = module.select(["2"], 2)
    masks = min(masks, 2)
    assert sum(p.numel() for p in fewer.parameters()) == 4 * 4 + 3 * 2 * 4 + 4 * (4 + masks)
    assert all(m.bias is None for m in module.modules() if isinstance(m, nn.Conv2d))


@pytest.mark.parametrize("options", [{"adaptive": False}, {}, {"shared_mask": True}], ids=option_name)
@pytest.mark.parametrize("channels", [(8,), (6, 12, 8)])
def test_macs_are_those_executed(channels, options):
    module, query, references = make(channels, num_keys=4, batch=1, size=(9, 10), **options)
    feature = {name: Feature(*x.shape[1:]) for name, x in references.items()}
    name = list(references)[-1]
    expected = module.macs(feature[name]) + sum(
        module.reference_macs(feature[name], feature[l]) for l in references
    )
    assert count_macs(module, query, references) == pytest.approx(expected, rel=0.01)


def test_macs_of_a_reference_of_another_resolution_are_those_executed():
    module, query, references = make((6, 8), num_keys=4, batch=1, size=(8, 8))
    references["5"] = torch.randn(1, 6, 16, 16, dtype=torch.float64)
    sizes = {name: Feature(*x.shape[1:]) for name, x in references.items()}
    expected = module.macs(sizes["6"]) + sum(module.reference_macs(sizes["6"], s) for s in sizes.values())
    assert count_macs(module, query, references) == pytest.approx(expected, rel=0.01)


def test_key_gates_are_noisy_in_training_only():
    module, query, references = make()
    assert torch.equal(module(query, references), module(query, references))
    module.train()
    torch.manual_seed(0)
    first = module(query, references)
    second = module(query, references)
    torch.manual_seed(0)
    again = module(query, references)
    assert not torch.equal(first, second)
    assert torch.equal(first, again)


def test_without_gate_noise_training_sees_the_gates_of_evaluation():
    module, query, references = make(gate_noise=False)
    evaluated = module(query, references)
    assert torch.equal(module.train()(query, references), evaluated)


def test_cla_has_no_noise_in_training():
    module, query, references = make(adaptive=False)
    evaluated = module(query, references)
    assert torch.equal(module.train()(query, references), evaluated)


def test_a_large_gate_bias_opens_every_key_and_a_very_negative_one_shuts_all():
    module, query, references = make()
    plain, _, _ = make(adaptive=False)
    plain.load_state_dict({n: v for n, v in module.state_dict().items() if "mask" not in n})
    module.gate_bias = 1e3
    torch.testing.assert_close(module(query, references), plain(query, references), rtol=1e-12, atol=1e-12)
    for module.renormalize in (False, True):
        module.gate_bias = -1e3
        assert torch.equal(module(query, references), torch.zeros_like(query))


def test_renormalised_weights_of_the_open_keys_sum_to_1():
    module = ACLA(4, 3, renormalize=True).double()
    logits = torch.randn(2, 3, 3, 6, 7, dtype=torch.float64)
    gates = (torch.rand(2, 3, 3, 6, 7, dtype=torch.float64) > 0.3).double()
    gates[:, :, 0] = 1
    weights = module._softmax(logits, gates, None, None)
    assert (weights[gates == 0] == 0).all()
    assert (weights.sum((1, 2)) - 1).abs().max() < 1e-4


def test_base_offsets_are_distinct_small_and_nested():
    base = key_rings(40)
    assert base.shape == (40, 2)
    assert torch.pdist(base).min() > 0.5
    assert base.norm(dim=1).min() > 0.5
    assert base.norm(dim=1).max() <= math.ceil(40 / 8) + 1e-5
    torch.testing.assert_close(key_rings(8), base[:8])
    assert torch.equal(ACLA(4, num_keys=16).base, key_rings(16))
    assert "base" not in ACLA(4).state_dict()


def test_defaults_of_cla_and_acla():
    assert (ACLA(4).num_keys, ACLA(4).adaptive) == (16, True)
    assert (cla(4).num_keys, cla(4).adaptive) == (8, False)
    assert list(ACLA(4, num_references=3).references) == ["1", "2", "3"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_keys": 0}, "num_keys must be at least 1, not 0"),
        ({"num_references": 0}, "at least one reference"),
        ({"reference_channels": {}}, "at least one reference"),
        ({"softmax": "both"}, "'joint' or 'reference', not 'both'"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(AclaError, match=message):
        ACLA(4, **arguments)


def test_select_of_more_keys_than_there_are():
    with pytest.raises(AclaError, match="num_keys 5 is more than the 4"):
        ACLA(4, num_keys=4).select(["1"], 5)


def test_register_and_names():
    assert {"acla", "cla"} <= set(attentions.names())
    assert attentions.get("acla") is ACLA
    with pytest.raises(AclaError, match="unknown attention 'alca'; did you mean 'acla'"):
        attentions.get("alca")


def test_by_default_a_module_starts_as_cla():
    """Every gate is open, in training too, and the gates have a gradient with which they can close."""
    torch.manual_seed(0)
    module = ACLA(4, 3)
    with torch.no_grad():
        module.out.weight.normal_()
    x = torch.randn(1, 4, 5, 5)
    plain = cla(4, 3)
    plain.load_state_dict({k: v for k, v in module.state_dict().items() if ".mask." not in k})
    torch.testing.assert_close(module.train()(x, {"1": x}), plain(x, {"1": x}))
    with open_key_shares() as shares:
        module(x, {"1": x})
    assert [share.item() for share in shares] == [1.0]
    shares[0].backward()
    assert module.references["1"].mask.weight.grad.abs().sum() > 0


def test_shares_are_noted_only_within_the_context():
    module = ACLA(4, 3)
    x = torch.randn(1, 4, 5, 5)
    with open_key_shares() as shares:
        module(x, {"1": x})
        with torch.no_grad():
            module(x, {"1": x})  # nothing to train with
    module(x, {"1": x})
    assert len(shares) == 1
    with open_key_shares() as shares, torch.no_grad():
        module.eval()(x, {"1": x})
    assert len(shares) == 1
    with open_key_shares() as outer, open_key_shares() as inner, ThreadPoolExecutor() as another:
        another.submit(module, x, {"1": x}).result()
        module(x, {"1": x})
    assert len(outer) == 0 and len(inner) == 1  # of this thread, within the innermost
