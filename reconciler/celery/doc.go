// Package celery is Celery's data in Redis: which keys a task has, what a result
// and a message say, and the atomic steps that remove, remember and restore.
//
// Invariant: an artifact leaves its place only in the script that has just seen
// that it is unchanged, that this leader is still the newest, that nobody paused
// or held it, and that has written the record by which it can be restored.
//
//	           Remove                    quarantine over
//	in place ───────────▶ orphanwatch:undo:<key> ─────────▶ gone, record stays
//	    ▲                        │                            │ remember over
//	    └──────── Restore ───────┘                            ▼
//	      (held until hold_until)                          forgotten
//
// A message leaves its list, or the hash of unacked ones, by the same rule (pull.lua):
//
//	            Pull, near an end; unacked           quarantine over
//	in place ──────────────────────────────▶ kept ──────────────────▶ forgotten
//	 │  ▲                                    │  ▲
//	 │  └──────── RestoreMessages ───────────┘  │
//	 │      (held until hold_until)             │
//	 └── Pull, far in ──▶ tombstone in its place, and kept
//	                          │ PurgeTombstones near the tail, or a worker
//	                          ▼
//	                         gone
//
// A purge of a queue moves windows of its lists, each in one step, and leaves what
// is pushed after it began:
//
//	            DrainQueues, from the tail               quarantine over
//	in its list ──────────────────────────▶ kept, in pieces ──────────▶ gone
//	    ▲                                       │
//	    └──── RestorePurged, at the tail ───────┘
//
// Keys of ours, all under orphanwatch:
//
//	orphanwatch:control            hash: epoch, paused, paused_by, accept, resync, identity, guard, full_cleanup
//	orphanwatch:record:task:<id>   hash: what was removed of a task (see remove.lua)
//	orphanwatch:record:row:<table>:<key>   the same of a row's companion keys
//	orphanwatch:records            sorted set: record id by the time of the last removal, ms
//	orphanwatch:undo:<key>         the removed value itself, under its old name
//	orphanwatch:status:<instance>  string: what the daemon says of itself
//	orphanwatch:instances          sorted set: instance by the time its status ends, ms
//
// In the broker's database, which may be another one:
//
//	orphanwatch:control            hash: epoch, paused, paused_by
//	orphanwatch:messages:<record>  hash: pulled messages and their places, hold_until, restored_at (see pull.lua, requeue.lua)
//	orphanwatch:purges             sorted set: purge id by when it began, ms
//	orphanwatch:purged:<id>        hash: what was purged of one list, or out of workers' hands (see quarantine.lua)
//	orphanwatch:purged:<id>:<n>    list: a piece of it, up to 500 messages or about 256 KiB, in the order of the queue
package celery
