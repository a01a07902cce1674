"""JSON: one object per line, objects one after another, in an array, or under their ids in an object."""
