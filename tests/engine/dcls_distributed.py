"""Trains the micro classifier as one of several gloo processes; run by test_dcls.py.

Arguments: work directory, rendezvous file, rank, number of processes, the iteration after which the
process dies without cleaning up (0 resumes a run that died and finishes it), and 1 for a moving average
of the weights.
"""

import os
import sys

import torch
from mmengine.dist import all_gather
from mmengine.hooks import EMAHook, Hook
from mmengine.model import MMDistributedDataParallel

from tests.engine.dcls_models import LIMIT, Classifier, make_runner, positions

HOOKS = (dict(type='mmlk.DCLSClampHook'), dict(type='mmlk.DCLSRepulsionHook', begin=0))
DEATH = 17


class Death(Hook):
    """Ends the process as a kill would."""

    priority = 'LOWEST'

    def __init__(self, iteration):
        self.iteration = iteration

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter + 1 == self.iteration:
            os._exit(DEATH)


def main(
    work_dir: str, rendezvous: str, rank: int, processes: int, dies_after: int, average: int
) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(processes))
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        'gloo', init_method=f'file://{rendezvous}', rank=rank, world_size=processes
    )
    torch.manual_seed(0)
    runner = make_runner(
        work_dir,
        launcher='pytorch',
        resume=not dies_after,
        hooks=[*HOOKS, *[dict(type='EMAHook')] * average, Death(dies_after)],
        model=MMDistributedDataParallel(module=Classifier()),
    )
    initial = [value.detach().clone() for value in positions(runner.model).values()]
    runner.train()
    found = positions(runner.model)
    assert runner.iter == 4 and len(found) == 4, sorted(found)
    for value, before in zip(found.values(), initial, strict=True):
        assert value.abs().max() <= LIMIT and not torch.equal(value, before)
        ranks = all_gather(value.detach())
        assert len(ranks) == processes and all(torch.equal(each, ranks[0]) for each in ranks)
    averages = [hook.ema_model.module for hook in runner.hooks if isinstance(hook, EMAHook)]
    assert len(averages) == average
    for model in (runner.model.module, *averages):
        first, second = model.backbone.stages[0]
        assert second.dwconv.P is first.dwconv.P
    torch.distributed.barrier()
    # gloo's threads end here; left to the interpreter's end, they now and then abort the process.
    torch.distributed.destroy_process_group()


if __name__ == '__main__':
    main(*sys.argv[1:3], *map(int, sys.argv[3:]))
