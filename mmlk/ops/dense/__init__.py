"""Operators that are matrix products: 1x1 convolution, patches, the channel mixer, folded layers.

`products` says which library or loop multiplies what.
"""
