"""The errors of data sets that cannot be used; their messages are for the user."""


class DataError(RuntimeError):
    """A data set that cannot be trained on."""


class MissingDataError(DataError):
    """A data set of which a folder, a file or the end of a file is not there."""
