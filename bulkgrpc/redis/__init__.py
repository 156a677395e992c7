"""The Redis adapter, the only package that imports redis. Redis may lose its data; correctness never depends on it."""
