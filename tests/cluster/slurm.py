"""The text of SLURM's configuration: a farm of small nodes on one host. Pure functions.

Four slurmd share the host under the names n1..n4, of two GPUs each, and two more as n5 and n6, of
four GPUs, in a partition of their own (`wide`). Each claims more cores than the machine has
(`config_overrides`), and its GPUs are stand-ins: SLURM counts them, hands them out and sets
CUDA_VISIBLE_DEVICES as on a real cluster.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

MARK = "# written by llem tests/cluster; `cluster.py up` writes it again\n"
HOSTS_BEGIN = "# llem test cluster: begin\n"
HOSTS_END = "# llem test cluster: end\n"


@dataclass(frozen=True)
class Farm:
    """What the farm looks like; one place for every number that tests rely on."""

    host: str
    state: Path
    cluster: str = "farm"
    nodes: int = 4
    cpus_per_node: int = 4
    memory_per_node_mb: int = 8000
    gpus_per_node: int = 2
    wide_nodes: int = 2
    wide_cpus: int = 16
    wide_gpus: int = 4
    first_port: int = 17001
    # As on many sites: the cap is on the array INDEX, so 1001 allows 0..1000.
    max_array_size: int = 1001
    # What a preempted job is given to leave.
    grace_s: int = 20

    @property
    def node_names(self) -> list[str]:
        return [f"n{number}" for number in range(1, self.nodes + self.wide_nodes + 1)]

    @property
    def gpu_files(self) -> list[Path]:
        """Named as the driver names them: SLURM takes the index from the trailing number."""
        most = max(self.gpus_per_node, self.wide_gpus)
        return [self.state / "dev" / f"nvidia{index}" for index in range(most)]


def slurm_conf(farm: Farm) -> str:
    """slurm.conf. Timeouts are long because eight ranks may share two real cores."""
    nodes, wide = _names(farm)
    second_port = farm.first_port + farm.nodes
    ports = f"[{farm.first_port}-{second_port - 1}]"
    wide_ports = f"[{second_port}-{second_port + farm.wide_nodes - 1}]"
    return (
        MARK
        + f"""\
ClusterName={farm.cluster}
SlurmctldHost={farm.host}(127.0.0.1)
SlurmUser=slurm
AuthType=auth/munge
# A requeued job waits this long before it starts again; the default is 120 s.
AuthInfo=cred_expire=15
# Every daemon and every srun listens on loopback only.
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
StateSaveLocation={farm.state}/slurmctld
SlurmdSpoolDir={farm.state}/slurmd.%n
SlurmctldPidFile={farm.state}/run/slurmctld.own.pid
SlurmdPidFile={farm.state}/run/slurmd.%n.own.pid
SlurmctldLogFile={farm.state}/log/slurmctld.log
SlurmdLogFile={farm.state}/log/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
# Memory counts too, as at most sites: only so is a job that outgrows its --mem killed. It ends
# FAILED with a line on stderr; the state OUT_OF_MEMORY is set by cgroups only.
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU={farm.memory_per_node_mb // farm.cpus_per_node}
GresTypes=gpu
ReturnToService=2
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=1,bf_interval=2,batch_sched_delay=0,sched_min_interval=0
MaxArraySize={farm.max_array_size}
MaxJobCount=50000
MessageTimeout=60
BatchStartTimeout=60
KillWait=5
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill,UsePss
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=localhost
AccountingStorageTRES=gres/gpu
# Users' limits hold, as `test_many.py` needs them to.
AccountingStorageEnforce=limits
NodeName={nodes} NodeHostname={farm.host} NodeAddr=127.0.0.1 Port={ports} \
CPUs={farm.cpus_per_node} RealMemory={farm.memory_per_node_mb} Gres=gpu:{farm.gpus_per_node} \
State=UNKNOWN
NodeName={wide} NodeHostname={farm.host} NodeAddr=127.0.0.1 Port={wide_ports} \
CPUs={farm.wide_cpus} RealMemory={farm.memory_per_node_mb} Gres=gpu:{farm.wide_gpus} \
State=UNKNOWN
# A job of `urgent` drives one of `gpu` out, which is warned and given some seconds to leave.
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=gpu Nodes={nodes} Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO \
PriorityTier=1 PreemptMode=REQUEUE GraceTime={farm.grace_s}
PartitionName=wide Nodes={wide} MaxTime=INFINITE State=UP OverSubscribe=NO
PartitionName=urgent Nodes={nodes} MaxTime=INFINITE State=UP OverSubscribe=NO \
PriorityTier=10 PreemptMode=OFF
# For elements that do next to nothing: as many as the scheduler can start.
PartitionName=many Nodes={nodes} MaxTime=INFINITE State=UP OverSubscribe=FORCE:4 \
PriorityTier=1 PreemptMode=REQUEUE GraceTime={farm.grace_s}
"""
    )


def gres_conf(farm: Farm) -> str:
    counts = zip(_names(farm), (farm.gpus_per_node, farm.wide_gpus), strict=True)
    return MARK + "".join(
        f"NodeName={nodes} Name=gpu Count={count} File={farm.state}/dev/nvidia[0-{count - 1}]\n"
        for nodes, count in counts
    )


def _names(farm: Farm) -> tuple[str, str]:
    """The nodes of both kinds, as SLURM lists them."""
    return f"n[1-{farm.nodes}]", f"n[{farm.nodes + 1}-{farm.nodes + farm.wide_nodes}]"


def slurmdbd_conf(farm: Farm) -> str:
    """slurmdbd.conf. No password: MariaDB knows the slurm user by its socket."""
    return (
        MARK
        + f"""\
AuthType=auth/munge
DbdHost=localhost
SlurmUser=slurm
LogFile={farm.state}/log/slurmdbd.log
PidFile={farm.state}/run/slurmdbd.own.pid
CommunicationParameters=NoInAddrAny
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=slurm
StorageLoc=slurm_acct_db
"""
    )


def hosts_with_nodes(text: str, farm: Farm) -> str:
    """/etc/hosts with one block of ours, on top, so that a second call changes nothing.

    Each node has its own loopback address, so that node names resolve as on a real cluster. The
    machine's own name must be 127.0.0.1, for SLURM's daemons bind to what it resolves to.
    """
    rest = hosts_without_nodes(text)
    lines = [f"127.0.1.{number} {name}" for number, name in enumerate(farm.node_names, 1)]
    if first_address(rest, farm.host) != "127.0.0.1":
        lines.insert(0, f"127.0.0.1 {farm.host}")
    return HOSTS_BEGIN + "".join(f"{line}\n" for line in lines) + HOSTS_END + rest


def first_address(hosts: str, name: str) -> str | None:
    """What /etc/hosts makes of a name."""
    for line in hosts.splitlines():
        address, *names = line.partition("#")[0].split() or [""]
        if name in names:
            return address
    return None


def hosts_without_nodes(text: str) -> str:
    before, begin, after = text.partition(HOSTS_BEGIN)
    if not begin:
        return text
    return before + after.partition(HOSTS_END)[2]


def node_states(sinfo: str) -> dict[str, str]:
    """`sinfo --noheader --Node --format '%N %T'` as {node: state}."""
    return dict(line.split()[:2] for line in sinfo.splitlines() if line.strip())


def is_usable(state: str) -> bool:
    """Whether jobs can start on a node now or once its present jobs end.

    A suffix is a complaint: `*` not answering, `~`/`#`/`%` powered down or starting, `$` reserved.
    """
    return state in {"idle", "allocated", "mixed", "completing"}
