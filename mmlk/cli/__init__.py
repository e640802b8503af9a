"""From a command line to a run: reading and checking a config, adapting it, resuming.

What can be judged without torch is judged without importing it, so that a wrong path or a typo
shows within a second or two.
"""
