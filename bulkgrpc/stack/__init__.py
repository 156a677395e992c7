"""A real Kafka, PostgreSQL and Valkey on this machine, without containers: started, healed and stopped as one.

The three run as detached daemons under one data directory and outlive whoever started them.
For development, tests and demos; a deployment brings its own.
"""

from bulkgrpc.stack.jars import install
from bulkgrpc.stack.model import Addresses, PartState, PartStatus, Phase, Ports, Progress, StackError
from bulkgrpc.stack.part import Part
from bulkgrpc.stack.stack import Stack, default_data_dir

__all__ = [
    "Addresses",
    "Part",
    "PartState",
    "PartStatus",
    "Phase",
    "Ports",
    "Progress",
    "Stack",
    "StackError",
    "default_data_dir",
    "install",
]
