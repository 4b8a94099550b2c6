# The tracking server with drivers for Postgres and S3, under a lock of its own (requirements/mlflow.in says why).
ARG BASE=python:3.11-slim
FROM ${BASE}
ENV VIRTUAL_ENV=/opt/venv PATH=/opt/venv/bin:$PATH
COPY requirements/uv.txt requirements/mlflow.txt /tmp/requirements/
RUN pip install --no-cache-dir --require-hashes --requirement /tmp/requirements/uv.txt \
    && uv venv --python python3 /opt/venv \
    && uv pip sync --no-cache --compile-bytecode --require-hashes /tmp/requirements/mlflow.txt \
    && python -c 'import boto3, psycopg2'
ENV HOME=/tmp PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 GIT_PYTHON_REFRESH=quiet MLFLOW_DISABLE_TELEMETRY=true \
    DO_NOT_TRACK=true
# Before a RUN, as in Dockerfile: else buildah would take a cached layer with the labels of another commit.
ARG GIT_COMMIT=unknown
ARG GIT_DIRTY=unknown
ARG LOCK_SHA256=unknown
RUN useradd --uid 10001 --no-create-home --home-dir /tmp mlflow
LABEL org.opencontainers.image.title=vargpt-mlflow org.opencontainers.image.revision=${GIT_COMMIT} \
      io.vargpt.git-dirty=${GIT_DIRTY} io.vargpt.lock-sha256=${LOCK_SHA256}
USER 10001:10001
CMD ["mlflow", "server", "--help"]
