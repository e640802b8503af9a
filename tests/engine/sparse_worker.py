"""One process of a distributed sparse training on gloo; started by test_sparse_distributed."""

import os
import sys

import torch
from mmengine.hooks import Hook

from mmlk.engine import SparseMaskHook
from tests.engine.sparse_models import Recorder, sparse_runner

WRAPPERS = {
    'replicated': dict(type='MMDistributedDataParallel', device_ids=None),
    'sharded': dict(type='MMFullyShardedDataParallel', device_id=torch.device('cpu')),
}


def main(rank: int, world_size: int, folder: str, kind: str) -> None:
    """Train six iterations; leave this rank's masks, densities and strays in ``folder``."""
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size))
    torch.distributed.init_process_group(
        'gloo', init_method=f'file://{folder}/rendezvous', rank=rank, world_size=world_size
    )
    hook = SparseMaskHook(
        init='snip' if kind == 'replicated' else 'erk', growth='gradient', update_interval=2
    )
    runner, _ = sparse_runner(
        folder,
        hook=hook,
        max_iters=6,
        checkpoint_interval=6 if kind == 'replicated' else 100,
        launcher='pytorch',
        model_wrapper_cfg=WRAPPERS[kind],
    )
    recorder = Recorder(hook, runner.model)
    recording = Hook()
    recording.after_train_iter = recorder
    runner.register_hook(recording, 'VERY_LOW')
    if kind == 'sharded':
        # MMEngine's Runner broadcasts parameters as if all ranks held whole ones.
        runner._init_model_weights = lambda: None
    runner.train()
    torch.save(
        dict(
            masks=hook.masks, densities=recorder.densities, strays=recorder.strays, step=hook.step
        ),
        f'{folder}/rank{rank}.pt',
    )
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == '__main__':
    main(int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
