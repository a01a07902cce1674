"""The commands of ``pisco-index``, one file a group of them."""
