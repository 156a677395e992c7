"""Datasets: a Protobuf message bound to a table. Descriptor → columns, DDL, and the codec between bytes and Arrow."""
