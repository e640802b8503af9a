"""Generated scenes, and checks of data sets before and while a network trains on them.

Nothing is imported here, so that a tool which fails early does not wait for it.
"""
