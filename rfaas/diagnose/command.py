"""`rfaas devices` and `rfaas doctor`."""

from __future__ import annotations

import argparse
import os
import sys

import msgspec

from rfaas.config import Config
from rfaas.diagnose import report
from rfaas.diagnose.checks import blocked, examine
from rfaas.diagnose.records import Node, Wants
from rfaas.errors import UnavailableError

NO_DEVICE = "no RDMA device: neither a card that the kernel drives nor one in software"


def run_devices(options: argparse.Namespace) -> int:
    """List the devices of this machine, or of those named.

    Raises:
        UnavailableError: no device, or with --toml none that can be used.
    """
    if options.hosts:
        from rfaas.diagnose import hosts

        nodes = hosts.ask(
            hosts.expand(options.hosts),
            options.remote,
            options.remote_rfaas,
            options.remote_timeout,
        )
    else:
        from rfaas.diagnose import rdma_core
        from rfaas.diagnose.devices import find_devices

        found = find_devices()
        problem = "" if found else NO_DEVICE
        whose = rdma_core.in_words()
        nodes = [Node(host=os.uname().nodename, devices=found, rdma_core=whose, problem=problem)]
    if options.json:
        for node in nodes:
            print(msgspec.json.encode(node).decode())
    elif options.toml:
        blocks = [block for node in nodes if (block := report.toml_block(node))]
        print("\n\n".join(blocks), end="\n" if blocks else "")
    elif any(node.devices for node in nodes):
        print(report.devices_table(nodes))
    return _verdict(nodes, options)


def _verdict(nodes: list[Node], options: argparse.Namespace) -> int:
    empty = [node for node in nodes if not node.devices]
    if options.toml and not empty:
        empty = [node for node in nodes if report.best_device(node.devices) is None]
    if not empty:
        return 0
    if options.json:
        return UnavailableError.exit_status  # the objects say why
    lines = [
        f"{node.host}: {node.problem or 'none of its RDMA devices can be used'}" for node in empty
    ]
    raise UnavailableError("\n".join(lines), hint="`rfaas doctor` there says what to do about it")


def run_doctor(config: Config, options: argparse.Namespace) -> int:
    """Say what is missing; 0 where what is needed can work."""
    from rfaas.diagnose.facts import gather

    facts = gather(config.container, config.lease.image)
    lane, container = config.lane, config.container
    wants = Wants(
        # Inputs and outputs, on either side: the NIC writes the ones and reads the others.
        window_bytes=2 * lane.slots * lane.slot_bytes,
        slots=lane.slots,
        slot_bytes=lane.slot_bytes,
        knows_verbs=report.knows_verbs(),
        degrade=[] if config.sandbox.require else config.sandbox.degrade.split(),
        engine=container.engine,
        docker_rdma_sriov=container.docker_rdma_sriov,
        registry_auth=container.registry_auth,
        store=container.store,
        image=config.lease.image,
    )
    findings = examine(facts, wants)
    is_blocked = blocked(findings)
    if options.json:
        works = {use: not it for use, it in is_blocked.items()}
        print(
            msgspec.json.encode(
                {"host": facts.host, "works": works, "findings": findings, "facts": facts}
            ).decode()
        )
    else:
        print(report.findings_text(facts, findings))
        sys.stdout.flush()
    return UnavailableError.exit_status if is_blocked[options.need] else 0
