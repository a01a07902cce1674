"""Where shards are computed: in this process, in a child process, or on Ray."""
