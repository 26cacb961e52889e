"""Adapters of AdapterHub (the library `adapters`, once `adapter-transformers`) become adapters of this package.

Read in this order: `folder` (files), `config` (JSON), `keys` (names of tensors), `places` (which site), then what is
made of them: `bottleneck`, `low_rank` and `heads`; `importing` puts it together. None of it needs that library.
"""
