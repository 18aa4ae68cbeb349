# Boots the machine's own systemd as the first process of namespaces of its own, in the network namespace that this runs in.
# Its root is the machine's, under a layer that is gone afterwards; its control groups are below one of its own; /sys and /proc/sys
# cannot be written, so nothing is set for the machine. It ends when the standard input does.
#
# usage: unshare --mount sh boot.sh FOLDER PROGRAM
# FOLDER/etc is laid over /etc, PROGRAM over /usr/bin/accountant (unless empty); FOLDER/pid gets the process that is systemd.
set -eu
folder=$1 program=$2
mount --make-rprivate /
mount -t tmpfs tmpfs "$folder/layer"
mkdir "$folder/layer/up" "$folder/layer/work" "$folder/layer/root" "$folder/layer/groups"
mount -t cgroup2 cgroup2 "$folder/layer/groups"
group=$folder/layer/groups/acct-$$
mkdir "$group"

root=$folder/layer/root
mount -t overlay -o "lowerdir=/,upperdir=$folder/layer/up,workdir=$folder/layer/work" overlay "$root"
cp -r "$folder/etc/." "$root/etc"
cat >"$root/etc/systemd/system/accountant-test.target" <<END
[Unit]
Requires=basic.target
After=basic.target
END
if [ -n "$program" ]; then
    touch "$root/usr/bin/accountant"
    mount --bind "$program" "$root/usr/bin/accountant"
fi
mkdir -p "$root/mnt/before"
mount -t tmpfs tmpfs "$root/dev"
for device in null zero full random urandom tty; do
    touch "$root/dev/$device"
    mount --bind "/dev/$device" "$root/dev/$device"
done
mkdir "$root/dev/shm" "$root/dev/pts"
mount -t devpts -o newinstance,ptmxmode=0666 devpts "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
mount -t tmpfs tmpfs "$root/run"
mount -t tmpfs tmpfs "$root/tmp"

export folder group root
sh -ec '
echo $$ >"$group/cgroup.procs"
exec unshare --mount --pid --uts --ipc --cgroup --fork --kill-child sh -ec "
    # As the first process sees itself from outside.
    read -r pid rest </proc/self/stat
    mount -t proc proc \"\$root/proc\"
    mount --bind \"\$root/proc/sys\" \"\$root/proc/sys\"
    mount -o remount,bind,ro \"\$root/proc/sys\"
    mount -t sysfs -o ro sysfs \"\$root/sys\"
    mount -t cgroup2 cgroup2 \"\$root/sys/fs/cgroup\"
    echo \"\$pid\" >\"\$folder/pid.new\"
    mv \"\$folder/pid.new\" \"\$folder/pid\"
    cd \"\$root\"
    pivot_root . mnt/before
    exec chroot . sh -c \"umount -l /mnt/before; exec env -i container=acct PATH=/usr/sbin:/usr/bin:/sbin:/bin \
        /usr/lib/systemd/systemd --unit=accountant-test.target --log-target=journal\"
"' </dev/null &
machine=$!
read -r _ || true
kill -9 "$machine" || true
wait "$machine" 2>/dev/null || true
# Control groups of processes that have just ended are empty soon.
for _ in 1 2 3 4 5 6 7 8 9 10; do
    find "$group" -depth -type d -exec rmdir {} + 2>/dev/null && break
    sleep 0.2
done
