"""Cut the files of a corpus into parts that several processes read at a time."""
