#!/bin/sh
# Installs what the sandbox starts: redis-server, PostgreSQL's server and Celery (with
# psycopg2 for its tasks); curl, for the README's own lines; and systemd-analyze, for the unit.
# Silent and quick when all is there. Needs apt, and root or sudo. Starts no service.
set -eu

packages=
command -v redis-server >/dev/null || packages="$packages redis-server"
command -v curl >/dev/null || packages="$packages curl"
command -v systemd-analyze >/dev/null || packages="$packages systemd"
if [ -n "${ORPHANWATCH_PG_BIN:-}" ]; then
	set -- "$ORPHANWATCH_PG_BIN/initdb"
else
	set -- /usr/lib/postgresql/*/bin/initdb
fi
[ -x "$1" ] || command -v initdb >/dev/null || packages="$packages postgresql"
# Asks without importing Celery, which takes longer than all the rest.
python="import importlib.util as u, sys; sys.exit(not (u.find_spec('celery') and u.find_spec('redis')))"
found=
for p in ${ORPHANWATCH_PYTHON:-} /usr/bin/python3 python3; do
	if "$p" -c "$python" 2>/dev/null; then found=$p && break; fi
done
[ -n "$found" ] || packages="$packages python3-celery python3-redis"
# For the tasks that write child rows; another Python than Debian's has its own ways.
case "$found" in
"" | /usr/bin/python3)
	/usr/bin/python3 -c "import importlib.util as u, sys; sys.exit(not u.find_spec('psycopg2'))" 2>/dev/null ||
		packages="$packages python3-psycopg2"
	;;
esac
[ -n "$packages" ] || exit 0

if ! command -v apt-get >/dev/null; then
	echo "install-deps.sh: no apt here; please install:$packages" >&2
	exit 1
fi
sudo=
if [ "$(id -u)" -ne 0 ]; then
	if ! command -v sudo >/dev/null; then
		echo "install-deps.sh: neither root nor sudo; please run as root: apt-get install$packages" >&2
		exit 1
	fi
	sudo=sudo
fi
echo "install-deps.sh: installing$packages (apt)" >&2

log=$(mktemp)
policy=/usr/sbin/policy-rc.d
ours=
finish() {
	code=$?
	[ -z "$ours" ] || $sudo rm -f "$policy"
	[ "$code" -eq 0 ] || cat "$log" >&2
	rm -f "$log"
	exit "$code"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# The packages start their services unless this file says no. One that is there stays.
if [ ! -e "$policy" ]; then
	ours=yes
	printf '#!/bin/sh\n# of deploy/install-deps.sh, for as long as it runs\nexit 101\n' | $sudo tee "$policy" >/dev/null
	$sudo chmod 755 "$policy"
fi

install() {
	# shellcheck disable=SC2086 # a list of words
	$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
		-o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 $packages >>"$log" 2>&1
}
# Debian images come without package lists, and old lists name files that are gone.
if ! install; then
	$sudo apt-get update -o DPkg::Lock::Timeout=300 >>"$log" 2>&1
	install
fi
