# Sourced by the first program: makes $root, the host's files under an overlay, a root of its own.
# ---- kernel's file systems
mount -t proc proc $root/proc
mount -t sysfs sysfs $root/sys
mount -t devtmpfs devtmpfs $root/dev
mkdir -p $root/dev/pts $root/dev/shm
mount -t devpts -o ptmxmode=666,mode=620,gid=5 devpts $root/dev/pts
mount -t tmpfs -o mode=1777 tmpfs $root/dev/shm
mount -t tmpfs -o mode=755 tmpfs $root/run
mkdir -p $root/run/lock $root/run/netns
! [ -d $root/sys/fs/cgroup ] || mount -t cgroup2 cgroup2 $root/sys/fs/cgroup
# ---- what udev would make
for link in fd:/proc/self/fd stdin:fd/0 stdout:fd/1 stderr:fd/2; do
    ln -sf ${link#*:} $root/dev/${link%%:*}
done
# ---- the job
cp -r "$job" $root/run/job
. "$job/mounts.sh"
