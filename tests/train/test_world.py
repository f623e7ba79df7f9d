"""The processes of a run, as the environment of another launcher describes them."""

import os
from collections.abc import Callable

import pytest

from pipeline.errors import InputError
from train.config import TrainConfig
from train.world import World, find_world


class TestEnvironments:
    """A process adopts what srun and mpirun say about it."""

    SRUN = {  # noqa: RUF012
        "SLURM_PROCID": "3",
        "SLURM_STEP_NUM_TASKS": "4",
        "SLURM_LOCALID": "1",
        "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
    }
    MASTER = {"MASTER_ADDR": "node0", "MASTER_PORT": "29500"}  # noqa: RUF012

    @pytest.fixture(autouse=True)
    def _no_launcher(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in os.environ:
            if name.startswith(("SLURM_", "OMPI_", "TORCHELASTIC_")) or name in ("RANK", "WORLD_SIZE", "MASTER_ADDR"):
                monkeypatch.delenv(name)

    @pytest.fixture
    def world(self, monkeypatch: pytest.MonkeyPatch) -> Callable[..., World | None]:
        def world(environment: dict[str, str], **flags: int) -> World | None:
            for name, value in environment.items():
                monkeypatch.setenv(name, value)
            return find_world(TrainConfig(**flags))  # type: ignore[arg-type]

        return world

    def test_srun(self, world: Callable[..., World | None]) -> None:
        expected = World(rank=3, size=4, local_rank=1, local_size=2)
        assert world({**self.SRUN, **self.MASTER, "SLURM_NODEID": "1"}) == expected

    @pytest.mark.parametrize(("tasks", "node", "count"), [("2(x3),1", 2, 2), ("2(x3),1", 3, 1), ("4", 0, 4)])
    def test_srun_with_unequal_nodes(
        self, world: Callable[..., World | None], tasks: str, node: int, count: int
    ) -> None:
        unequal = {"SLURM_STEP_TASKS_PER_NODE": tasks, "SLURM_NODEID": str(node), "SLURM_LOCALID": "0"}
        unequal_world = world({**self.SRUN, **self.MASTER, **unequal})
        assert unequal_world is not None
        assert unequal_world.local_size == count

    def test_a_batch_script_without_srun_is_no_step(self, world: Callable[..., World | None]) -> None:
        """Some versions of Slurm describe the step of a batch script in srun's variables, too; its ID tells it
        apart."""
        batch = {**self.SRUN, "SLURM_STEP_ID": "4294967291", "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}
        assert world(batch) is None

    @pytest.mark.parametrize("program", ["sbatch", "salloc"])
    def test_an_allocation_of_two_tasks_without_srun_is_one_process(
        self, world: Callable[..., World | None], program: str
    ) -> None:
        """The variables as Slurm 22.05 sets them under `sbatch -n 2` and `salloc -n 2`."""
        allocation = {
            "SLURM_JOB_ID": "1", "SLURM_JOBID": "1", "SLURM_JOB_NUM_NODES": "1", "SLURM_NNODES": "1",
            "SLURM_NTASKS": "2", "SLURM_NPROCS": "2", "SLURM_TASKS_PER_NODE": "2", "SLURM_JOB_CPUS_PER_NODE": "2",
            "SLURM_JOB_NODELIST": "node0", "SLURM_NODELIST": "node0", "SLURM_JOB_PARTITION": "p",
        }  # fmt: skip
        script = {
            "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_GTIDS": "0",
            "SLURM_TASK_PID": "31266", "SLURMD_NODENAME": "node0", "SLURM_CPUS_ON_NODE": "2",
        }  # fmt: skip
        assert world(allocation | (script if program == "sbatch" else {})) is None

    def test_mpirun(self, world: Callable[..., World | None]) -> None:
        names = ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE")
        variables = {f"OMPI_COMM_WORLD_{name}": value for name, value in zip(names, "5812", strict=True)}
        assert world(variables | self.MASTER) == World(rank=5, size=8, local_rank=1, local_size=2)

    def test_with_one_task_a_machine_our_own_launcher_starts_the_rest(self, world: Callable[..., World | None]) -> None:
        assert world(self.SRUN, nproc=8) is None

    def test_no_launcher(self, world: Callable[..., World | None]) -> None:
        assert world({}) is None

    def test_without_a_meeting_point(self, world: Callable[..., World | None]) -> None:
        with pytest.raises(InputError, match=r"srun started 4 processes: export MASTER_ADDR .* MASTER_PORT"):
            world(self.SRUN)

    def test_a_rank_that_is_not_a_number(self, world: Callable[..., World | None]) -> None:
        with pytest.raises(InputError, match=r"torchrun's environment .* RANK=x WORLD_SIZE=2"):
            world({"RANK": "x", "WORLD_SIZE": "2"})

    @pytest.mark.parametrize(
        "environment",
        [{"RANK": "5", "WORLD_SIZE": "2"}, {"RANK": "0", "WORLD_SIZE": "0"}, {"RANK": "-1", "WORLD_SIZE": "2"}],
        ids=str,
    )
    def test_impossible_numbers(self, world: Callable[..., World | None], environment: dict[str, str]) -> None:
        with pytest.raises(InputError, match="torchrun's environment does not describe a process of a run"):
            world({**environment, **self.MASTER})

    @pytest.mark.parametrize("name", ["RANK", "WORLD_SIZE"])
    def test_only_one_of_two_variables(self, world: Callable[..., World | None], name: str) -> None:
        with pytest.raises(InputError, match=f"{name} 1 is exported, but not .*: export both or neither"):
            world({name: "1"})

    def test_an_impossible_port(self, world: Callable[..., World | None]) -> None:
        with pytest.raises(InputError, match="export MASTER_ADDR"):
            world({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "node0", "MASTER_PORT": "99999"})
