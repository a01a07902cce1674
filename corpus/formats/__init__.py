"""One file for each format of a corpus.

A format is a class that implements ``Source`` (see ``corpus/document.py``) and has two constructors: ``begin`` opens a
recognised file with the configuration, and ``from_spec`` rebuilds the source from its ``spec``. Text formats derive it
from ``TextSource``. ``corpus/recognise.py`` recognises the format, and ``corpus/opening.py`` lists the classes.
"""
