"""Per-example clipping: what it costs beside its peers, and how exact it is."""
