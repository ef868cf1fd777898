"""The form that a derived network runs without gradients, against the equations written out."""

from __future__ import annotations

import pytest
import torch
from test_acla import OPTIONS, literal, make, option_name

from acla_nas.attention import acla_inference
from acla_nas.attention.acla import update_in_steps
from acla_nas.attention.acla_inference import infer
from acla_nas.attention.forms import is_fusable
from acla_nas.attention.open_keys import open_key_shares
from acla_nas.errors import AclaError


def features(references):
    return {name: x.detach() for name, x in references.items()}


@pytest.mark.parametrize("options", OPTIONS, ids=option_name)
def test_equals_the_literal_equations(options):
    module, query, references = make(**options)
    expected = literal(module, query, references).detach()
    with torch.no_grad():
        actual = infer(module, query, features(references))
    assert expected.abs().max() > 1e-2
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


def test_keys_far_outside_the_image_count_0():
    module, query, references = make()
    with torch.no_grad():
        for layer in module.references.values():
            layer.offset.weight.mul_(20)
        expected = literal(module, query, references)
        assert ((expected - literal(module, query.roll(1, 3), references)).abs() > 1e-3).any()
        torch.testing.assert_close(infer(module, query, features(references)), expected, rtol=1e-9, atol=1e-9)


def test_masks_that_are_all_open_need_not_be_read():
    module, query, references = make(gate_bias=50.0)
    with torch.no_grad():
        torch.testing.assert_close(
            infer(module, query, features(references)),
            literal(module, query, references),
            rtol=1e-10,
            atol=1e-10,
        )


def test_channels_last_features_give_the_same():
    module, query, references = make()
    last = {n: x.to(memory_format=torch.channels_last) for n, x in features(references).items()}
    with torch.no_grad():
        actual = infer(module, last["6"], last)
        expected = infer(module, query, features(references))
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
        assert expected.is_contiguous() and actual.is_contiguous(memory_format=torch.channels_last)
        strided = {n: x.flip(3).contiguous().flip(3) for n, x in features(references).items()}
        torch.testing.assert_close(infer(module, strided["6"], strided), expected, rtol=0, atol=0)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_the_query_is_added_where_it_is_asked_for(memory_format):
    module, _, references = make(size=(3, 71))
    found = {n: x.to(memory_format=memory_format) for n, x in features(references).items()}
    before = {name: x.clone() for name, x in found.items()}
    with torch.no_grad():
        result = infer(module, found["6"], found, is_added=True)
        assert torch.equal(result, found["6"] + infer(module, found["6"], found))
        assert torch.equal(result, module.insert(found["6"], found))
    assert result.is_contiguous(memory_format=memory_format)
    assert all(torch.equal(x, before[name]) for name, x in found.items())


def test_forward_uses_it_where_it_may(monkeypatch):
    module, query, references = make()
    calls = []
    monkeypatch.setattr(
        acla_inference, "infer", lambda *args, **kwargs: calls.append(kwargs) or infer(*args, **kwargs)
    )
    with torch.no_grad():
        module(query, references)
        module.insert(query, references)
        assert calls == [{}, {"is_added": True}]
        with open_key_shares() as shares:
            module(query, references)
        assert len(calls) == 3 and len(shares) == 1
        for function in (module, module.insert):
            function(query, references, {"2": torch.ones(())})
            function(query, references, None, torch.ones(module.num_keys))
        module.train()(query, references)
        module.insert(query, references)
    module.eval()(query, references)
    module.insert(query, references)
    assert len(calls) == 3


@pytest.mark.parametrize("options", [{}, {"shared_mask": True}, {"adaptive": False}])
@pytest.mark.parametrize("gate_bias", [0.0, 50.0])
def test_open_keys_are_counted(options, gate_bias):
    module, query, references = make(gate_bias=gate_bias, **options)
    with torch.no_grad(), open_key_shares() as counted:
        infer(module, query, references)
    with torch.no_grad(), open_key_shares() as expected:
        update_in_steps(module, query, references, {}, None)
    assert [*map(float, counted)] == pytest.approx([*map(float, expected)], abs=1e-12)
    if module.adaptive:
        assert (0 < counted[0] < 1) if gate_bias == 0 else counted[0] == 1


def test_weights_that_are_changed_in_whatever_way_are_seen():
    module, query, references = make()
    with torch.no_grad():
        before = module(query, references)
        module.out.weight.data.mul_(2)
        torch.testing.assert_close(module(query, references), 2 * before, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("size", [(1, 5), (5, 1), (2, 71)])
def test_images_of_one_line_and_of_several_blocks(size):
    module, query, references = make(size=size, num_keys=9)
    with torch.no_grad():
        assert is_fusable(query, references.values())
        torch.testing.assert_close(
            module(query, references), literal(module, query, references), rtol=1e-10, atol=1e-10
        )


def test_what_does_not_fit_the_module_is_refused():
    module, _, references = make()
    found = features(references)
    with pytest.raises(AclaError, match=r"a tensor \(2, 4, 6, 7\) .* where 420 numbers"):
        infer(module, found["6"], {**found, "5": found["6"]})
    module.out = torch.nn.Conv2d(4, 5, 1).double()
    with pytest.raises(AclaError, match=r"a tensor \(5, 4, 1, 1\) .* where 16 numbers"):
        infer(module, found["6"], found)
    with pytest.raises(AclaError, match=r"float64 where .* of torch.float32"):
        infer(module, found["6"].float(), {n: x.float() for n, x in found.items()})
