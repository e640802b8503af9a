"""Generated scenes, and checks of data sets before and while a network trains on them.

Nothing is imported here: the checks that run before every training must cost next to nothing.
"""
