"""The Celery application of the sandbox, for its workers and for its producer.

BROKER_URL, RESULT_BACKEND: redis URLs. SANDBOX_CELERY_CONFIG: a JSON object of Celery
settings (result_extended, task_acks_late, task_compression, …).
SANDBOX_RUNS: a redis URL; the start of every task is pushed to the list "runs" there.
SANDBOX_CHECK: a JSON object of the arguments of orphanwatch_celery.install.
SANDBOX_DATABASE_URL: scan_domain_task first writes a child row of its row, as the
product's tasks do, and dies where the row is gone (needs psycopg2).
Run as a program it is the producer: one JSON request a line on standard input, one
JSON answer a line on standard output.
"""

import json
import os
import sys
import time

from celery import Celery, chain, chord, group

app = Celery(
    "sandbox",
    broker=os.environ["BROKER_URL"],
    backend=os.environ.get("RESULT_BACKEND") or None,
)
app.conf.update(
    worker_hijack_root_logger=True,
    broker_connection_retry_on_startup=True,
    worker_send_task_events=False,
)
app.conf.update(json.loads(os.environ.get("SANDBOX_CELERY_CONFIG") or "{}"))
if os.environ.get("SANDBOX_CHECK"):
    import orphanwatch_celery

    orphanwatch_celery.install(app, **json.loads(os.environ["SANDBOX_CHECK"]))


_stores = {}


def _store(kind, connect):
    """A connection of this very process: those of before the fork are not ours."""
    key = kind, os.getpid()
    if key not in _stores:
        _stores[key] = connect()
    return _stores[key]


def _runs():
    import redis

    return _store("runs", lambda: redis.Redis.from_url(os.environ["SANDBOX_RUNS"]))


def _database():
    import psycopg2

    def connect():
        connection = psycopg2.connect(os.environ["SANDBOX_DATABASE_URL"])
        connection.autocommit = True
        return connection

    return _store("database", connect)


def _start(task, row):
    """Say that a task has started, with its time; then write its child row."""
    if os.environ.get("SANDBOX_RUNS"):
        run = {
            "at": time.time(),
            "id": task.request.id,
            "name": task.name,
            "row": row,
            "retries": task.request.retries,
            "pid": os.getpid(),
        }
        _runs().rpush("runs", json.dumps(run))
    if row and os.environ.get("SANDBOX_DATABASE_URL"):
        with _database().cursor() as cursor:
            cursor.execute(
                "INSERT INTO task_logs (task_id, line) VALUES (%s, 'started')", (row,)
            )


def _work(task, sleep, fail, size, wait, retry):
    if wait and not _runs().blpop(wait, timeout=120):
        raise RuntimeError("nobody has pushed to %r" % wait)
    if retry and not task.request.retries:
        raise task.retry(countdown=retry)
    if sleep:
        time.sleep(sleep)
    if fail:
        raise RuntimeError(fail if isinstance(fail, str) else "asked to fail")
    return "x" * size


# sleep: seconds; fail: raise an error; size: bytes of padding in the result; wait: a
# list beside the runs, of which one element must be taken first; retry: after the first
# run, retry in so many seconds.


@app.task(bind=True, name="scan_domain_task")
def scan_domain_task(
    self, task_id, user_id=None, target_domain=None, config=None, *,
    sleep=0, fail=False, size=0, wait=None, retry=0
):
    _start(self, task_id)
    padding = _work(self, sleep, fail, size, wait, retry)
    return {"task_id": task_id, "target": target_domain, "status": "done", "padding": padding}


@app.task(bind=True, name="other_task")
def other_task(self, *args, sleep=0, fail=False, size=0, wait=None, retry=0, **kwargs):
    _start(self, None)
    padding = _work(self, sleep, fail, size, wait, retry)
    return {"args": list(args), "padding": padding}


def _signature(task):
    options = dict(task.get("options") or {})
    if task.get("id"):
        options["task_id"] = task["id"]
    return app.signature(
        task["name"], args=task.get("args") or (), kwargs=task.get("kwargs") or {}, **options
    )


def _answer(request):
    op = request["op"]
    if op == "ping":
        app.connection_for_write().ensure_connection(max_retries=1)
        return {}
    if op == "send":
        with app.producer_pool.acquire(block=True) as producer:
            return {
                "ids": [_signature(t).apply_async(producer=producer).id for t in request["tasks"]]
            }
    if op == "revoke":
        app.control.revoke(request["ids"], **(request.get("options") or {}))
        return {}
    if op == "ping_workers":
        return {"ids": [node for reply in app.control.ping(timeout=1) for node in reply]}
    signatures = [_signature(t) for t in request["tasks"]]
    if op == "group":
        result = group(signatures).apply_async()
        result.save()
        return {"ids": [r.id for r in result.results], "group": result.id}
    if op == "chain":
        result, ids = chain(*signatures).apply_async(), []
        while result is not None:
            ids.insert(0, result.id)
            result = result.parent
        return {"ids": ids}
    if op == "chord":
        result = chord(signatures[:-1])(signatures[-1])
        return {"ids": [r.id for r in result.parent.results] + [result.id], "group": result.parent.id}
    raise ValueError("unknown op %r" % op)


def main():
    # Whatever a library prints must not end up between the answers.
    answers, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        try:
            answer = _answer(json.loads(line))
        except Exception as error:  # the caller gets it
            answer = {"error": "%s: %s" % (type(error).__name__, error)}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
