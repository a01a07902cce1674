"""Checkpoints, and the compressor, connector and decoder in them.

``passages`` tokenizes documents, ``compressor`` turns passages into ``memory``, ``connector`` widens it, ``prompt``
and ``decoder`` answer from it; ``checkpoint`` reads a folder, ``create`` makes one. The only room that imports
transformers, so nothing is imported here: who needs memory alone does not wait for it.
"""
