"""The example application of deploy/compose.yaml: one row per job, one Celery task per row.

    celery -A app worker     runs the tasks
    python app.py            makes rows and tasks, and deletes some of the rows

DATABASE_URL, CELERY_BROKER_URL, CELERY_RESULT_BACKEND: the stores.
ORPHANWATCH_URL, ORPHANWATCH_TOKEN: the daemon that is asked before a task runs.
"""

import logging
import os
import time

import orphanwatch_celery
import psycopg2
from celery import Celery

COUNTDOWN = 3  # seconds from sending a task to its start
ROWS = 3  # of each round: one is deleted before its task runs, one after it, one stays

log = logging.getLogger("example")

app = Celery("example", broker=os.environ["CELERY_BROKER_URL"], backend=os.environ["CELERY_RESULT_BACKEND"])
app.conf.broker_connection_retry_on_startup = True
orphanwatch_celery.install(app, url=os.environ["ORPHANWATCH_URL"], token=os.environ["ORPHANWATCH_TOKEN"])


def database():
    connection = psycopg2.connect(os.environ["DATABASE_URL"])
    connection.autocommit = True
    return connection


@app.task(name="example.scan", bind=True)
def scan(self, target):
    """Writes a child row: without orphanwatch it dies on the foreign key of a deleted row."""
    connection = database()
    try:
        with connection.cursor() as cursor:
            cursor.execute(
                "INSERT INTO task_logs (task_id, line) VALUES (%s, %s)", (self.request.id, f"scanned {target}")
            )
    finally:
        connection.close()
    return f"{target} is fine"


def insert(cursor, target):
    """A row, and a task whose id is the row's key. The task is sent once the row is committed."""
    cursor.execute("INSERT INTO scan_tasks (target) VALUES (%s) RETURNING id", (target,))
    row = cursor.fetchone()[0]
    scan.apply_async((target,), task_id=row, countdown=COUNTDOWN)
    return row


def delete(cursor, row, when):
    cursor.execute("DELETE FROM scan_tasks WHERE id = %s", (row,))
    log.info("row %s: deleted %s its task ran", row, when)


def produce():
    """Round after round. Only the last hour of the rows that stay is kept."""
    with database().cursor() as cursor:
        while True:
            early, late, living = (insert(cursor, f"host-{n}.example") for n in range(ROWS))
            delete(cursor, early, "before")
            log.info("row %s: stays", living)
            time.sleep(2 * COUNTDOWN)
            delete(cursor, late, "after")
            cursor.execute("DELETE FROM scan_tasks WHERE created_at < now() - interval '1 hour'")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    produce()
