// Package sandbox starts throw-away real servers: PostgreSQL, Redis and Celery
// workers. The demo, every test and the benchmarks use it.
//
// Invariant: nothing outlives the process that asked for it. Whatever happens to
// that process, kill -9 included, every server, every worker and every file of its
// sandboxes is gone moments later.
//
//	the process ──pipe──▶ watchdog.sh ──EOF──▶ kill -9 every tree, rm -rf the directory
//	    │                     ▲
//	    ├─ 1. fork: the child waits at a gate (a shell that reads one line)
//	    ├─ 2. "+ PID" ────────┘
//	    └─ 3. one line to the gate: exec postgres, redis-server, celery
//
// A child is thus known to the watchdog before it becomes a server; if the process
// dies in between, the gate reads EOF and ends.
//
// States of a server (Postgres, Redis, Worker):
//
//	        Start                Pause
//	down ──────────▶ running ◀──────────▶ paused
//	  ▲                 │       Resume       │
//	  └── Stop, Kill ───┘                    │
//	  └────────────── Kill ──────────────────┘
//
// A server that is missing on the machine is an error that names the repair
// (deploy/install-deps.sh), never a reason to skip a test.
package sandbox
