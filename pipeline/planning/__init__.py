"""Decide which records of a corpus make up which shard, before anything is computed."""
