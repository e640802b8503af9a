"""What hooks ask about the optimizers of a run."""

from __future__ import annotations

from mmengine.optim import OptimWrapper, OptimWrapperDict


def single_wrapper(runner, hook: str) -> OptimWrapper:
    """The optimizer wrapper of a run that has one.

    MMEngine's wrapper of several is a subclass of that of one, so its type has to be asked for first.

    Args:
        runner: A runner in training.
        hook: Who asks, for the message.

    Raises:
        RuntimeError: If there are several.
    """
    wrapper = runner.optim_wrapper
    if isinstance(wrapper, OptimWrapperDict) or not isinstance(wrapper, OptimWrapper):
        several = (
            f' of {", ".join(wrapper.keys())}' if isinstance(wrapper, OptimWrapperDict) else ''
        )
        raise RuntimeError(
            f'{hook}: works with a single optimizer wrapper, got {type(wrapper).__name__}{several}; '
            'train with one optimizer, or remove the hook'
        )
    return wrapper


def wrappers(runner) -> list[OptimWrapper]:
    """All optimizer wrappers of a run."""
    wrapper = runner.optim_wrapper
    return list(wrapper.values()) if isinstance(wrapper, OptimWrapperDict) else [wrapper]
