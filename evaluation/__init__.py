"""Score answers: the measures, and the comparison of the conditions under which a question can be asked."""
