"""One verb a file: verify, repair, compact, delete, recode."""
