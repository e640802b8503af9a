"""What the steps of a pipeline need from a data set."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence


def steps(pipeline: object) -> Iterator[Mapping]:
    """Every step of a pipeline, those inside others (TestTimeAug, RandomChoice) included."""
    if isinstance(pipeline, Mapping):
        if 'type' in pipeline:
            yield pipeline
        for child in pipeline.values():
            yield from steps(child)
    elif isinstance(pipeline, Sequence) and not isinstance(pipeline, str):
        for child in pipeline:
            yield from steps(child)


def step_name(step: Mapping) -> str:
    """Name of a step without scope."""
    kind = step['type']
    return kind.rsplit('.', 1)[-1] if isinstance(kind, str) else kind.__name__


def reads_labels(settings: Mapping) -> bool:
    """Whether the pipeline of a data set loads label maps; yes where it has no pipeline."""
    found = list(steps(settings.get('pipeline')))
    return not found or any(
        'Annotation' in step_name(step) or step_name(step) == 'LoadBiomedicalData' for step in found
    )


def reads_masks(settings: Mapping) -> bool:
    """Whether the pipeline of a data set loads instance masks."""
    return any(
        step_name(step).startswith('Load') and bool(step.get('with_mask'))
        for step in steps(settings.get('pipeline'))
    )
