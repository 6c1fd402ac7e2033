"""Which levels of isolation a node grants, from its configuration and from what it can do."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from rfaas.config import SandboxConfig
from rfaas.errors import CapacityError, ConfigError
from rfaas.proto.worker_messages import Lack

ALL = ["all"]
DEFAULT = "sandbox"
OWN_CODE = "process"  # where a private executor cannot hold the default

log = logging.getLogger("rfaas.executor")


class Levels:
    """What the zygote found, judged.

    Attributes:
        found: what each level lacks.
        offered: the levels that are granted, the weakest first.

    Raises:
        ConfigError: a level that is named does not exist, or one lacks what it must not.
    """

    def __init__(self, node: SandboxConfig, found: Mapping[str, tuple[Lack, ...]]) -> None:
        self.found = found
        named = node.levels.split()
        if found and named != ALL and (unknown := set(named).difference(found)):
            raise ConfigError(
                f"sandbox.levels: no level of isolation is called {min(unknown)!r}",
                hint=f"there is {', '.join(found)}",
            )
        degrade = [] if node.require else node.degrade.split()
        self._blocking = {
            level: next((one for one in lacks if one.part not in degrade), None)
            for level, lacks in found.items()
            if named == ALL or level in named
        }
        self.offered = tuple(level for level, lack in self._blocking.items() if lack is None)
        for level, lack in self._blocking.items():
            if lack is not None and named != ALL:
                raise ConfigError(
                    f"isolation {level} cannot be had on this node: {lack.part}: {lack.why}",
                    hint=lack.hint or "take it out of sandbox.levels",
                )

    def default(self) -> str:
        """The level of a lease that does not say, on a private executor.

        Raises:
            CapacityError: this machine can hold neither DEFAULT nor what stands in for it.
        """
        lack = self._blocking.get(DEFAULT)
        if lack is None:
            return DEFAULT
        why = f"{lack.part}: {lack.why}"
        if (other := self._blocking.get(OWN_CODE)) is not None:
            both = f"a sandbox nor level {OWN_CODE} ({why})"
            if other.part != lack.part:
                both = f"a sandbox ({why}) nor level {OWN_CODE} ({other.part}: {other.why})"
            allowed = "let sandbox.degrade name it, with sandbox.require = false"
            raise CapacityError(
                f"this machine can hold neither {both}",
                hint=f"{other.hint}; or {allowed}" if other.hint else allowed,
            )
        log.warning(
            "this machine cannot hold a sandbox (%s): your functions run as processes of yours", why
        )
        return OWN_CODE

    def tell(self, *, quiet: bool) -> None:
        """Say in the log what is missing: loudly, unless `quiet`."""
        for level, lack in self._blocking.items():
            for one in self.found[level]:
                log.log(
                    logging.INFO if quiet else logging.WARNING,
                    "isolation %s %s: it lacks %s: %s%s",
                    level,
                    "is not granted" if lack else "is granted in part",
                    one.part,
                    one.why,
                    f"; hint: {one.hint}" if one.hint else "",
                )
