# Two devices on the two ends of a cable, both in this network namespace.
#
# Both addresses are ours, so that by itself nothing would ever leave for the cable: the
# table of local addresses is asked first.  Here it is asked first for what comes in, and
# what goes from one end to the other is routed to its end before it is asked at all.
ip link add roce0 mtu 9000 type veth peer name roce1 mtu 9000
ip rule add pref 300 lookup local
for end in 0 1; do
    other=$((1 - end))
    ip address add 10.77.0.$((end + 1))/24 dev roce$end
    ip link set roce$end up
    ip rule add pref 10$end iif roce$end lookup local
    ip rule add pref 20$end from 10.77.0.$((end + 1)) to 10.77.0.$((other + 1)) lookup 10$end
done
ip rule delete pref 0
. ./cable-routes.sh
for end in 0 1; do rdma link add rxe$end type rxe netdev roce$end; done
