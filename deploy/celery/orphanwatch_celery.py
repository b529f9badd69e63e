"""Ask orphanwatch whether a task's row still exists, before the task runs.

One file, nothing but the standard library and Celery (5.2 to 5.6). Copy it beside the
application and say where the application is made:

    import orphanwatch_celery

    orphanwatch_celery.install(
        app,
        url="http://orphanwatch:8000",
        token=os.environ["ORPHANWATCH_TOKEN"],  # needs the scopes read and cleanup
        row="args:0",  # where the row's key is: "celery_id" (default), "args:N", "kwargs:K"
    )

A worker then asks for a resync when it starts, and waits for it a little; and before
each task it asks whether the row exists. A task whose row is gone ends as Ignored with
a log line (a member of a chord fails, so that the chord ends); what is left of it is
the daemon's to remove. A row that is not there yet, because its insert may not be
committed, is waited for: a little in the worker, then by a retry. Tasks of other names
than those of the daemon's bindings run. If the daemon cannot be asked, tasks run
(fail_open, the default) or wait for their retry (fail_open=False).

Single tasks, instead of all of them:

    check = orphanwatch_celery.Check(url, token, row="args:0")

    @app.task
    @check.checked
    def scan(task_id): ...
"""

import functools
import http.client
import json
import logging
import os
import threading
import time
import urllib.parse

from celery import current_task, signals
from celery.exceptions import Ignore

__all__ = ["Check", "OrphanedTask", "install"]

log = logging.getLogger("orphanwatch")


class OrphanedTask(Exception):
    """The row of a chord's member is gone: the chord ends with this error."""


class Unreachable(Exception):
    """The daemon did not answer, or not in a way that tells."""


class NotYet(Exception):
    """The row is not there, and its insert may not be committed yet."""


class Check:
    """The question, with everything that makes it cheap.

    url, token: of the daemon's API.
    row: where a task's arguments have the key of its row: "celery_id" (the task's id
        is the key), "args:N", "kwargs:K", or a function of (task, args, kwargs).
    table: the bound table, where the daemon has several bindings that go by arguments.
    timeout: seconds for one answer.
    fail_open: run tasks when the daemon cannot be asked; else they are retried.
    commit_wait: seconds to wait in the worker for a row that is not there yet; then the
        task is retried, until the daemon says that no insert of it can be under way.
    cache: seconds for which a row that exists is not asked for again.
    pause: seconds for which a daemon that did not answer is not asked again.
    """

    def __init__(
        self,
        url,
        token=None,
        *,
        row="celery_id",
        table=None,
        timeout=1.0,
        fail_open=True,
        commit_wait=2.0,
        cache=1.0,
        pause=30.0,
    ):
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"orphanwatch: {url!r} is not the URL of a daemon, such as http://orphanwatch:8000")
        self._url = parts
        token = (token or "").strip()
        if not token.isascii() or any(c.isspace() for c in token):
            raise ValueError("orphanwatch: the token is not one: it has spaces or other characters in it")
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._key_of = _key_of(row)
        self._table = table
        self._timeout = timeout
        self._fail_open = fail_open
        self._commit_wait = commit_wait
        self._cache_seconds = cache
        self._pause = pause
        self._local = threading.local()
        self._lock = threading.Lock()
        self._forget()

    def _forget(self):
        """Begin anew: in a forked process nothing of the parent's is ours."""
        self._pid = os.getpid()
        self._known = {}
        self._silent_until = 0.0
        self._told_until = 0.0

    def before(self, task, task_id, args, kwargs, name=None):
        """Raise Ignore where the row of this task is gone.

        name: ask for a task of that name; None: it is known to be one of a binding."""
        if task.request.is_eager:  # it has no message, and an id of its own
            return
        try:
            key = self._key_of(task, args, kwargs)
            gone = self._gone(task_id, key, name)
        except NotYet as why:
            log.info("%s[%s] is retried: %s", task.name, task_id, why)
            raise self._again(task, min(5.0, 1 + self._commit_wait), why) from why
        except Exception as why:
            if self._fail_open:
                if time.monotonic() >= self._told_until:  # a wrong token must not stay unseen
                    self._told_until = time.monotonic() + self._pause
                    log.warning("tasks run unchecked: %s", why, exc_info=not isinstance(why, Unreachable))
                return
            log.warning("orphanwatch cannot be asked, %s[%s] is retried: %s", task.name, task_id, why)
            raise self._again(task, self._pause, why) from why
        if not gone:
            return
        log.warning("%s[%s] is not run: its row%s is gone (%s)", task.name, task_id, f" {key}" if key else "", gone)
        if getattr(task.request, "chord", None):
            raise OrphanedTask(f"the row of {task.name}[{task_id}] is gone")
        raise Ignore()

    @staticmethod
    def _again(task, countdown, why):
        """A retry that does not count as one of the task's own."""
        task.request.retries = (task.request.retries or 0) - 1
        return task.retry(countdown=countdown, exc=why, throw=False)

    def checked(self, function):
        """Decorate the function of a task: it is only called while the row exists."""

        @functools.wraps(function)
        def run(*args, **kwargs):
            task = current_task
            if task and task.request.id:
                self.before(task, task.request.id, task.request.args or (), task.request.kwargs or {})
            return function(*args, **kwargs)

        return run

    def _gone(self, task_id, key, name):
        """The evidence that the row is gone, "" where it is there or cannot be told."""
        if self._pid != os.getpid():
            self._forget()
        what = (task_id, key)
        now = time.monotonic()
        if self._known.get(what, 0) > now:
            return ""
        deadline, wait = now + self._commit_wait, 0.05
        while True:
            answer = self.ask(task_id, key, name)
            if answer.get("exists") is not False:
                if answer.get("exists"):
                    self._remember(what)
                return ""
            evidence = answer.get("evidence") or "absent"
            left = deadline - time.monotonic()
            if not answer.get("pending"):
                return evidence
            if left <= 0:
                raise NotYet(f"its row{' ' + key if key else ''} is not there, and its insert may not be committed yet")
            time.sleep(min(wait, left))  # it may be on its way
            wait = min(2 * wait, 0.5)

    def _remember(self, what):
        now = time.monotonic()
        with self._lock:
            if len(self._known) >= 10_000:
                self._known = {k: until for k, until in self._known.items() if until > now}
                if len(self._known) >= 10_000:
                    self._known.clear()
            self._known[what] = now + self._cache_seconds

    def ask(self, task_id, key=None, name=None):
        """The daemon's answer: {"exists": True, False or None, "evidence": ...}."""
        query = {k: v for k, v in (("key", key), ("table", self._table if key else None), ("name", name)) if v}
        path = "/api/v1/tasks/" + urllib.parse.quote(task_id, safe="")
        return self.request("GET", path + ("?" + urllib.parse.urlencode(query) if query else ""))

    def request(self, method, path, timeout=None):
        """The data of an answer; Unreachable where there is none."""
        if time.monotonic() < self._silent_until:
            raise Unreachable("it did not answer just now")
        deadline = time.monotonic() + (timeout or self._timeout)
        for last in (False, True):
            connection, fresh = self._connection(max(deadline - time.monotonic(), 0.001))
            try:
                connection.request(method, self._url.path.rstrip("/") + path, headers=self._headers)
                answer = connection.getresponse()
                body = answer.read()
            except (OSError, http.client.HTTPException) as error:
                self._close()
                if fresh or last:
                    self._silent_until = time.monotonic() + self._pause
                    raise Unreachable(f"{type(error).__name__}: {error}") from error
                continue  # a connection that was kept is often one that was closed
            if answer.status == 200:
                try:
                    return json.loads(body)["data"] or {}
                except (ValueError, KeyError, TypeError) as error:
                    raise Unreachable(f"its answer cannot be read: {error}") from error
            raise Unreachable(f"it answered {answer.status}: {_message(body)}")

    def _connection(self, timeout):
        held = getattr(self._local, "connection", None)
        if held and self._local.pid == os.getpid():
            held.timeout = timeout
            if held.sock:
                held.sock.settimeout(timeout)
                return held, False
        kind = http.client.HTTPSConnection if self._url.scheme == "https" else http.client.HTTPConnection
        held = kind(self._url.hostname, self._url.port, timeout=timeout)
        self._local.connection, self._local.pid = held, os.getpid()
        return held, True

    def _close(self):
        held = getattr(self._local, "connection", None)
        if held and self._local.pid == os.getpid():
            held.close()
        self._local.connection = None

    def resync(self, timeout):
        """Ask the daemon for a pass over both stores, and wait for its end."""
        return self.request("POST", f"/api/v1/cache/initialize?wait={timeout:g}s", timeout + self._timeout)


def install(app, url, token=None, *, tasks=None, startup_timeout=10.0, **options):
    """Check all tasks of an application before they run, in its workers.

    tasks: the names of those that are checked, each of which is known to have a row of a
        binding; None for all but Celery's own: then the daemon tells which these are, by
        the names of its bindings.
    startup_timeout: seconds for which a worker that starts waits for the daemon's
        pass; 0 for no pass.
    The other options are those of Check. It gives the Check.
    """
    check = Check(url, token, **options)

    def on_worker_init(sender=None, **_):
        if getattr(sender, "app", app) is not app:
            return
        for name, task in app.tasks.items():
            if name in tasks if tasks is not None else not name.startswith("celery."):
                _hook(type(task), check, named=tasks is None)
        if startup_timeout <= 0:
            return
        try:
            check.resync(startup_timeout)
        except Unreachable as why:
            log.warning("orphanwatch made no pass before this worker starts: %s", why)

    signals.worker_init.connect(on_worker_init, weak=False)
    return check


def _hook(cls, check, named):
    """Make before_start of a task's class ask first. Celery calls it in the process
    that runs the task, and takes an Ignore out of it for an answer."""
    before_start = cls.before_start
    if getattr(before_start, "_orphanwatch", None) is check:
        return

    @functools.wraps(before_start)
    def checked(self, task_id, args, kwargs):
        check.before(self, task_id, args, kwargs, self.name if named else None)
        return before_start(self, task_id, args, kwargs)

    checked.__module__ = __name__  # Celery overlooks what seems to be its own
    checked._orphanwatch = check
    cls.before_start = checked


def _key_of(row):
    """The function that finds the key of the row, None where the id is that."""
    if callable(row):
        return lambda task, args, kwargs: _text(row(task, args, kwargs))
    kind, _, name = row.partition(":")
    if row == "celery_id":
        return lambda task, args, kwargs: None
    if kind == "args" and name.isdigit():
        at = int(name)
        return lambda task, args, kwargs: _text(args[at] if at < len(args) else None)
    if kind == "kwargs" and name:
        return lambda task, args, kwargs: _text(kwargs.get(name))
    raise ValueError(f'orphanwatch: row is {row!r}, not "celery_id", "args:N", "kwargs:K" or a function')


def _text(key):
    return None if key is None else str(key)


def _message(body):
    try:
        return json.loads(body)["message"]
    except (ValueError, KeyError, TypeError):
        return body[:200].decode("utf-8", "replace")
