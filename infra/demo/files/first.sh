#!/bin/busybox sh
# The guest's first process: loads drivers, mounts the disk, goes on from there.
box=/bin/busybox
$box mount -t proc none /proc
$box mount -t devtmpfs none /dev
while read -r module; do
  $box insmod "/modules/$module"
done </modules/order
for _ in 1 2 3 4 5 6 7 8 9 10; do
  [ -b /dev/vda ] && break
  $box sleep 0.2
done
if ! $box mount -t ext4 /dev/vda /disk; then
  echo "@@ no disk" >/dev/ttyS0
  $box poweroff -f
fi
$box mount --move /proc /disk/proc
$box mount --move /dev /disk/dev
exec $box switch_root /disk /bin/sh /srv/start.sh
