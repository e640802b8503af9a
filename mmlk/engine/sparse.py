"""Sparse training as a hook: masks that stay on the weights through AMP, accumulation and resumes."""

from __future__ import annotations

import contextlib
import math
import re
import zlib
from collections.abc import Iterator, Sequence

import torch
from mmengine.dist import all_gather, all_reduce, broadcast, get_rank, get_world_size
from mmengine.hooks import EMAHook, Hook
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel as FSDP

from mmlk.compat import accumulated_iterations, resumes
from mmlk.engine import sparse_topology as topology
from mmlk.engine.optimizers import single_wrapper
from mmlk.registry import HOOKS

_INITS = ('snip', 'uniform', 'erk', 'from_weights')
_GROWTHS = ('random', 'bernoulli', 'gradient')
_CHECKPOINT_KEY = 'sparse_masks'
# Parts that wrappers insert into parameter names.
_WRAPPERS = re.compile(
    r'^(?:_orig_mod\.|module\.)+|(?:_fsdp_wrapped_module|_checkpoint_wrapped_module|_orig_mod)\.'
)
_SEED_STEP = 1_000_003


@HOOKS.register_module()
class SparseMaskHook(Hook):
    """Keeps a share of the weights at zero while training (SLaK, Sec. 3.3; RigL, SET).

    The masks are applied after every step that the optimizer really makes, whatever accumulation or
    loss scaling do in between. Every ``update_interval`` optimizer steps the smallest kept weights of
    each layer are pruned and as many positions grow elsewhere; the pruned share follows a cosine.
    Masks, step and rate are part of every checkpoint. Ranks draw the same masks from the same seed;
    the first masks are broadcast, later ones verified by a checksum at each update.

    Masked are all parameters with 2 or 4 dimensions, that require a gradient, whose name matches
    ``include``. A layer whose initial density would reach ``dense_above`` stays dense for good.

    Dense-prediction fine-tuning as SLaK's authors do it keeps the masks of the classifier:
    ``dict(type='mmlk.SparseMaskHook', init='from_weights', update_interval=0)``.

    Args:
        density: Share of the masked parameters that is kept, in (0, 1]; unused by ``from_weights``.
        init: ``snip`` (sensitivities of one batch set each layer's density, positions are random),
            ``uniform``, ``erk``, or ``from_weights`` (keep what is not exactly zero).
        growth: ``random`` (as many positions as were pruned), ``bernoulli`` (the authors' independent
            draws, as many on average), or ``gradient`` (where the gradient is largest).
        prune_rate: Share of kept weights pruned at the start of training; the authors use 0.5 for
            SLaK-T and 0.3 for S and B.
        final_prune_rate: Share at the end of training.
        update_interval: Optimizer steps between updates; 0 keeps the first masks. The authors use
            2000 for SLaK-T and 100 for S and B.
        include: Regular expressions searched in parameter names (wrapper prefixes removed). The
            authors' large-kernels-only mode is ``(r'large_kernel\\.LoRA',)``.
        dense_above: See above.
        seed: Seed of the random masks.
        allow_dense: With ``from_weights``, do nothing where no weight is zero instead of raising.

    Raises:
        ValueError: If an argument is out of range, or saved masks do not fit the model.
        RuntimeError: If nothing is there to mask, ranks disagree, or there is another such hook.
    """

    priority = 'LOW'  # after EMAHook and before CheckpointHook

    def __init__(
        self,
        density: float = 0.6,
        init: str = 'snip',
        growth: str = 'random',
        prune_rate: float = 0.5,
        final_prune_rate: float = 0.005,
        update_interval: int = 2000,
        include: Sequence[str] = (r'^backbone\.',),
        dense_above: float = 0.99,
        seed: int = 0,
        allow_dense: bool = False,
    ):
        _check_options(density, init, growth, prune_rate, final_prune_rate, update_interval)
        self.density = density
        self.init = init
        self.growth = growth
        self.prune_rate = prune_rate
        self.final_prune_rate = final_prune_rate
        self.update_interval = update_interval
        self.include = (include,) if isinstance(include, str) else tuple(include)
        self.dense_above = dense_above
        self.seed = seed
        self.allow_dense = allow_dense
        self.masks: dict[str, torch.Tensor] = {}
        """Masks by parameter name, without wrapper prefixes."""
        self.step = 0
        """Optimizer steps made."""
        self.rate = prune_rate
        """Prune rate at the current step."""
        self._targets: dict[str, int] = {}
        self._dense: dict[str, int] = {}
        self._grown: dict[str, torch.Tensor] = {}
        self._grown_at = 0
        self._saved: dict | None = None
        self._total_steps = 0
        self._step_handle = None

    # Entry points of the runner, in the order in which it calls them.

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        """Keep the masks of a checkpoint that training resumes from."""
        if resumes(runner):
            self._saved = checkpoint.get(_CHECKPOINT_KEY, {})

    def before_train(self, runner) -> None:
        """Make or restore the masks, apply them, and follow the optimizer from here on."""
        wrapper = single_wrapper(runner, 'SparseMaskHook')
        if any(isinstance(hook, SparseMaskHook) and hook is not self for hook in runner.hooks):
            raise RuntimeError(
                'SparseMaskHook: there are two of them, whose masks contradict each other; set the '
                'options of the one that the config has, default_hooks=dict(sparse_mask=dict(...))'
            )
        counts = accumulated_iterations(wrapper)
        self._total_steps = math.ceil(runner.max_iters / counts)
        with full_parameters(runner.model) as named:
            params = self._select(named)
            if self._saved is not None and (self._saved or not self.allow_dense):
                self._restore(params)
            else:
                self._initialise(runner, params)
            _apply(self.masks, params)
            self._await_average(runner, params)
        if not (self.masks or self._dense):
            print_log('SparseMaskHook: no weight is zero, nothing is masked', logger='current')
            return
        self._verify_ranks()
        self._log(runner, 'masks ' + ('restored' if self._saved is not None else 'set'))
        self._saved = None
        self._step_handle = wrapper.optimizer.register_step_post_hook(
            lambda stepped, *_: self._after_step(runner, stepped)
        )

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        """Make the averaged model of an ``EMAHook`` respect the masks."""
        for average in _averaged_models(runner):
            params = dict(_clean_names(_unwrap(runner.model)))
            for name, averaged in _clean_names(average):
                if name in self.masks:
                    topology.average_masked(
                        averaged.data, params[name].data, self.masks[name], self._grown.get(name)
                    )
        if self.step > self._grown_at:
            self._grown = {}

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        """Add the masks, eight positions per byte, with step and rate."""
        if self.masks:
            checkpoint[_CHECKPOINT_KEY] = dict(
                step=self.step,
                rate=self.rate,
                density=self.density,
                dense=dict(self._dense),
                targets=dict(self._targets),
                shapes={name: tuple(mask.shape) for name, mask in self.masks.items()},
                packed={name: topology.pack_mask(mask) for name, mask in self.masks.items()},
            )

    def after_train(self, runner) -> None:
        """Stop following the optimizer."""
        if self._step_handle is not None:
            self._step_handle.remove()

    def overall_density(self) -> float:
        """Kept share of all selected parameters, layers that stay dense included."""
        dense = sum(self._dense.values())
        kept = sum(int(mask.sum()) for mask in self.masks.values())
        return (kept + dense) / (sum(mask.numel() for mask in self.masks.values()) + dense)

    # Making masks.

    def _select(self, named: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Parameters to mask; frozen ones are left as they are."""
        params = {
            name: param
            for name, param in named.items()
            if param.ndim in (2, 4)
            and param.requires_grad
            and any(re.search(pattern, name) for pattern in self.include)
        }
        if not params and not self.allow_dense:
            raise RuntimeError(
                f'SparseMaskHook: nothing to mask: no trainable parameter with 2 or 4 '
                f'dimensions matches include={list(self.include)}'
            )
        return params

    def _initialise(self, runner, params: dict[str, torch.Tensor]) -> None:
        if self.init == 'from_weights':
            masks = {name: param.detach() != 0 for name, param in params.items()}
            if all(bool(mask.all()) for mask in masks.values()):
                if self.allow_dense:
                    return
                raise RuntimeError(
                    "SparseMaskHook: nothing to mask: init='from_weights' found no "
                    'zero weight; load a sparse checkpoint, choose another init, or '
                    'remove the hook'
                )
        else:
            densities = self._densities(runner, params)
            generator = torch.Generator().manual_seed(self.seed)
            masks = {
                name: topology.random_mask(param.shape, densities[name], generator).to(param.device)
                for name, param in params.items()
            }
        self._dense = (
            {
                name: mask.numel()
                for name, mask in masks.items()
                if mask.double().mean().item() >= self.dense_above
            }
            if self.init != 'from_weights'
            else {}
        )
        self.masks = {name: mask for name, mask in masks.items() if name not in self._dense}
        if not self.masks and self.density < 1:
            raise RuntimeError(
                f'SparseMaskHook: nothing to mask: with density {self.density} every '
                f'layer would be at least {self.dense_above} dense'
            )
        for name, mask in self.masks.items():
            packed = topology.pack_mask(mask)
            broadcast(packed)
            self.masks[name] = topology.unpack_mask(packed, mask.shape).to(mask.device)
        self._targets = {name: int(mask.sum()) for name, mask in self.masks.items()}

    def _densities(self, runner, params: dict[str, torch.Tensor]) -> dict[str, float]:
        shapes = {name: tuple(param.shape) for name, param in params.items()}
        if self.init == 'uniform' or self.density == 1:
            return topology.uniform_densities(shapes, self.density)
        if self.init == 'erk':
            return topology.erk_densities(shapes, self.density)
        if _is_sharded(runner.model):
            raise RuntimeError(
                "SparseMaskHook: init='snip' needs whole gradients, which FSDP does "
                "not give before training; use init='erk' or 'uniform'"
            )
        return topology.snip_densities(_snip_scores(runner, params, self.seed), self.density)

    def _restore(self, params: dict[str, torch.Tensor]) -> None:
        saved = self._saved
        if not saved:
            raise ValueError(
                'SparseMaskHook: the checkpoint to resume from has no masks; load its '
                "weights with load_from and init='from_weights' instead"
            )
        missing = sorted(set(params) - set(saved['shapes']) - set(saved['dense']))
        unknown = sorted((set(saved['shapes']) | set(saved['dense'])) - set(params))
        misfits = [
            f'{name} is {shape} in the checkpoint and {tuple(params[name].shape)} in the model'
            for name, shape in saved['shapes'].items()
            if name in params and tuple(params[name].shape) != tuple(shape)
        ]
        if missing or unknown or misfits:
            raise ValueError(
                'SparseMaskHook: saved masks do not fit the model: no mask for '
                f'{missing[:3]} ({len(missing)}), no parameter for {unknown[:3]} '
                f'({len(unknown)}), shapes: {misfits[:3]} ({len(misfits)})'
            )
        self.step, self.rate = saved['step'], saved['rate']
        self._dense, self._targets = dict(saved['dense']), dict(saved['targets'])
        self.masks = {
            name: topology.unpack_mask(packed, saved['shapes'][name]).to(params[name].device)
            for name, packed in saved['packed'].items()
        }

    # Keeping masks.

    def _after_step(self, runner, optimizer: torch.optim.Optimizer) -> None:
        found_inf = getattr(optimizer, 'found_inf', None)
        if found_inf is not None and bool(found_inf):
            return  # a fused optimizer that skipped the step itself
        self.step += 1
        self.rate = topology.cosine_prune_rate(
            self.step, self._total_steps, self.prune_rate, self.final_prune_rate
        )
        updates = bool(self.update_interval) and self.step % self.update_interval == 0
        with full_parameters(runner.model, with_grads=updates) as named:
            params = {name: named[name] for name in self.masks}
            _apply(self.masks, params, optimizer)
            if updates:
                self._update(params)
                _apply(self.masks, params, optimizer)
        runner.message_hub.update_scalar('train/prune_rate', self.rate)
        if updates:
            self._verify_ranks()
            self._log(runner, f'masks updated at step {self.step} with rate {self.rate:.4f}')

    def _update(self, params: dict[str, torch.Tensor]) -> None:
        """Prune every layer, then grow every layer back to its number of weights."""
        pruned = {
            name: topology.magnitude_prune(params[name], mask, self.rate)
            for name, mask in self.masks.items()
        }
        generator = torch.Generator().manual_seed(self.seed + _SEED_STEP * self.step)
        for name, mask in pruned.items():
            count = self._targets[name] - int(mask.sum())
            if self.growth == 'random':
                grown = topology.random_growth(mask, count, generator)
            elif self.growth == 'bernoulli':
                grown = topology.bernoulli_growth(mask, count, generator)
            elif params[name].grad is not None:
                grown = topology.gradient_growth(mask, params[name].grad, count)
            else:
                raise RuntimeError(
                    f'SparseMaskHook: {name} has no gradient to grow by; use '
                    "growth='random', or leave it out of include"
                )
            self._grown[name] = grown & ~self.masks[name]
            self.masks[name] = grown
        self._grown_at = self.step

    def _await_average(self, runner, params: dict[str, torch.Tensor]) -> None:
        """After a resume, positions of an average that are still zero have yet to start."""
        for average in _averaged_models(runner) if self._saved else ():
            for name, averaged in _clean_names(average):
                if name in self.masks:
                    self._grown[name] = (averaged.detach() == 0) & self.masks[name]
            self._grown_at = self.step

    def _verify_ranks(self) -> None:
        if get_world_size() == 1:
            return
        checksum = 0
        for name in sorted(self.masks):
            checksum = zlib.crc32(topology.pack_mask(self.masks[name]).numpy().tobytes(), checksum)
        gathered = [int(value) for value in all_gather(torch.tensor([checksum]))]
        if len(set(gathered)) > 1:
            raise RuntimeError(
                f'SparseMaskHook: ranks hold different masks after step {self.step} '
                f'(checksums {gathered}, this is rank {get_rank()}); their weights '
                'have diverged'
            )

    def _log(self, runner, event: str) -> None:
        densities = {name: mask.double().mean().item() for name, mask in self.masks.items()}
        overall = self.overall_density()
        runner.message_hub.update_scalar('train/density', overall)
        runner.visualizer.add_scalars(
            {f'density/{name}': value for name, value in densities.items()}, step=self.step
        )
        lowest = min(densities, key=densities.get, default='none')
        highest = max(densities, key=densities.get, default='none')
        print_log(
            f'SparseMaskHook: {event}: overall density {overall:.4f}, {len(densities)} layers masked '
            f'from {densities.get(lowest, 1):.3f} ({lowest}) to {densities.get(highest, 1):.3f} '
            f'({highest}), {len(self._dense)} layers dense',
            logger='current',
        )


def _check_options(density, init, growth, prune_rate, final_prune_rate, update_interval) -> None:
    if not isinstance(density, (int, float)) or not 0 < density <= 1:
        raise ValueError(f'SparseMaskHook: density {density!r} must lie in (0, 1]')
    if init not in _INITS:
        raise ValueError(f'SparseMaskHook: init {init!r} is not one of {", ".join(_INITS)}')
    if growth not in _GROWTHS:
        raise ValueError(f'SparseMaskHook: growth {growth!r} is not one of {", ".join(_GROWTHS)}')
    if not 0 <= final_prune_rate <= prune_rate <= 1:
        raise ValueError(
            f'SparseMaskHook: prune rates {prune_rate} to {final_prune_rate} must fall '
            'within [0, 1]'
        )
    if not isinstance(update_interval, int) or update_interval < 0:
        raise ValueError(
            f'SparseMaskHook: update_interval {update_interval!r} must be a number of '
            'optimizer steps, or 0 for fixed masks'
        )


@torch.no_grad()
def _apply(
    masks: dict[str, torch.Tensor],
    params: dict[str, torch.Tensor],
    optimizer: torch.optim.Optimizer | None = None,
) -> None:
    """Zero the weights, and SGD's momentum if there is any, outside the masks."""
    for name, mask in masks.items():
        params[name].mul_(mask)
        state = optimizer.state.get(params[name], {}) if optimizer else {}
        if state.get('momentum_buffer') is not None:
            state['momentum_buffer'].mul_(mask)


def _snip_scores(runner, params: dict[str, torch.Tensor], seed: int) -> dict[str, torch.Tensor]:
    """``|w * dL/dw|`` of the task loss on one batch per rank, averaged over ranks.

    Batch statistics, and the state of torch's random generator, are left as they were. The samples
    come straight from the dataset, so that no sampler advances.
    """
    loader, model = runner.train_loop.dataloader, _unwrap(runner.model)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(loader.dataset), generator=generator).tolist()
    size = loader.batch_size or 1
    picked = [order[i % len(order)] for i in range(get_rank() * size, (get_rank() + 1) * size)]
    batch = loader.collate_fn([loader.dataset[i] for i in picked])
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    training = model.training
    model.train()
    with torch.random.fork_rng(), torch.enable_grad():
        data = model.data_preprocessor(batch, True)
        losses = model(**data, mode='loss') if isinstance(data, dict) else model(*data, mode='loss')
        loss, _ = model.parse_losses(losses)
        gradients = torch.autograd.grad(loss, list(params.values()), allow_unused=True)
    model.train(training)
    for name, buffer in model.named_buffers():
        buffer.copy_(buffers[name])
    scores = {}
    for (name, param), gradient in zip(params.items(), gradients, strict=True):
        gradient = torch.zeros_like(param) if gradient is None else gradient.contiguous()
        all_reduce(gradient, op='mean')
        scores[name] = (param.detach() * gradient).abs()
    return scores


def _unwrap(model: nn.Module) -> nn.Module:
    return model.module if is_model_wrapper(model) else model


def _is_sharded(model: nn.Module) -> bool:
    return any(isinstance(module, FSDP) for module in model.modules())


def clean_name(name: str) -> str:
    """Name without what DDP, FSDP, recomputation and compilation add to it."""
    return _WRAPPERS.sub('', name)


def _clean_names(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    return ((clean_name(name), param) for name, param in model.named_parameters())


@contextlib.contextmanager
def full_parameters(model: nn.Module, with_grads: bool = False):
    """Whole parameters by clean name; changes inside the context reach every shard."""
    gather = (
        FSDP.summon_full_params(model, with_grads=with_grads)
        if _is_sharded(model)
        else contextlib.nullcontext()
    )
    with gather:
        yield dict(_clean_names(model))


def _averaged_models(runner) -> list[nn.Module]:
    return [hook.ema_model.module for hook in runner.hooks if isinstance(hook, EMAHook)]
