"""Kafka: the only package that imports its driver. Topics, producer, consumer, dead letters; shared by all processes.

message.py    the form of a message on the records topic
partition.py  which partitions a tenant's batches go to
producer.py   sends batches (servers)
consumer.py   the RecordLog of a worker
express_log.py  the ExpressLog of a worker
topic_log.py  the identity of the records topic, the extent of its partitions
dead_letters.py  the DeadLetterQueue of a worker, and what an operator does with it
records_topic.py  reads a job's messages again and sends some (operators)
topics.py     creates topics and asks for their ends
"""
