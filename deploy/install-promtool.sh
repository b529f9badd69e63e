#!/bin/sh
# Puts promtool, which tests the alert rules, into bin/tools, out of Debian's package
# prometheus: downloaded and unpacked, not installed, so that no server comes with it.
# Silent and quick when it is there, or on the PATH. Needs apt; root or sudo only where
# the package lists are missing or old.
set -eu

tools=$(cd "$(dirname "$0")/.." && pwd)/bin/tools
[ ! -x "$tools/promtool" ] || exit 0
! command -v promtool >/dev/null || exit 0
for tool in apt-get dpkg-deb; do
	command -v "$tool" >/dev/null && continue
	echo "install-promtool.sh: no $tool here; please put promtool (of Prometheus 2.42 or newer) on the PATH" >&2
	exit 1
done
echo "install-promtool.sh: getting promtool into bin/tools (apt)" >&2

dir=$(mktemp -d)
finish() {
	code=$?
	[ "$code" -eq 0 ] || cat "$dir/log" >&2
	rm -rf "$dir"
	exit "$code"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# apt reads as another user where it runs as root; that one may look in.
chmod 755 "$dir"
get() { (cd "$dir" && apt-get download prometheus) >>"$dir/log" 2>&1; }
# Debian images come without package lists, and old lists name files that are gone.
if ! get; then
	sudo=
	if [ "$(id -u)" -ne 0 ]; then
		if ! command -v sudo >/dev/null; then
			echo "install-promtool.sh: neither root nor sudo; please run as root: apt-get update" >&2
			exit 1
		fi
		sudo=sudo
	fi
	$sudo apt-get update -o DPkg::Lock::Timeout=300 >>"$dir/log" 2>&1
	get
fi
mkdir -p "$tools"
dpkg-deb --fsys-tarfile "$dir"/prometheus_*.deb | tar -xO ./usr/bin/promtool >"$dir/promtool"
chmod 755 "$dir/promtool"
"$dir/promtool" --version >>"$dir/log" 2>&1 # one that does not run here must not stay
mv "$dir/promtool" "$tools/promtool"
