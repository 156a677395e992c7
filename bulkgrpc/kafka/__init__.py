"""Kafka: topics, partition choice, message form, producer and consumer. Shared by servers and workers."""
