"""Converts columns, as files and Arrow tables have them, to records of a dataset: exactly, or not at all."""
