"""From document ids to answers: ``fetch`` memory, ``ask`` a question of it, ``save`` it, ``evaluate`` a store."""
