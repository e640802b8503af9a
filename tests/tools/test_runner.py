"""What a run says of checkpoints and pictures that it cannot use: the file, the reason, the remedy."""

import logging
import shutil

import pytest
import torch
from mmengine.dataset import BaseDataset
from mmengine.model import BaseModel

from mmlk.checkpoints.errors import UnusableCheckpoint
from mmlk.cli.loading import require_coverage
from mmlk.cli.runner import Runner
from mmlk.data.errors import DataError
from tests.tools import workbench


class Line(BaseModel):
    """One linear layer that learns the number 1."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def forward(self, inputs, mode='tensor'):
        return dict(loss=(self.layer(torch.ones(1, 1)) - 1).square().mean())


class Numbers(BaseDataset):
    """Four samples, or one that raises ``error``."""

    def __init__(self, error=None):
        self.error = error
        super().__init__(serialize_data=False)

    def load_data_list(self):
        return [dict(number=number) for number in range(4)]

    def __getitem__(self, index):
        if self.error:
            raise self.error
        return dict(inputs=torch.ones(1))


def runner(
    folder,
    end=4,
    lr=0.1,
    name='one',
    dataset=None,
    workers=0,
    batch_size=2,
    drop_last=False,
    **options,
):
    return Runner(
        model=Line(),
        work_dir=str(folder),
        experiment_name=f'{folder.name}_{name}',
        train_dataloader=dict(
            dataset=dataset or Numbers(),
            sampler=dict(type='DefaultSampler', shuffle=False),
            batch_size=batch_size,
            drop_last=drop_last,
            num_workers=workers,
            collate_fn=dict(type='default_collate'),
        ),
        train_cfg=dict(by_epoch=True, max_epochs=2),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=lr)),
        param_scheduler=[dict(type='LinearLR', start_factor=0.5, end=end, by_epoch=False)],
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=1)),
        default_scope='mmengine',
        **options,
    )


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp('trained')
    runner(folder).train()
    return folder / 'epoch_1.pth'


def change(path, folder, edit):
    """A copy of a checkpoint with other content."""
    content = torch.load(path, weights_only=False)
    edit(content)
    torch.save(content, folder / 'changed.pth')
    return folder / 'changed.pth'


def test_weights_that_a_model_refuses_name_the_file(trained, tmp_path):
    path = change(trained, tmp_path, lambda content: content['state_dict'].pop('layer.bias'))
    run = runner(tmp_path, load_from=str(path))
    require_coverage(run.model)
    with pytest.raises(UnusableCheckpoint, match=f'^{path}: .*lacks 1 .*first layer.bias'):
        run.train()


def test_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UnusableCheckpoint, match='gone.pth'):
        runner(tmp_path, load_from=str(tmp_path / 'gone.pth')).train()


def test_weights_alone_cannot_be_resumed(trained, tmp_path):
    path = change(trained, tmp_path, lambda content: content['meta'].pop('epoch'))
    with pytest.raises(UnusableCheckpoint, match=f"{path} has no entry 'epoch'.*load_from={path}"):
        runner(tmp_path, load_from=str(path), resume=True).train()


def test_optimizer_of_another_model_names_the_file(trained, tmp_path):
    path = change(trained, tmp_path, lambda content: content['optimizer']['param_groups'].pop())
    with pytest.raises(UnusableCheckpoint, match=f'^{path}: .*parameter group'):
        runner(tmp_path, load_from=str(path), resume=True).train()


def test_another_class_count_cannot_be_resumed(trained, tmp_path):
    def widen(content):
        content['state_dict']['layer.weight'] = torch.ones(3, 1)

    path = change(trained, tmp_path, widen)
    with pytest.raises(UnusableCheckpoint, match=f'^{path}: .*other shapes, first layer.weight'):
        runner(tmp_path, load_from=str(path), resume=True).train()


def warnings(caplog):
    return [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING]


def resume(trained, folder, caplog, **changes):
    run = runner(folder, load_from=str(trained), resume=True, **changes)
    run.logger.addHandler(caplog.handler)
    run.train()
    return [message for message in warnings(caplog) if 'keeps its schedule' in message]


def test_resuming_with_the_same_schedule_is_silent(trained, tmp_path, caplog):
    assert not resume(trained, tmp_path, caplog)


def test_a_changed_schedule_is_told(trained, tmp_path, caplog):
    (message,) = resume(trained, tmp_path, caplog, end=100, lr=0.2)
    assert 'LinearLR end 4 (the config: 100)' in message
    assert 'initial value 0.1 (the config: 0.2)' in message
    assert f'load_from={trained}' in message


@pytest.mark.parametrize('workers', [0, 1])
def test_picture_that_cannot_be_decoded_is_named_with_its_remedy(tmp_path, workers):
    broken = Numbers(AssertionError('failed to load image: /data/cut.jpg'))
    with pytest.raises(DataError, match='^/data/cut.jpg is not a picture.*mmlk check-data CONFIG'):
        runner(tmp_path, dataset=broken, workers=workers).train()


def test_any_other_sample_keeps_its_error_and_gets_the_remedy(tmp_path, caplog):
    run = runner(tmp_path, dataset=Numbers(AttributeError('squeeze')))
    run.logger.addHandler(caplog.handler)
    with pytest.raises(AttributeError, match='^squeeze$'):
        run.train()
    assert 'mmlk check-data CONFIG' in caplog.text


def test_errors_of_the_model_are_left_alone(tmp_path, caplog, monkeypatch):
    run = runner(tmp_path)
    monkeypatch.setattr(Line, 'forward', lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run.train()
    assert 'check-data' not in caplog.text


@pytest.fixture(scope='module')
def other_network(tmp_path_factory):
    """Weights of a segmentor with another backbone than the workbench's."""
    path = tmp_path_factory.mktemp('other') / 'other.pth'
    state = {'backbone.stem.0.weight': torch.ones(3, 3, 4, 4), 'decode_head.x': torch.ones(1)}
    torch.save(dict(state_dict=state, meta={}), path)
    return path


@pytest.mark.parametrize('tool', ['train.py', 'test.py'])
def test_tools_end_in_one_message_on_a_checkpoint_of_another_config(
    tool, other_network, config, data_root, tmp_path, monkeypatch
):
    words = [config, other_network] if tool == 'test.py' else [config, '--cfg-options']
    words += [] if tool == 'test.py' else [f'load_from={other_network}']
    with pytest.raises(SystemExit, match=f'{tool}: error: {other_network}: .*does not cover'):
        workbench.call_tool(tool, *words, monkeypatch=monkeypatch, cwd=tmp_path)


def test_test_tool_names_a_broken_picture(config, data_root, tmp_path, monkeypatch):
    root = shutil.copytree(data_root, tmp_path / 'data')
    picture = next((root / 'images' / 'training').iterdir())
    picture.write_bytes(picture.read_bytes()[:100])
    options = ['--cfg-options', f'data_root={root}']
    with pytest.raises(SystemExit, match=f'{picture} is not a picture.*check-data'):
        workbench.call_tool('train.py', config, *options, monkeypatch=monkeypatch, cwd=tmp_path)


@pytest.mark.parametrize('batch_size, drop_last', [(5, False), (4, True), (3, True)])
def test_an_epoch_has_a_batch(tmp_path, batch_size, drop_last):
    run = runner(tmp_path, batch_size=batch_size, drop_last=drop_last)
    run.train()
    assert run.iter == 2, 'two epochs'


def test_an_epoch_without_a_batch_is_refused(tmp_path):
    message = 'an epoch has no batch: 4 samples, batches of 5, .*batch_size, or .*drop_last=False'
    with pytest.raises(DataError, match=message):
        runner(tmp_path, batch_size=5, drop_last=True).train()
