#!/bin/sh
# The test guest's machine: an append-only ledger, each line on the disk before it is reported.
# Commands come on the serial line; each answer ends with "@@ CODE".
export PATH=/bin
exec <>/dev/ttyS0 >&0 2>&1
stty -echo -onlcr
LEDGER=/srv/ledger

work() {
  n=$1
  while :; do
    echo "entry $n of this ledger" >>"$LEDGER"
    sync -d "$LEDGER" && echo "committed $n"
    n=$((n + 1))
  done
}

echo "@@ up"
while read -r command first; do
  case $command in
  off)
    poweroff -f
    ;;
  work)
    work "$first" &
    echo "@@ 0"
    ;;
  report) # the number of lines, and how many are not what they should be
    awk '{ if ($0 != "entry " NR " of this ledger") wrong++ } END { print NR, wrong + 0 }' "$LEDGER"
    echo "@@ 0"
    ;;
  esac
done
