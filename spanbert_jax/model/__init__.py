"""The network, as functions of plain parameter dicts. The only package that imports flax."""
