"""Data: item streams (one owner of the position) over recordings, mixtures, tokens and notes, and the making of datasets.

Reading: `opening` (any dataset of audio), `built` and `foreign` behind it, `mixtures`, `sequences`; `batches` and `collation` on top.
Making: `building`, `tokenizing`, `rendering`, with `sources`, `metadata` and `splits` beneath.
"""
