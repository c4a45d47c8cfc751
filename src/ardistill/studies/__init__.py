"""The whole way at once: the quickstart, and studies of many arms from one recipe."""
