"""The section of `run_gpu_checks.py` that times whole classifiers."""

from __future__ import annotations

import argparse

import benchmark_classifiers
from gpu_runner import Task


def time_classifier(name: str, batch: int) -> list[dict]:
    """Training and inference at 224 x 224 next to timm's and the authors' networks."""
    options = benchmark_classifiers.parse(
        ['--device', 'cuda', '--batch', str(batch), '--amp', 'bfloat16', '--rounds', '8']
    )
    return [{'result': 'ok', **row} for row in benchmark_classifiers.time_classifier(options, name)]


def classifiers(args: argparse.Namespace) -> list[Task]:
    """Whole classifiers, one after the other."""
    return [
        Task(name, time_classifier, (name, args.batch))
        for name in benchmark_classifiers.USUAL
        if args.filter in name
    ]
