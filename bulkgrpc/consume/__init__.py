"""The worker's decisions, without I/O: assembly, decoding and planning of chunks, ownership, tuning, stalls."""
