"""Entry points of torch.hub: one per name of ``mmlk.list_models()``, with the arguments of
``mmlk.create_model``."""

from functools import partial

from mmlk import create_model, list_models

dependencies = ['torch', 'numpy']
globals().update({name: partial(create_model, name) for name in list_models()})
