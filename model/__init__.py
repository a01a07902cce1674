"""Checkpoints, and the compressor, connector and decoder in them.

``passages`` tokenizes documents, ``compressor`` turns passages into ``memory``, ``connector`` widens it, and
``decoder`` answers a ``prompt`` from it. ``families`` opens checkpoints, ``loading`` reads their files, ``forward``
computes the compressor, ``create`` and ``tiny`` make checkpoints, ``trainable`` joins the models under one loss.

Nothing is imported here, so that code which needs only memory does not wait for transformers.
"""
