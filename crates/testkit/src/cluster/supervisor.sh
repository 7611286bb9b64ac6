# Keeps one throw-away PostgreSQL cluster for as long as somebody holds the other end of standard input.
#
# Orders come in as lines, every answer goes out as one line. When the input ends, the holder is gone, by whatever
# way it went (SIGKILL included): then the server is stopped and the folder removed. That is why this is a process
# of its own and not code in the holder.
#
#   supervisor.sh PROGRAMS PRIMARY SETTING…       PROGRAMS has initdb, postgres and, for a copy, pg_basebackup;
#                                                 PRIMARY is the URL of the server to be copied, or empty for a new
#                                                 cluster; each SETTING is name=value

programs=$1
primary=$2
shift 2
server=

# Nothing but the end of the input ends this script. PIPE: an answer that nobody reads any more must not either.
trap '' HUP INT TERM PIPE

folder=$(mktemp -d "${TMPDIR:-/tmp}/herald-postgres-XXXXXX" 2>/dev/null || mktemp -d /tmp/herald-postgres-XXXXXX)
echo "${folder:?}"

if [ -n "$primary" ]; then
    "$programs/pg_basebackup" --pgdata="$folder/data" --dbname="$primary" --write-recovery-conf --checkpoint=fast \
        --no-sync </dev/null >"$folder/log" 2>&1
else
    "$programs/initdb" --pgdata="$folder/data" --username=postgres --auth=trust --encoding=UTF8 --locale=C --no-sync \
        </dev/null >"$folder/log" 2>&1
fi
echo "created $?"

for setting; do
    shift
    set -- "$@" -c "$setting"
done

stop() {
    if [ -n "$server" ]; then
        kill -s "$1" "$server" 2>/dev/null
        wait "$server"
        server=
    fi
}

while read -r order argument; do
    case $order in
    start)
        "$programs/postgres" -D "$folder/data" "$@" -p "$argument" </dev/null >>"$folder/log" 2>&1 &
        server=$!
        echo started
        ;;
    stop)
        stop "$argument"
        echo stopped
        ;;
    look)
        # A dead child keeps its process id until it is waited for; starting a subshell makes the shell do so.
        (:)
        if kill -0 "$server" 2>/dev/null; then echo runs; else echo gone; fi
        ;;
    esac
done

stop QUIT
rm -rf "$folder"
