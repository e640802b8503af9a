"""Passes of folded networks that are repeated from plans.

Outputs are compared bit by bit with those of the modules called one by one. A network is changed in
every way that one can be changed, in every place, after a plan of it was in use.
"""

import copy
import functools
import gc
import os
import pickle
import threading
import weakref

import pytest
import torch
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode

from mmlk.networks import plans as network_plans
from mmlk.ops import jit
from mmlk.ops.plans import Plan
from tests.networks.families import FAMILIES, build, images
from tests.networks.test_hooks import CHANGES, called_modules, places
from tests.networks.test_written_weights import WRITES

pytestmark = pytest.mark.skipif(
    jit.refusal() is not None, reason=f'no compiled loops: {jit.refusal()}'
)
families = pytest.mark.parametrize('family', FAMILIES)
FIRST = 'recnext_m'
# Every module of a network takes its turn in some tests, which cost minutes over all families.
OTHERS = ('slak', 'recnext_a')


@pytest.fixture(autouse=True)
def new_plans_at_once(monkeypatch):
    """After a change too a plan is made in the second pass."""
    monkeypatch.setattr(network_plans, 'LONGEST', 1)


@pytest.fixture(scope='module')
def folded():
    """One folded network of each family; a test leaves its as it was."""
    known = {}

    def get(family=FIRST):
        if family not in known:
            known[family] = build(family, folded=True)
        return known[family]

    return get


@torch.no_grad()
def ordinary(model, x):
    """Outputs of the modules called one by one."""
    before = os.environ.get('MMLK_PLAN')
    os.environ['MMLK_PLAN'] = '0'
    try:
        assert model.explain_plan(x) == 'not used, MMLK_PLAN=0'
        return model(x)
    finally:
        os.environ.pop('MMLK_PLAN') if before is None else os.environ.update(MMLK_PLAN=before)


@torch.no_grad()
def with_plan(model, x):
    """``model`` after its passes on such images are repeated."""
    for _ in range(3):
        if not model.explain_plan(x).startswith('used'):
            model(x)
    said = model.explain_plan(x)
    assert said.startswith('used'), said
    return model


@torch.no_grad()
@pytest.mark.parametrize('family', ['inceptionnext', 'slak', 'dcls_convnext'])
def test_nothing_of_torch_is_left_between_the_loops(family):
    """Stem, downsampling, layer norms, copies; kernels here are never clipped to their map."""
    model, x = build(family, folded=True, output_norm=False), torch.randn(1, 3, 224, 224)
    said = with_plan(model, x).explain_plan(x)
    assert 'in 1 series, 0 operators of torch' in said


def assert_same_bits(got, want):
    assert len(got) == len(want)
    for mine, theirs in zip(got, want):
        assert mine.stride() == theirs.stride()
        assert torch.equal(mine, theirs)


def random_like(x):
    return torch.randn_like(x)


@torch.no_grad()
@families
def test_repeated_passes_are_the_same_bit_by_bit(folded, family):
    """Images of several forms by turns, more threads at the end."""
    model, pair = folded(family), images(family)
    side = pair.shape[2]
    forms = [
        pair,
        pair.contiguous(memory_format=torch.channels_last),
        pair[:1, :, : side - 7, 3:].contiguous(),
    ]
    for x in forms:
        with_plan(model, x)
    for x in map(random_like, (*forms, forms[0])):
        before = x.clone()
        assert model.explain_plan(x).startswith('used')
        assert_same_bits(model(x), ordinary(model, x))
        assert torch.equal(x, before)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        assert model.explain_plan(pair).startswith('not used yet')
        assert_same_bits(with_plan(model, pair)(pair), ordinary(model, pair))
    finally:
        torch.set_num_threads(threads)


@torch.no_grad()
@pytest.mark.parametrize('family', [FIRST, 'slak'])
def test_outputs_belong_to_the_caller(folded, family):
    model, x = folded(family), images(family, 'channels_last')
    first = with_plan(model, x)(x)
    kept = [each.clone() for each in first]
    second = model(random_like(x))
    assert_same_bits([each.contiguous() for each in first], [each.contiguous() for each in kept])
    memory = [each.untyped_storage().data_ptr() for each in (*first, *second)]
    assert len(set(memory)) == len(memory)
    for each in first:
        assert each.untyped_storage().nbytes() == each.numel() * each.element_size()


@torch.no_grad()
@families
def test_written_weights_are_used(family):
    model, x = build(family, folded=True), images(family)[:1]
    kept = [each.clone() for each in model.parameters()]
    for write in WRITES:
        for parameter, value in zip(model.parameters(), kept):
            parameter.copy_(value)
        before = with_plan(model, x)(x)
        for parameter in model.parameters():
            write(parameter)
        got = model(x)
        assert any(not torch.equal(a, b) for a, b in zip(before, got))
        assert_same_bits(got, ordinary(model, x))


@torch.no_grad()
def test_a_write_to_any_parameter_is_seen(folded):
    model, x = folded(), images(FIRST)[:1]
    for parameter in list(model.parameters())[::3]:
        before = with_plan(model, x)(x)
        kept = parameter.clone()
        parameter.mul_(1.5)
        changed = model(x)
        parameter.copy_(kept)
        assert not torch.equal(before[-1], changed[-1])
        assert_same_bits(model(x), before)


@torch.no_grad()
@pytest.mark.parametrize(
    'family',
    [FIRST, *(pytest.param(each, marks=pytest.mark.slow) for each in OTHERS)],
)
def test_hooks_fire_that_are_added_later(folded, family):
    model, x = folded(family), images(family)[:1]
    expected = called_modules(model)
    for index, name in enumerate(places(model)):
        calls = []
        with_plan(model, x)
        kind = ('forward', 'forward_pre')[index % 2]
        register = getattr(model.get_submodule(name), f'register_{kind}_hook')
        handle = register(lambda *_, calls=calls: calls.append(1))
        model(x)
        handle.remove()
        assert len(calls) == expected[name], name


@torch.no_grad()
@pytest.mark.parametrize(
    'family',
    [FIRST, *(pytest.param(each, marks=pytest.mark.slow) for each in OTHERS)],
)
def test_modules_that_are_replaced_later_are_used(folded, family):
    model, x = folded(family), images(family)[:1]
    before = with_plan(model, x)(x)
    for index, name in enumerate(filter(None, places(model))):
        with_plan(model, x)
        with CHANGES[index % len(CHANGES)](model, name):
            assert_same_bits(model(x), ordinary(model, x))
    assert_same_bits(with_plan(model, x)(x), before)


def other_attribute(model):
    model.stages[0].blocks[0].token_mixer.mode = 'nearest'


def other_list_of_outputs(model):
    model.out_indices = (0, 1)


def other_parameter(model):
    mixer = model.stages[0].blocks[0].token_mixer
    mixer.down.weight = torch.nn.Parameter(mixer.down.weight * 2)


def other_memory(model):
    weight = model.stages[0].blocks[0].token_mixer.down.weight
    weight.data = weight.data * 2


def transposed_memory(model):
    weight = model.stages[0].blocks[0].token_mixer.down.weight
    weight.data = weight.data.transpose(2, 3)


def other_state(model):
    model.load_state_dict({name: 2 * each for name, each in model.state_dict().items()})


def other_class(model):
    class Louder(type(model)):
        def run_stage(self, stage, x):
            return 2 * super().run_stage(stage, x)

    model.__class__ = Louder


@torch.no_grad()
@pytest.mark.parametrize(
    'change',
    [
        other_attribute,
        other_list_of_outputs,
        other_parameter,
        other_memory,
        transposed_memory,
        other_state,
        other_class,
    ],
)
def test_a_changed_network_is_called(change):
    model, x = build(FIRST, folded=True), images(FIRST)
    before = with_plan(model, x)(x)
    change(model)
    for _ in range(4):
        got = model(x)
        assert_same_bits(got, ordinary(model, x))
    assert len(got) != len(before) or not torch.equal(got[0], before[0])


@torch.no_grad()
def test_all_that_watches_torch_sees_the_layers(folded, monkeypatch):
    model, x = folded(), images(FIRST)
    want = with_plan(model, x)(x)
    counter = FlopCounterMode(display=False)
    with counter:
        model(x)
    with_counter = counter.get_total_flops()
    monkeypatch.setenv('MMLK_PLAN', '0')
    with FlopCounterMode(display=False) as counter:
        model(x)
    assert with_counter == counter.get_total_flops() > 0
    monkeypatch.delenv('MMLK_PLAN')
    with torch.autocast('cpu', torch.bfloat16):
        assert model.explain_plan(x).startswith('not used')
    with torch.device('cpu'):
        assert model.explain_plan(x).startswith('not used')
    with torch.enable_grad():
        assert model.explain_plan(x) == 'not used, gradients may be asked for'
        assert all(each.requires_grad for each in model(x))
    shifted = {name: each + 1 for name, each in model.named_parameters()}
    got = torch.func.functional_call(model, shifted, (x,))
    assert not torch.equal(got[0], want[0])
    one = torch.func.vmap(lambda image: model(image[None])[0])(x)
    assert torch.allclose(one[:, 0], want[0], rtol=1e-3, atol=1e-3)
    assert_same_bits(with_plan(model, x)(x), want)


@torch.no_grad()
@pytest.mark.parametrize('name, value', [('MMLK_BACKEND', 'reference'), ('MMLK_JIT', '0')])
def test_switches_of_the_operators_are_obeyed(folded, name, value, monkeypatch):
    model, x = folded(), images(FIRST)
    want = with_plan(model, x)(x)
    monkeypatch.setenv(name, value)
    for _ in range(3):
        got = model(x)
    assert not any(torch.equal(a, b) for a, b in zip(got, want))
    assert_same_bits(got, ordinary(model, x))
    monkeypatch.delenv(name)
    assert_same_bits(model(x), want)


def test_inference_mode_has_plans_of_its_own(folded):
    model, x = folded(), images(FIRST)
    want = ordinary(model, x)
    for mode in (torch.inference_mode, torch.no_grad, torch.inference_mode):
        with mode():
            for _ in range(3):
                got = model(x)
            assert model.explain_plan(x).startswith('used')
            assert got[0].is_inference() == (mode is torch.inference_mode)
        assert_same_bits(got, want)


def test_training_and_moving_free_the_plans(folded):
    model, x = folded(), images(FIRST)
    for leave in (lambda: model.train().eval(), model.eval, lambda: model.float()):
        with_plan(model, x)
        leave()
        with torch.no_grad():
            assert model.explain_plan(x).startswith('not used yet')
    model.train()
    with torch.no_grad():
        for _ in range(3):
            model(x)
        assert 'training mode' in model.explain_plan(x)
    model.eval()


@torch.no_grad()
def test_copies_have_no_plans_and_stand_alone(folded):
    model, x = folded(), images(FIRST)
    plain = len(pickle.dumps(build(FIRST, folded=True)))
    want = with_plan(model, x)(x)
    assert len(pickle.dumps(model)) <= plain
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert other.explain_plan(x).startswith('not used yet')
        assert_same_bits(with_plan(other, x)(x), want)
        for parameter in other.parameters():
            parameter.mul_(2)
        assert not torch.equal(other(x)[0], want[0])
        assert_same_bits(model(x), want)


@torch.no_grad()
def test_few_plans_are_kept_and_freed_with_the_network():
    model, x = build(FIRST, folded=True), images(FIRST)
    found = []
    for columns in range(32, 32 + 4 * (network_plans.PLANS + 2), 4):
        with_plan(model, x[..., :columns])
        entries = model._plans._state.entries.values()
        found.append(weakref.ref([each.plan for each in entries][-1]))
    assert [each() is None for each in found] == [True] * 2 + [False] * network_plans.PLANS
    gc.disable()
    try:
        del model, entries
        assert all(each() is None for each in found)
    finally:
        gc.enable()


@torch.no_grad()
def test_forms_of_images_that_come_once_are_forgotten(folded, monkeypatch):
    monkeypatch.setattr(network_plans, 'FORMS', 3)
    model, x = folded(), images(FIRST)
    with_plan(model, x)
    for columns in range(32, 48, 4):
        model(x[..., :columns])
    assert len(model._plans._state.entries) == 3
    assert model.explain_plan(x).startswith('not used yet')


@torch.no_grad()
def test_several_threads_at_once(folded):
    """With a plan that one of them uses at a time, and plans that they record."""
    model = folded('recnext_a')
    shapes = [(2, 3, 64, 64), (1, 3, 64, 96)]
    pictures = [
        torch.randn(shapes[i % 2], generator=torch.Generator().manual_seed(i)) for i in range(6)
    ]
    want = [ordinary(model, x) for x in pictures]
    failed, start = [], threading.Barrier(len(pictures))

    def work(index):
        start.wait()
        with torch.no_grad():
            for _ in range(8):
                try:
                    assert_same_bits(model(pictures[index]), want[index])
                except BaseException as error:
                    failed.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(pictures))]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert not failed


@torch.no_grad()
def test_an_error_in_the_middle_leaves_nothing_broken(folded, monkeypatch):
    model, x = folded(), images(FIRST)
    want = with_plan(model, x)(x)
    calls, plain = [], Plan._repeat

    def interrupted(self, call, slots):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        plain(self, call, slots)

    with monkeypatch.context() as patch:
        patch.setattr(Plan, '_repeat', interrupted)
        with pytest.raises(KeyboardInterrupt):
            model(x)
    assert_same_bits(model(x), want)
    assert model.explain_plan(x).startswith('used')
    with pytest.raises(ValueError, match='smaller'):
        model(x[..., :8])
    assert_same_bits(model(x), want)


@torch.no_grad()
def test_another_thread_may_free_the_plan_while_it_is_made(folded, monkeypatch):
    model, x = folded(), images(FIRST)
    want, plain = ordinary(model, x), network_plans.plans.record

    def freed(*args):
        made = plain(*args)
        thread = threading.Thread(target=model.eval)
        thread.start()
        thread.join()
        return made

    model.eval()
    with monkeypatch.context() as patch:
        patch.setattr(network_plans.plans, 'record', freed)
        for _ in range(3):
            assert_same_bits(model(x), want)
        assert model.explain_plan(x).startswith('not used yet')
    assert_same_bits(with_plan(model, x)(x), want)


class Wrapped(torch.Tensor):
    """A tensor around another one, without memory of its own, as quantised weights are."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, dtype=inner.dtype, strides=inner.stride()
        )

    def __init__(self, inner):
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        args, kwargs = tree_map_only(cls, lambda each: each.inner, (args, kwargs or {}))
        result = function(*args, **kwargs)
        return cls(result) if function is torch.ops.aten.detach.default else result


@torch.no_grad()
@pytest.mark.parametrize(
    'change', [torch.Tensor.to_sparse, torch.Tensor.to_mkldnn, Wrapped, 'weight']
)
def test_tensors_without_memory_leave_the_network_as_it_is(folded, change):
    model, x = folded(), images(FIRST)
    want = with_plan(model, x)(x)
    conv = next(each for each in model.modules() if type(each) is torch.nn.Conv2d)
    kept = conv.weight
    if change == 'weight':
        conv.weight = torch.nn.Parameter(Wrapped(kept.detach()), requires_grad=False)
    else:
        model.register_buffer('other', change(torch.eye(4)))
        assert model.explain_plan(change(x)).startswith('not used, the image is a')
    try:
        for _ in range(4):
            got = model(x)
        assert 'without memory' in model.explain_plan(x)
    finally:
        conv.weight = kept
        if change != 'weight':
            del model.other
    for mine, theirs in zip(got, want):
        assert torch.allclose(mine, theirs, rtol=1e-3, atol=1e-3)
    assert_same_bits(with_plan(model, x)(x), want)


@torch.no_grad()
@pytest.mark.parametrize('place', ['object', 'class'])
@pytest.mark.parametrize(
    'name, method', [('', 'run_stage'), ('stages.1', 'forward'), ('stages.2.blocks.0', 'forward')]
)
def test_methods_that_are_replaced_later_are_called(folded, name, method, place, monkeypatch):
    model, x = folded(), images(FIRST)
    want, calls = with_plan(model, x)(x), []
    module = model.get_submodule(name)
    owner = module if place == 'object' else type(module)
    plain = getattr(owner, method)

    @functools.wraps(plain)
    def watched(*args):
        calls.append(1)
        return plain(*args)

    with monkeypatch.context() as patch:
        patch.setattr(owner, method, watched)
        for _ in range(4):
            before = len(calls)
            assert_same_bits(model(x), want)
            assert len(calls) > before
        assert 'replaced' in model.explain_plan(x)
    assert_same_bits(with_plan(model, x)(x), want)


def other_order(parts):
    return dict(reversed(parts.items()))


def other_names(parts):
    first, *middle, last = parts
    return dict(zip((last, *middle, first), parts.values()))


@torch.no_grad()
@pytest.mark.parametrize('in_place', [True, False])
@pytest.mark.parametrize('change', [other_order, other_names])
def test_order_and_names_of_modules_are_seen(change, in_place):
    model, x = build(FIRST, folded=True), images(FIRST)
    first, last = torch.nn.Softplus(), torch.nn.Hardtanh(-0.5, 0.5)
    stage = model.stages[0]
    stage.downsample = torch.nn.Sequential(first, last)
    stage.spare = torch.nn.Identity()
    owner = stage.downsample if change is other_order else stage
    model.eval()
    before = with_plan(model, x)(x)
    parts = change(owner._modules)
    if in_place:
        owner._modules.clear()
        owner._modules.update(parts)
    else:
        owner._modules = parts
    got = model(x)
    assert not torch.equal(got[0], before[0])
    assert_same_bits(got, ordinary(model, x))


@torch.no_grad()
def test_lists_and_dicts_that_change_in_place_are_seen():
    model, x = build(FIRST, folded=True), images(FIRST)[:1]
    model.out_indices = [0, 1]
    with_plan(model, x)
    model.out_indices.append(2)
    assert_same_bits(model(x), ordinary(model, x))
    block = model.stages[1].blocks[0]
    block.choices = {'first': [1], 'last': {}}
    for change in (
        lambda: block.choices['first'].append(2),
        lambda: block.choices['last'].update(a=1),
    ):
        with_plan(model, x)
        change()
        assert model.explain_plan(x).startswith('not used yet')


@torch.no_grad()
def test_more_forms_than_plans_are_seldom_recorded(monkeypatch):
    """Pictures of many sizes by turns: a plan that gives way before its next use was made in vain."""
    monkeypatch.setattr(network_plans, 'LONGEST', 64)
    monkeypatch.setattr(network_plans, 'PLANS', 1)
    model, x, made = build(FIRST, folded=True), images(FIRST)[:1], []
    plain = network_plans.plans.record
    monkeypatch.setattr(network_plans.plans, 'record', lambda *args: made.append(1) or plain(*args))
    for _ in range(15):
        for each in (x, x[..., :48]):
            model(each)
    assert 2 <= len(made) <= 7


@torch.no_grad()
def test_the_first_plan_comes_later_in_a_network_that_changes_often(folded, monkeypatch):
    monkeypatch.setattr(network_plans, 'LONGEST', 4)
    model, x = build(FIRST, folded=True), images(FIRST)
    passes = []
    for _ in range(4):
        count = 0
        while not model.explain_plan(x).startswith('used'):
            model(x)
            count += 1
        passes.append(count)
        next(model.parameters()).mul_(1.1)
        model.stages[0].blocks[0].channel_mixer[0].weight.mul_(1.1)
    assert passes == [2, 3, 5, 5]
