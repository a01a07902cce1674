"""Questions that are answered as they come, for a server: answers begin, are given up and end at any time."""
