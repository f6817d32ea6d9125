#!/bin/sh
# The first process of the guest once its disk is mounted: starts the database and does what is
# asked on the serial line. Each command ends with a line "@@ CODE".
export PATH=/bin
exec <>/dev/ttyS0 >&0 2>&1
stty -echo -onlcr
mkdir -p /run
mount -t tmpfs none /run
mount -t tmpfs none /tmp
chmod 1777 /tmp
mkdir -m 700 /run/ledger
chown ledger /run/ledger

as_ledger() {
  su -s /bin/sh ledger -c "PATH=/bin /srv/ledger.sh $*"
}

as_ledger serve >/run/log 2>&1 &
echo "@@ up"
while read -r command; do
  case $command in
  off)
    sync
    poweroff -f
    ;;
  "work "*)
    as_ledger "$command" &
    echo "@@ 0"
    ;;
  *)
    as_ledger "$command"
    echo "@@ $?"
    ;;
  esac
done
poweroff -f
