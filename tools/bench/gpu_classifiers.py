"""The section of `run_gpu_checks.py` that times whole classifiers."""

from __future__ import annotations

import argparse
import time

import benchmark_classifiers
import torch


def classifiers(args: argparse.Namespace) -> list[dict]:
    """Whole classifiers at 224 x 224 next to timm's and the authors', training and inference."""
    options = benchmark_classifiers.parse(
        ['--device', 'cuda', '--batch', str(args.batch), '--amp', 'bfloat16', '--rounds', '8']
    )
    rows, end = [], time.perf_counter() + args.seconds
    for name in (each for each in options.only if args.filter in each):
        if time.perf_counter() > end:
            rows.append({'classifier': name, 'result': 'skipped: out of time'})
            continue
        try:
            rows += benchmark_classifiers.time_classifier(options, name)
        except RuntimeError as error:  # also what torch raises when memory is out
            rows.append({'classifier': name, 'result': f'failed: {str(error)[:300]}'})
        torch.cuda.empty_cache()
    return rows
