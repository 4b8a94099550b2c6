# One image for every job and for the MLflow server: what training needs, and the code as it lies.
# docker build -f k8s/images/training.Dockerfile -t localhost/vargpt-training:dev \
#   --build-arg GIT_COMMIT=$(git rev-parse HEAD) .
# The name of the base image moves with time; a build that can be repeated names its digest as well
# (`docker buildx imagetools inspect python:3.11-slim` tells it): --build-arg BASE=python:3.11-slim@sha256:...
ARG BASE=python:3.11-slim
FROM ${BASE}

# Which build of torch. For CPUs alone, gigabytes less: --build-arg TORCH=cpu --build-arg UV_TORCH_BACKEND=cpu. The
# latter has uv look into PyTorch's index, and is left out where a folder of wheels holds that build.
ARG TORCH=cuda
ARG UV_TORCH_BACKEND
ENV VIRTUAL_ENV=/opt/venv PATH=/opt/venv/bin:$PATH
COPY requirements/uv.txt /tmp/requirements/
RUN pip install --no-cache-dir --require-hashes --requirement /tmp/requirements/uv.txt
COPY requirements/training-${TORCH}.txt /tmp/requirements/
# The root is read-only in pods, so byte code is compiled here.
RUN uv venv --python python3 /opt/venv \
    && uv pip sync --no-cache --compile-bytecode --require-hashes /tmp/requirements/training-${TORCH}.txt

# Caches go to /tmp, an emptyDir in pods.
ENV HOME=/tmp XDG_CACHE_HOME=/tmp/cache HF_HOME=/tmp/huggingface MPLCONFIGDIR=/tmp/matplotlib \
    PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=/app PYTHONSAFEPATH=1 \
    GIT_PYTHON_REFRESH=quiet MLFLOW_DISABLE_TELEMETRY=true DO_NOT_TRACK=true DVC_NO_ANALYTICS=1 \
    DVC_SITE_CACHE_DIR=/tmp/dvc
RUN useradd --uid 10001 --no-create-home --home-dir /tmp vargpt

# What changes with every commit comes last, so a change of code rebuilds these layers only.
WORKDIR /app
COPY params.yaml data.dvc pyproject.toml ./
# The raw data, as DVC keeps it; k8s/backbones.yaml has it restored on the volume.
COPY .dvc/config ./.dvc/
COPY .dvc/raw ./.dvc/raw
COPY model ./model
COPY training ./training
# Before a RUN: buildah takes a cached layer for another commit's ENV and LABEL, but not for what is run with it.
ARG GIT_COMMIT=unknown
RUN python -m compileall -q model training
ENV GIT_COMMIT=${GIT_COMMIT}
LABEL org.opencontainers.image.title=vargpt-training org.opencontainers.image.revision=${GIT_COMMIT}
USER 10001:10001
CMD ["python", "-m", "training.launching", "--help"]
