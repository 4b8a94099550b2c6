"""Laws of following a job: nothing is lost while the API server is away, and every end has its reason."""

import threading
import time

import pytest

from model.errors import UserError
from tests.training.submission.fake_api import FakeApi, pod, pytorchjob
from training.submission.api import ApiServer
from training.submission.follow import JobFollower
from training.submission.jobs import PYTORCHJOB, Jobs, state_of

RUNNING = {"running": {"startedAt": "2026-01-01T00:00:00Z"}}


def ended(code: int, reason: str = "Error"):
    return {"terminated": {"exitCode": code, "reason": reason}}


@pytest.fixture
def api():
    made = FakeApi()
    yield made
    made.stop()


@pytest.fixture
def jobs(api, tmp_path, monkeypatch):
    monkeypatch.setenv("KUBECONFIG", str(api.kubeconfig(tmp_path)))
    return Jobs(ApiServer(sleep=lambda _: time.sleep(0.05)))


@pytest.fixture
def follow(jobs):
    """Follows job `j` to its end: the outcome, and all that was said."""

    def to_end():
        said = []
        return JobFollower(jobs, PYTORCHJOB, "j", said.append).to_end(poll_seconds=0.02), said

    return to_end


def later(seconds, action):
    timer = threading.Timer(seconds, action)
    timer.daemon = True
    timer.start()


def test_a_job_is_followed_through_an_outage_with_a_line_at_its_begin_and_its_end(api, follow, caplog):
    api.objects["pytorchjobs", "j"] = pytorchjob("j", "Created", "Running")
    api.objects["pods", "j-worker-0"] = pod("j", 0, RUNNING)
    api.logs["j-worker-0"] = ["2026-01-01T00:00:01.000000000Z stage1 5/30 text 1.2"]

    def back():
        api.logs["j-worker-0"].append("2026-01-01T00:00:09.000000000Z stage1 30/30 text 0.4")
        api.objects["pytorchjobs", "j"] = pytorchjob("j", "Created", "Running", "Succeeded")
        api.start()

    later(0.3, api.stop)
    later(1.5, back)

    outcome, said = follow()

    assert outcome.exit_code == 0
    assert said[:2] == ["j is Running", "stage1 5/30 text 1.2"]
    assert sorted(said[2:]) == ["j is Succeeded", "stage1 30/30 text 0.4"]
    told = [record.message for record in caplog.records if record.name == "training.submission.api"]
    assert len(told) == 2
    assert "the API server does not answer (" in told[0] and "what runs there runs on" in told[0]
    assert "answers again after" in told[1]


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_server_that_has_too_much_to_do_is_asked_again(api, jobs, status):
    api.objects["pytorchjobs", "j"] = pytorchjob("j", "Created")
    api.refuse = [(status, "webhook refused the connection")] * 3

    assert jobs.find(PYTORCHJOB, "j")["metadata"]["name"] == "j"

    api.refuse = [(status, "webhook refused the connection")] * 3
    assert jobs.pods(PYTORCHJOB, "j") == []


def test_a_connection_that_breaks_within_tls_is_an_outage_too(jobs):
    from kubernetes.client import ApiException

    broken = [ApiException(status=0, reason="SSLError\n[SSL: UNEXPECTED_EOF] EOF occurred")] * 2

    def call():
        if broken:
            raise broken.pop()
        return "answer"

    assert jobs.server.ask(call) == "answer"


def test_a_server_that_stays_away_is_given_up_with_the_reason(api, tmp_path, monkeypatch):
    monkeypatch.setenv("KUBECONFIG", str(api.kubeconfig(tmp_path)))
    server = ApiServer(patience_seconds=0.2, sleep=lambda _: time.sleep(0.1))
    api.stop()

    with pytest.raises(
        UserError, match=r"has not answered for \d+ s \(.*refused\); what runs in the cluster"
    ):
        Jobs(server).find(PYTORCHJOB, "j")


def test_what_the_account_may_not_do_is_told_at_once(api, jobs):
    api.refuse = [(403, 'pytorchjobs is forbidden: User "me" cannot get')]

    with pytest.raises(UserError, match='does not allow this: pytorchjobs is forbidden: User "me"'):
        jobs.find(PYTORCHJOB, "j")


def test_a_job_whose_creation_was_not_confirmed_is_made_once(api, jobs):
    api.lose_answers = 1

    assert jobs.create(pytorchjob("j")) is False
    assert ("pytorchjobs", "j") in api.objects


def test_what_an_operator_refuses_is_told_in_its_words(api, jobs):
    api.refuse = [(422, "admission webhook denied the request: spec.pytorchReplicaSpecs: Required value")]

    with pytest.raises(UserError, match="does not take PyTorchJob j: admission webhook denied"):
        jobs.create(pytorchjob("j"))


def test_the_users_mistake_ends_with_two_and_the_line_that_tells_it(api, follow):
    api.objects["pytorchjobs", "j"] = pytorchjob("j", "Created", "Failed")
    api.objects["pods", "j-worker-0"] = pod("j", 0, ended(2))
    api.logs["j-worker-0"] = ["2026-01-01T00:00:01.000000000Z launch: error: stage1.batch must be positive"]

    outcome, _ = follow()

    assert (outcome.exit_code, outcome.reason) == (2, "stage1.batch must be positive")


def test_any_other_failure_ends_with_138_and_what_the_kubelet_knows(api, follow):
    api.objects["pytorchjobs", "j"] = pytorchjob("j", "Created", "Failed")
    api.objects["pods", "j-worker-0"] = pod("j", 0, ended(137, "OOMKilled"))

    outcome, _ = follow()

    assert (outcome.exit_code, outcome.reason) == (138, "OOMKilled")


def test_a_job_that_somebody_deletes_is_no_success(api, follow):
    api.objects["pytorchjobs", "j"] = pytorchjob("j", "Running")
    later(0.3, lambda: api.objects.pop(("pytorchjobs", "j")))

    outcome, _ = follow()

    assert (outcome.exit_code, outcome.reason) == (138, "job j was deleted")


def test_a_suspended_job_says_who_holds_it_and_is_waited_for(api, follow):
    job = pytorchjob("j", "Suspended", runPolicy={"suspend": True})
    job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] = "training"
    api.objects["pytorchjobs", "j"] = job

    def admit():
        api.objects["pytorchjobs", "j"] = pytorchjob("j", "Created", "Running", "Succeeded")

    later(0.4, admit)
    outcome, said = follow()

    assert outcome.exit_code == 0
    assert said[0] == "j is held by queue training: it starts when there is room"


def test_a_job_that_was_resumed_is_no_longer_suspended():
    job = pytorchjob("j", "Created", "Running", runPolicy={"suspend": False})
    job["status"]["conditions"].append({"type": "Suspended", "status": "False"})

    assert state_of(PYTORCHJOB, job).phase == "Running"


def test_why_a_pod_waits_is_said_once(api, follow):
    api.objects["pytorchjobs", "j"] = pytorchjob("j", "Created")
    missing = {
        "type": "PodScheduled",
        "status": "False",
        "reason": "Unschedulable",
        "message": "0/3 nodes: 3 GPUs",
    }
    api.objects["pods", "j-worker-0"] = pod("j", 0, {"waiting": {}}, conditions=[missing])
    later(0.5, lambda: api.objects.update({("pytorchjobs", "j"): pytorchjob("j", "Succeeded")}))

    _, said = follow()

    assert said.count("worker-0 waits: Unschedulable: 0/3 nodes: 3 GPUs") == 1


def test_a_secret_that_is_missing_is_named_while_its_pods_wait(api, follow):
    api.objects["pytorchjobs", "j"] = pytorchjob("j", "Created")
    waiting = {"reason": "CreateContainerConfigError", "message": 'secret "mlflow-trainer" not found'}
    api.objects["pods", "j-worker-0"] = pod("j", 0, {"waiting": waiting})
    later(0.5, lambda: api.objects.update({("pytorchjobs", "j"): pytorchjob("j", "Succeeded")}))

    _, said = follow()

    sentence = 'worker-0 waits: pytorch: CreateContainerConfigError: secret "mlflow-trainer" not found'
    assert said.count(sentence) == 1


def test_lines_of_several_workers_say_whose_they_are_and_come_once(api, follow):
    api.objects["pytorchjobs", "j"] = pytorchjob("j", "Running")
    for index in (0, 1):
        api.objects["pods", f"j-worker-{index}"] = pod("j", index, RUNNING)
        api.logs[f"j-worker-{index}"] = [
            "2026-01-01T00:00:01.000000000Z a",
            "2026-01-01T00:00:01.000000000Z b",
        ]
    later(0.3, lambda: api.objects.update({("pytorchjobs", "j"): pytorchjob("j", "Succeeded")}))

    _, said = follow()

    assert [line for line in said if "| " in line] == [
        "worker-0| a",
        "worker-0| b",
        "worker-1| a",
        "worker-1| b",
    ]
