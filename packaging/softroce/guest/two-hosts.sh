# Two "hosts": network namespaces host0 and host1, an end of the cable and its device in each.
#
# The devices stay in the "shared" mode of the kernel's RDMA: each host lists both, and
# can connect through its own alone, the other's interface being nowhere in it.  In the
# "exclusive" mode a SoftRoCE device would have to be moved after it is made, and its
# sockets stay behind: rdma_connect fails with EINVAL (Linux 7.3).
ip link add roce0 mtu 9000 type veth peer name roce1 mtu 9000
for end in 0 1; do
    ip netns add host$end
    ip link set roce$end netns host$end
    ip -n host$end link set lo up
    ip -n host$end address add 10.77.0.$((end + 1))/24 dev roce$end
    ip -n host$end link set roce$end up
    ip netns exec host$end rdma link add rxe$end type rxe netdev roce$end
done
