# Watches over one sandbox. $1: its directory. Standard input: a pipe whose only
# writer is the process that owns the sandbox; lines "+ PID" and "- PID" name the
# leaders of its process trees. At EOF all of them are killed and the directory is
# removed. Uses the shell's builtins, sleep, rm and (if there) ipcrm.
dir=$1
trap '' HUP INT QUIT TERM PIPE USR1 USR2
leaders=
while read -r op pid; do
	case $op in
	+) leaders="$leaders $pid" ;;
	-)
		kept=
		for p in $leaders; do [ "$p" = "$pid" ] || kept="$kept $p"; done
		leaders=$kept
		;;
	esac
done

# The leaders and their descendants. PostgreSQL's backends lead groups of their own,
# so the process group alone does not name them.
collect() {
	all=$leaders
	grown=yes
	while [ -n "$grown" ]; do
		grown=
		for stat in /proc/[0-9]*/stat; do
			read -r line 2>/dev/null <"$stat" || continue
			pid=${line%% *}
			set -- ${line##*) }
			case " $all " in *" $pid "*) continue ;; esac
			case " $all " in *" $2 "*) all="$all $pid" grown=yes ;; esac
		done
	done
}

# Stopped first, so that nobody forks while the tree is read.
for p in $leaders; do kill -STOP "$p" "-$p" 2>/dev/null; done
collect
for p in $all; do kill -KILL "$p" 2>/dev/null; done
for p in $leaders; do kill -KILL "-$p" 2>/dev/null; done

# A zombie holds nothing any more; who must reap it may be slow or gone.
tries=0
while [ $tries -lt 250 ]; do
	alive=
	for p in $all; do
		read -r line 2>/dev/null <"/proc/$p/stat" || continue
		set -- ${line##*) }
		case $1 in Z | X) ;; *) alive=yes ;; esac
	done
	[ -n "$alive" ] || break
	sleep 0.02
	tries=$((tries + 1))
done

# A killed postmaster leaves its System V segment: line 7 of postmaster.pid is "key id".
for file in "$dir"/*/data/postmaster.pid; do
	[ -r "$file" ] || continue
	n=0
	while read -r _ id _; do
		n=$((n + 1))
		[ $n -eq 7 ] && [ -n "$id" ] && ipcrm -m "$id" 2>/dev/null
	done <"$file"
done

tries=0
while [ -e "$dir" ] && [ $tries -lt 50 ]; do
	rm -rf "$dir" 2>/dev/null
	[ -e "$dir" ] || break
	sleep 0.02
	tries=$((tries + 1))
done
