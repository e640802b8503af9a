"""Norms: layer norm as an operator, batch norm as a part of others."""
