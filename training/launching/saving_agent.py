"""torch's elastic agent, which gives processes time to save before a group that grows starts them anew."""

from torch.distributed.elastic.agent.server.api import WorkerGroup
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.launcher import api


def use_saving_agent(seconds: float) -> None:
    """Let launches of this process have agents that wait so long for their processes to save.

    torch's own agent kills them after 30 s, whatever its `shutdown_timeout` says, and a launch takes no other
    one. After a crash it still does: processes that wait for one that is gone save nothing.
    """

    class SavingAgent(LocalElasticAgent):
        def _restart_workers(self, worker_group: WorkerGroup) -> None:
            # Called only where a group grows, as groups never restart in place after a crash.
            self._shutdown(timeout=int(seconds))
            super()._restart_workers(worker_group)

    api.LocalElasticAgent = SavingAgent
