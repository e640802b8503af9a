"""One module per command of ``mmlk``; :mod:`mmlk.cli.program` says what such a module holds.

What all runs of a command need is imported on top; torch and whatever imports it only where it is
needed, so that a wrong path or a typo shows within a second.
"""
