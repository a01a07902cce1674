"""The commands of ``pisco-index``, one file per subject. ``cli.py`` lists them.

A command is a function: its parameters are the command's arguments and options (``options``), its docstring is the help
page. It makes one library call and hands the result, and a function that describes it, to ``console.Output``.
"""
