"""From a corpus to shards: the plan of a fresh build or of an update."""
