"""Laws of the rendered jobs: sizes come from the parameters, and both operators run the same container."""

from dataclasses import replace
from pathlib import Path

import pytest

from training.cluster.images import image_names
from training.cluster.jobs import JobOptions, render_job, render_runtime, worker_needs
from training.cluster.manifest_files import changed_files
from training.cluster.pipeline_jobs import render_backbones, render_release
from training.launching.stage_process import image_facts
from training.params import load_params
from training.run_context import ImageFacts

ROOT = Path(__file__).parents[3]
OPTIONS = JobOptions(image="registry/training@sha256:1", data_md5="0123.dir")
LARGE, SMALL = (load_params(ROOT / "params.yaml", size) for size in ("7b", "tiny"))


def pod_of(job):
    """The pod of a PyTorchJob's workers."""
    return job["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]


def pod_of_runtime(runtime):
    """The pod of a TrainJob's nodes."""
    [replicated] = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    return replicated["template"]["spec"]["template"]["spec"]


def test_every_committed_manifest_is_what_is_rendered_now():
    assert list(changed_files(ROOT)) == [], "run: make manifests"


def test_another_size_of_the_cluster_is_another_job():
    cluster = LARGE.cluster.model_copy(update={"nodes": 16, "min_nodes": 3, "gpus": 4, "save_seconds": 77})
    job = render_job("stage2", LARGE.model_copy(update={"cluster": cluster}), OPTIONS)
    [worker] = pod_of(job)["containers"]

    assert job["spec"]["pytorchReplicaSpecs"]["Worker"]["replicas"] == 16
    assert job["spec"]["elasticPolicy"] == {"rdzvBackend": "c10d", "minReplicas": 3, "maxReplicas": 16}
    assert job["spec"]["nprocPerNode"] == "4"
    assert worker["resources"]["limits"]["nvidia.com/gpu"] == "4"
    assert worker["resources"]["requests"]["cpu"] == str(int(LARGE.cluster.cpu * 4))
    assert pod_of(job)["terminationGracePeriodSeconds"] == 77


def test_a_job_without_gpus_asks_for_none_and_tolerates_no_gpu_node():
    pod = pod_of(render_job("stage1", SMALL, OPTIONS))

    assert "nvidia.com/gpu" not in str(pod)
    assert "affinity" not in pod
    assert worker_needs(SMALL.cluster).resources()["requests"] == {"cpu": "200m", "memory": "1Gi"}


def test_only_a_stage_that_reads_raw_data_links_it_and_only_at_the_named_revision():
    [link] = pod_of(render_job("stage1", LARGE, OPTIONS))["initContainers"]

    assert {"name": "DATA_MD5", "value": "0123.dir"} in link["env"]
    assert all(mount["readOnly"] for mount in link["volumeMounts"] if mount["name"] == "dvc-cache")
    assert "initContainers" not in pod_of(render_job("stage1", SMALL, OPTIONS))


def test_a_worker_without_its_data_is_not_made_anew_for_ever():
    [worker] = pod_of(render_job("stage1", LARGE, OPTIONS))["initContainers"]
    job = render_release(LARGE, OPTIONS, "registry/packaging:1")["spec"]["template"]["spec"][
        "initContainers"
    ][0]

    # Of an init container that fails, the Training Operator makes the pod again; a Job has rules for it.
    assert "exit 0" in worker["args"][0] and "exit 2" not in worker["args"][0]
    assert "exit 2" in job["args"][0]


@pytest.mark.parametrize("params", [LARGE, SMALL], ids=["7b", "tiny"])
def test_both_operators_run_the_same_container(params):
    options = replace(OPTIONS, api="trainjob")
    [ours] = pod_of(render_job("stage1", params, OPTIONS))["containers"]
    trainer = render_job("stage1", params, options)["spec"]["trainer"]
    [theirs] = pod_of_runtime(render_runtime(params, options))["containers"]

    assert {**theirs, "name": "pytorch"} == ours
    assert (trainer["image"], trainer["args"]) == (ours["image"], ours["args"])
    assert trainer["resourcesPerNode"] == ours["resources"]
    assert trainer["numNodes"] == params.cluster.nodes


def test_a_job_in_a_queue_starts_suspended():
    job = render_job("stage1", LARGE, replace(OPTIONS, queue="training"))

    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "training"
    assert job["spec"]["runPolicy"]["suspend"] is True


def test_rdma_is_asked_for_once_for_each_gpu_and_not_switched_off():
    [worker] = pod_of(render_job("stage1", LARGE, replace(OPTIONS, rdma=True)))["containers"]
    names = {variable["name"] for variable in worker["env"]}

    assert worker["resources"]["limits"]["rdma/hca"] == worker["resources"]["limits"]["nvidia.com/gpu"]
    assert "NCCL_IB_DISABLE" not in names and "NCCL_IB_HCA" in names


@pytest.mark.parametrize(("params", "last"), [(LARGE, "encode"), (SMALL, "backbones")], ids=["7b", "tiny"])
def test_codes_of_pictures_are_computed_before_the_stages_that_read_them_and_else_not(params, last):
    pod = render_backbones(params, OPTIONS)["spec"]["template"]["spec"]
    steps = [step["name"] for step in (*pod["initContainers"], *pod["containers"])]

    assert steps == ["fetch", "data", "prepare", "backbones", "encode"][: steps.index(last) + 1]
    assert steps[-1] == last


def test_only_the_steps_that_promote_and_package_have_the_promoting_account():
    pod = render_release(LARGE, OPTIONS, "registry/packaging:1")["spec"]["template"]["spec"]
    accounts = {
        container["name"]: [source["secretRef"]["name"] for source in container["envFrom"][1:]]
        for container in (*pod["initContainers"], *pod["containers"])
    }

    assert accounts == {
        "data": [],
        "evaluate": ["mlflow-trainer"],
        "promote": ["mlflow-promoter"],
        "package": ["mlflow-promoter"],
    }


@pytest.mark.parametrize(
    ("steps", "account"), [(["evaluate"], "trainer"), (["promote", "package"], "promoter")]
)
def test_measuring_alone_needs_neither_the_promoting_account_nor_the_volume_of_the_registry(steps, account):
    release = render_release(LARGE, OPTIONS, "registry/packaging:1", steps)
    pod = release["spec"]["template"]["spec"]
    claims = [volume.get("persistentVolumeClaim", {}).get("claimName") for volume in pod["volumes"]]

    assert pod["serviceAccountName"] == account
    assert ("models" in claims) == (account == "promoter")


@pytest.mark.parametrize("api", ["pytorchjob", "trainjob"])
def test_what_trains_learns_the_name_of_its_image(api):
    options = replace(OPTIONS, api=api)
    runtime = render_runtime(SMALL, options)
    pod = pod_of_runtime(runtime) if api == "trainjob" else pod_of(render_job("stage1", SMALL, options))
    backbones = render_backbones(SMALL, options)["spec"]["template"]["spec"]

    for [container] in (pod["containers"], backbones["containers"]):
        told = {entry["name"]: entry.get("value") for entry in container["env"]}
        facts = image_facts({"GIT_COMMIT": "c", "GIT_DIRTY": "false", **told})
        assert facts == ImageFacts(commit="c", is_dirty=False, name=OPTIONS.image)


@pytest.mark.parametrize("environment", [{}, {"GIT_COMMIT": "unknown", "GIT_DIRTY": "unknown"}])
def test_an_image_that_was_not_told_its_code_claims_none(environment):
    assert image_facts(environment) == ImageFacts()


@pytest.mark.parametrize(
    ("image", "version"),
    [
        ("localhost:5000/vargpt-training:0.1.0", "0.1.0"),
        ("registry/training@sha256:0123456789abcdef", "sha256-0123456789ab"),
    ],
)
def test_a_job_is_labelled_with_the_version_of_its_image(image, version):
    options = replace(OPTIONS, image=image)
    train_job = replace(options, api="trainjob")
    rendered = [
        render_job("stage1", SMALL, options),
        render_job("stage1", SMALL, train_job),
        render_runtime(SMALL, train_job),
        render_backbones(SMALL, options),
    ]

    for item in rendered:
        assert item["metadata"]["labels"]["app.kubernetes.io/version"] == version


def test_an_image_without_tag_or_digest_is_refused(tmp_path):
    folder = tmp_path / "k8s" / "images"
    folder.mkdir(parents=True)
    (folder / "kustomization.yaml").write_text("images: [{name: vargpt-training, newName: here/training}]")

    with pytest.raises(ValueError, match="vargpt-training needs a newTag or a digest"):
        image_names(tmp_path)
