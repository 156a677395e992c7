"""Ways to build the shell wrong. Each switches one protection off."""

from __future__ import annotations

import enum


class Mutant(enum.Enum):
    OFFSET_BEFORE_PARKED = "the offset moves in a transaction before that of the parked rows"
    VIEW_BEFORE_LOCK = "the view is read before the offset lock is held"
    LANES_BEFORE_VIEW = "lanes are read before the view"
    NOT_BEHIND_PARKED = "a message is applied although its queue has parked messages"
    QUEUE_PER_JOB = "a message waits for the parked messages of its job only, not for those of its queue"
    NOT_BEHIND_OWN_CHUNK = "a message is applied although the same chunk parks an earlier one of its queue"
    SEAL_NOT_DEFERRED = "a seal is applied although batches of its lane are parked"
    NO_TRACE = "a job that begins with a parked message gets no row"
    COPIES_DROPPED = "a batch is not parked if one with its sequence and digest is"
    OLD_EPOCH = "a chunk is written under an old epoch"
    DRAIN_KEEPS_ROWS = "a drain does not delete what it applied"
    DRAIN_UNORDERED = "a drain takes the newest messages first"
    NO_QUEUE_LOCK = "a drain does not lock its queue"
    NO_ROW_LOCK = "a drain does not lock its rows"
    DRAIN_FROM_PREPARED = "a drain does not check, once it holds its lock, that what it prepared is still parked"
    MERGE_WITHOUT_OFFSET_LOCK = "the last slice of a queue does not lock the offset"
    DISCARD_WITHOUT_LANES = "every message of a discarded dataset counts as expired, copies too"
    ABANDONED_IGNORES_PARKED = "maintenance ends a job that has parked messages"
    FORGET_IGNORES_PARKED = "a job is deleted although it has parked messages"
    PROBER_LIFTS_PAUSE = "a trial that succeeds lifts an operator's pause"
    AHEAD_WITHOUT_LOCK = "the express path does not lock its jobs"
    SHARES_UNLOCKED = "the main path does not wait for the express path at a job"
    AHEAD_VIEW_FIRST = "the express path reads what is parked before the position of the main path"
    AHEAD_OPENS_LATE = "the express path does not read again what it knows after it has created a job"
    AHEAD_FROM_FETCHED = "the express path starts at what the main path has fetched, not at the ledger's position"
    AHEAD_PAST_DEFERRED = "the express path goes on with a tenant of which it passed over a deferred message"
    AHEAD_REJECTS = "the express path rejects batches with another digest, or after the seal"
    AHEAD_AFTER_GAP = "the express path passes over a batch after a gap as known"
    AHEAD_OF_NOTHING = "the express path plans messages that the main path has passed"
    HOT_AGAIN = "a tenant that was hot is served in the middle of a run"
    PROBER_NEEDS_PARKED = "a block without parked messages is never lifted"
