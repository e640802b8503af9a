"""The error of a checkpoint that a run cannot use."""


class UnusableCheckpoint(RuntimeError):
    """A checkpoint that does not suit the model or the run; the message names the file."""
