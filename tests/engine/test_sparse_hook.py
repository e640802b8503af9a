"""The sparse hook inside MMEngine's training loop."""

import pytest
import torch
from mmengine.hooks import EMAHook, Hook
from mmengine.runner import load_checkpoint

from mmlk.engine import SparseMaskHook
from mmlk.engine.sparse import clean_name
from mmlk.engine.sparse_topology import pack_mask
from tests.engine.sparse_models import (
    Classifier,
    Recorder,
    recorded_classifier,
    sparse_runner,
    stub_runner,
)
from tests.engine.test_sparse_topology import golden_mask
from tests.golden_weights import load_golden

GOLDEN = load_golden('slak/sparse')
EVERYTHING = ('',)
STRIPS = (r'large_kernel\.LoRA',)


@pytest.mark.parametrize(
    ('include', 'record'),
    [
        (EVERYTHING, [name for name, _ in GOLDEN['masked_names_default']]),
        (STRIPS, GOLDEN['masked_names_only_L']),
    ],
    ids=['all', 'strips'],
)
def test_masked_parameters_are_the_authors(include, record):
    hook = SparseMaskHook(init='uniform', include=include)
    hook.before_train(stub_runner(recorded_classifier()))
    assert {name.removeprefix('backbone.') for name in hook.masks} == set(record)


@pytest.mark.parametrize(
    'case', GOLDEN['snip'], ids=lambda case: f'gamma-{case["gamma"]}-only_L-{case["only_L"]}'
)
def test_snip_gives_the_layer_densities_of_the_authors(case):
    model = recorded_classifier({'golden': None}.get(case['gamma'], case['gamma']))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    hook = SparseMaskHook(
        density=case['keep_ratio'], init='snip', include=STRIPS if case['only_L'] else EVERYTHING
    )
    runner = stub_runner(model)
    hook.before_train(runner)
    got = {
        name.removeprefix('backbone.'): 1 - mask.double().mean().item()
        for name, mask in hook.masks.items()
    }
    got.update({name.removeprefix('backbone.'): 0.0 for name in hook._dense})
    want = case['layer_wise_sparsity']
    assert got.keys() == want.keys()
    sizes = {name: mask.numel() for name, mask in hook.masks.items()} | hook._dense
    for name, size in sizes.items():
        short = name.removeprefix('backbone.')
        # Two positions at the threshold may swap sides by rounding; 1 % of a layer that is popped.
        allowed = 2.5 / size + (0.01 if name in hook._dense else 0)
        assert got[short] == pytest.approx(want[short], abs=allowed), short
    assert {name.removeprefix('backbone.') for name in hook._dense} == set(
        case['layers_popped_density_ge_0.99']
    )
    for key, value in model.named_buffers():
        assert torch.equal(value, before[key]), key


def test_trajectory_is_the_authors():
    record = GOLDEN['trajectory']
    model = recorded_classifier()
    hook = SparseMaskHook(
        growth='gradient',
        prune_rate=record['prune_rate'],
        include=EVERYTHING,
        update_interval=record['update_frequency'],
    )
    masks = {
        name: golden_mask(name.removeprefix('backbone.'), tuple(param.shape))
        for name, param in model.named_parameters()
        if param.ndim in (2, 4)
    }
    runner = stub_runner(model, max_iters=record['T_max'])
    runner._resume = True
    hook.after_load_checkpoint(
        runner,
        dict(
            sparse_masks=dict(
                step=0,
                rate=0.3,
                dense={},
                targets={name: int(mask.sum()) for name, mask in masks.items()},
                shapes={name: mask.shape for name, mask in masks.items()},
                packed={name: pack_mask(mask) for name, mask in masks.items()},
            )
        ),
    )
    hook.before_train(runner)
    batch = next(iter(runner.train_loop.dataloader))
    model.train()
    for step in record['steps']:
        loss = model(batch['inputs'], batch['labels'])['loss']
        assert loss.item() == pytest.approx(step['loss_before_step'], rel=2e-3)
        runner.optim_wrapper.update_params(loss)
        assert hook.rate == pytest.approx(step['prune_rate_after_step'], abs=1e-12)
        assert {
            name.removeprefix('backbone.'): int(mask.sum()) for name, mask in hook.masks.items()
        } == step['nonzero_per_mask']
        params = dict(model.named_parameters())
        strays = sum(int(params[n][~mask].count_nonzero()) for n, mask in hook.masks.items())
        assert strays == step['weights_nonzero_outside_mask']


AMP = dict(type='AmpOptimWrapper', dtype='bfloat16')


@pytest.fixture(autouse=True)
def _amp_without_accelerator(monkeypatch):
    """MMEngine refuses its AMP wrapper on a CPU, where bfloat16 autocast works all the same."""
    monkeypatch.setattr(
        'mmengine.optim.optimizer.amp_optimizer_wrapper.is_cuda_available', lambda: True
    )


@pytest.mark.parametrize(
    ('init', 'optim_wrapper'),
    [
        ('uniform', {}),
        ('snip', AMP),
        ('erk', dict(accumulative_counts=3)),
        ('uniform', dict(optimizer=dict(type='SGD', lr=0.1, momentum=0.9))),
    ],
    ids=['plain', 'amp', 'accumulation', 'sgd'],
)
def test_density_is_kept_after_every_step(tmp_path, optim_wrapper, init):
    hook = SparseMaskHook(density=0.6, init=init, update_interval=2)
    runner, _ = sparse_runner(tmp_path, hook=hook, optim_wrapper=optim_wrapper, max_iters=7)
    recorder = Recorder(hook, runner.model)
    recording = Hook()
    recording.after_train_iter = recorder
    runner.register_hook(recording, 'VERY_LOW')
    runner.train()
    assert (
        recorder.steps
        == [[1, 2, 3, 4, 5, 6, 7], [0, 0, 1, 1, 1, 2, 3]][
            optim_wrapper.get('accumulative_counts', 1) == 3
        ]
    )
    assert recorder.densities == pytest.approx([0.6] * 7, rel=0.005)
    assert recorder.strays == 0


def test_a_step_skipped_by_loss_scaling_changes_nothing():
    hook = SparseMaskHook(init='uniform', update_interval=1)
    runner = stub_runner(Classifier())
    hook.before_train(runner)
    masks = dict(hook.masks)
    scaler = torch.amp.GradScaler('cpu', init_scale=2.0**10)
    optimizer = runner.optim_wrapper.optimizer
    for fill, steps in ((float('inf'), 0), (1.0, 1), (float('nan'), 1)):
        scaler.scale(torch.zeros(()))
        for param in runner.model.parameters():
            param.grad = torch.full_like(param, fill)
        scaler.step(optimizer)
        scaler.update()
        assert hook.step == steps
        assert all(hook.masks[name] is mask for name, mask in masks.items()) == (steps == 0)


class Killed(RuntimeError):
    """Stands for the end of a process."""


class KillAt(Hook):
    """Raises in the middle of training."""

    def __init__(self, iteration):
        self.iteration = iteration

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == self.iteration:
            raise Killed


@pytest.mark.parametrize(
    ('growth', 'optim_wrapper'),
    [('random', {}), ('gradient', AMP), ('bernoulli', dict(accumulative_counts=2))],
    ids=['plain', 'amp', 'accumulation'],
)
def test_a_killed_and_resumed_run_ends_with_the_same_masks(tmp_path, optim_wrapper, growth):
    def hook():
        return SparseMaskHook(init='snip', growth=growth, update_interval=2, prune_rate=0.3)

    def run(folder, hooks=(), **options):
        runner, used = sparse_runner(
            tmp_path / folder,
            hook=hook(),
            optim_wrapper=optim_wrapper,
            hooks=[EMAHook(), *hooks],
            **options,
        )
        return runner, used

    whole, uninterrupted = run('whole')
    whole.train()
    broken, _ = run('broken', [KillAt(6)])
    with pytest.raises(Killed):
        broken.train()
    again, resumed = run('broken', resume=True)
    again.train()
    assert resumed.step == uninterrupted.step and resumed.rate == uninterrupted.rate
    assert resumed.masks.keys() == uninterrupted.masks.keys()
    for name, mask in uninterrupted.masks.items():
        assert torch.equal(resumed.masks[name], mask), name
    saved = [
        torch.load(tmp_path / folder / 'iter_8.pth', weights_only=False)
        for folder in ('whole', 'broken')
    ]
    for key in ('state_dict', 'ema_state_dict'):
        for name, value in saved[0][key].items():
            assert torch.equal(value, saved[1][key][name]), (key, name)


def test_averaged_weights_stay_inside_the_masks(tmp_path):
    average = EMAHook()
    runner, hook = sparse_runner(tmp_path, hooks=[average], max_iters=7)
    seen = []
    recording = Hook()

    def record(*_, **__):
        params = dict(average.ema_model.module.named_parameters())
        seen.append(sum(int(params[n][~mask].count_nonzero()) for n, mask in hook.masks.items()))
        # After the first update every live weight of the average is near the weight itself.
        seen.append(
            max(
                (params[n] - p)[hook.masks[n]].abs().max().item()
                for n, p in runner.model.named_parameters()
                if n in hook.masks
            )
        )

    recording.after_train_iter = record
    runner.register_hook(recording, 'VERY_LOW')
    runner.train()
    assert seen[::2] == [0] * 7
    assert max(seen[1::2]) < 0.02


def test_fixed_masks_follow_the_zeros_of_a_checkpoint(tmp_path):
    model = Classifier(layer_scale_init=1.0)
    weight = model.backbone.stages[2][0].pwconv1.weight
    with torch.no_grad():
        weight[weight.abs() < 0.01] = 0
    zeros = weight == 0
    hook = SparseMaskHook(init='from_weights', update_interval=0)
    runner, _ = sparse_runner(tmp_path, hook=hook, model=model, max_iters=3)
    runner.train()
    assert torch.equal(weight == 0, zeros) and 0.2 < zeros.double().mean() < 0.6
    assert hook.masks['backbone.stages.3.0.pwconv1.weight'].all()


def test_a_resumed_run_without_masks_or_with_others_is_refused(tmp_path):
    runner, hook = sparse_runner(tmp_path, max_iters=4)
    runner.train()
    checkpoint = torch.load(tmp_path / 'iter_4.pth', weights_only=False)
    assert {'step', 'rate', 'packed'} <= checkpoint['sparse_masks'].keys()
    stub = stub_runner(Classifier())
    stub._resume = True
    other = SparseMaskHook(include=(r'pwconv',))
    other.after_load_checkpoint(stub, checkpoint)
    with pytest.raises(ValueError, match='do not fit the model: no mask for .*no parameter for'):
        other.before_train(stub)
    reshaped = SparseMaskHook()
    saved = dict(checkpoint['sparse_masks'])
    name = 'backbone.stages.0.0.pwconv1.weight'
    saved['shapes'] = saved['shapes'] | {name: (3, 3)}
    reshaped.after_load_checkpoint(stub, dict(sparse_masks=saved))
    with pytest.raises(
        ValueError, match=r'pwconv1.weight is \(3, 3\) in the checkpoint and \(48, 12\)'
    ):
        reshaped.before_train(stub)
    bare = SparseMaskHook()
    bare.after_load_checkpoint(stub, {})
    with pytest.raises(ValueError, match='has no masks'):
        bare.before_train(stub)


def test_saved_weights_load_without_the_hook(tmp_path):
    runner, hook = sparse_runner(tmp_path, max_iters=4)
    runner.train()
    model = Classifier()
    load_checkpoint(model, str(tmp_path / 'iter_4.pth'))
    weight = model.backbone.stages[3][0].pwconv1.weight
    assert torch.equal(
        weight != 0, hook.masks['backbone.stages.3.0.pwconv1.weight'] & (weight != 0)
    )
    assert (weight == 0).double().mean() > 0.39


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(density=0.0), r'density 0.0 must lie in \(0, 1\]'),
        (dict(density=1.1), r'density 1.1 must lie in \(0, 1\]'),
        (dict(density='half'), "density 'half'"),
        (dict(init='magic'), "init 'magic' is not one of"),
        (dict(growth='momentum'), "growth 'momentum' is not one of"),
        (dict(prune_rate=0.001), 'prune rates 0.001 to 0.005'),
        (dict(update_interval=-1), 'update_interval -1'),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        SparseMaskHook(**options)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(include=(r'^neck\.',)), 'no trainable parameter with 2 or 4 dimensions'),
        (dict(init='from_weights'), 'found no zero weight'),
        (dict(density=0.999, init='uniform'), 'every layer would be at least 0.99 dense'),
    ],
)
def test_nothing_to_mask_is_an_error(options, message):
    with pytest.raises(RuntimeError, match=f'nothing to mask: .*{message}'):
        SparseMaskHook(**options).before_train(stub_runner(Classifier()))


@pytest.mark.parametrize(
    'wrapped',
    [
        'module.backbone.stages.0.weight',
        '_orig_mod.module.backbone.stages.0.weight',
        '_fsdp_wrapped_module.backbone._fsdp_wrapped_module.stages.0._checkpoint_wrapped_module.weight',
        'backbone.stages.0.weight',
    ],
)
def test_names_are_those_of_the_unwrapped_model(wrapped):
    assert clean_name(wrapped) == 'backbone.stages.0.weight'
