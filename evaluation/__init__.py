"""Scores answers: measures, and the comparison of what can stand for a document in the prompt."""
