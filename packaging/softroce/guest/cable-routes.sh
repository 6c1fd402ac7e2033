# Routes of one-cable.sh that go when an end is down: run again when it is up.
#
#     sh /run/job/cable-routes.sh
for end in 0 1; do
    other=$((1 - end))
    # Nobody would answer: the question would come from an address of the one who is asked.
    mac=$(cat /sys/class/net/roce$other/address)
    ip neigh replace 10.77.0.$((other + 1)) dev roce$end lladdr "$mac"
    ip route replace 10.77.0.$((other + 1)) dev roce$end src 10.77.0.$((end + 1)) table 10$end
done
