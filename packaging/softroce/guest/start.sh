# Second program, in the finished root: makes the devices, runs the command, tells its status.
. /run/job/off.sh
cd /run/job
hostname softroce
ulimit -l unlimited
ip link set lo up
. "./$(cat network)"

# The ports' names may hold a pattern.
set -- $(echo $(cat ports))
control=$1
mkfifo out err
cat out >"$2" &
out=$!
cat err >"$3" &
err=$!
exec 3>"$control"
echo ready >&3

# SoftRoCE works in kernel threads, which programs that poll would keep waiting; those
# of the idle policy give way to them at once.
set +e
chrt --idle 0 sh command.sh </dev/null >out 2>err 3>&-
status=$?

# What the command left running may hold the pipes open.
(sleep 1 && kill $out $err) 2>/dev/null 3>&- &
wait $out $err 2>/dev/null
sync
echo "exit $status" >&3
