"""What a machine has for rFaaS and what it lacks: `rfaas devices` and `rfaas doctor`.

    devices.py   the RDMA devices of this machine
    gpus.py, processors.py   what an executor lends
    facts.py     everything else that is looked at: asks the system, decides nothing
    checks.py    facts in, findings out: asks nothing
    containers.py, images.py, gpus.py
                 the same two for one subject each
    report.py    how both are shown
    hosts.py     the same from many nodes, over ssh or srun
    command.py   the two commands

No role and no transport is imported: this must run where nothing else does.
"""
