"""From document ids to answers: ``fetch`` memory by id, ``ask`` a question about it, ``save`` it to a file."""
