"""Sharded WebDatasets: packing, indexing, the data plan, decoding, and the DataModule that Lightning trains from.

Import what you need from the module that defines it; this package imports nothing, so that `vitlight data` commands
start without torch.
"""
