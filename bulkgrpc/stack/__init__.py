"""A real Kafka, PostgreSQL and Valkey on this machine, without containers, started and stopped together.

The three run as detached daemons with one data directory, and continue when the process that started them exits.
For development, tests and demos. A deployment uses its own stores.
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
