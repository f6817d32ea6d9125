"""The data analyser: what the content of a machine's writes tells about it."""
